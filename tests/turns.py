"""Tests run at once, one on each processor; a few change or count what belongs to the whole machine.

Those are marked `alone`: while one runs, no other does. All others take turns with them by two locks of
flock(2), which the kernel gives back whatever becomes of a process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).resolve()
_QUEUE = _HERE.with_name("conftest.py")
"""Held while one waits for its turn: without it, those who share would never leave a gap for one alone."""


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Wait until nobody runs whom this one excludes, and run."""
    with _open(_HERE) as running:
        with _open(_QUEUE) as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """A descriptor of its own; what it has locked is free afterwards, even if a child still has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
