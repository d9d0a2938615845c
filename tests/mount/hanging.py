"""Calls on a mount that would never return are made to fail, so that a test does."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

MNT_FORCE = 1
"""umount2(2): the connection is aborted, whether or not the mount can be taken away."""

_libc = ctypes.CDLL(None)


@contextmanager
def never_hanging(path: Path, after_s: float) -> Iterator[None]:
    """The block may use the mount at `path` for so long; then its calls fail with ECONNABORTED. Where we are
    not root they go on waiting."""
    # Not umount(8) nor fusermount3: they look at the mountpoint first, and would hang with it.
    timer = Timer(after_s, _libc.umount2, (bytes(path), MNT_FORCE))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
