"""The version of the kernel."""

from __future__ import annotations

import os


def version(release: str | None = None) -> tuple[int, int, int]:
    """Of a release as uname -r has it, this kernel's unless one is given; (0, 0, 0) when it has none."""
    numbers = []
    # No regular expression: `re` takes longer to import than all else that headstart.py needs.
    for word in (os.uname().release if release is None else release).split(".")[:3]:
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits))
        if digits != word:
            break
    return (numbers[0], numbers[1], (*numbers, 0)[2]) if len(numbers) > 1 else (0, 0, 0)
