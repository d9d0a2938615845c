"""The version of the kernel."""

from __future__ import annotations

import os
import re


def version(release: str | None = None) -> tuple[int, int, int]:
    """Of a release as uname -r has it, this kernel's unless one is given; (0, 0, 0) when it has none."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release if release is None else release)
    return (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)) if numbers else (0, 0, 0)
