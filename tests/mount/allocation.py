"""fallocate(2), which Python lacks, and what of a file is data."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
PUNCH = PUNCH_HOLE | KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, zero or give back the blocks of a range, as `mode` says. OSError."""
    if _libc.fallocate64(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, from and up to; by SEEK_DATA and SEEK_HOLE alone."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < end, f"a hole begins at {end}, in the data found at {start}"
        yield start, end
