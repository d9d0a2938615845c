"""The image that all targets serve: filled once, and brought to the same state before each cell."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from aiofs.locks import LockConflict, LocksUnsupported, lock_for_writing

from .processes import TargetError
from .workloads import MIB


def write_image(path: Path, size: int) -> None:
    """Fill a new file with random data, O_DIRECT, so that every block is allocated and written."""
    with mmap.mmap(-1, min(size, 32 * MIB)) as block:  # page-aligned, as O_DIRECT wants it
        block.write(os.urandom(len(block)))
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_DIRECT, 0o600)
        try:
            view = memoryview(block)
            left = size
            while left:
                left -= os.write(fd, view[: min(left, len(block))])
            view.release()
            os.fsync(fd)
        finally:
            os.close(fd)


def settle(image: Path) -> None:
    """Bring the image to the state in which every cell finds it: on the disk, not cached, not locked.

    nbdkit leaves dirty pages, which whoever comes next would have to write. The kernel tells a FUSE server
    of a close some time after the close, so an aiofs may still hold the lock of the cell before.
    """
    fd = os.open(image, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        deadline = time.monotonic() + 10
        while True:
            try:
                lock_for_writing(fd)  # given up with the descriptor
                return
            except LocksUnsupported:
                return
            except LockConflict:
                if time.monotonic() > deadline:
                    raise TargetError("the image stays locked after its last use") from None
                time.sleep(0.001)
    finally:
        os.close(fd)
