"""Waiting for a fact that the kernel's attribute timeout (1 s) may delay, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 10.0
_LOOK_EVERY_S = 0.02


def wait_until(fact: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Return as soon as the fact holds; AssertionError when it does not within `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < end, f"not true after {deadline_s} s"
        time.sleep(_LOOK_EVERY_S)
