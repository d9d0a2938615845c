"""Temporary files beside the image, for what must not be done to the image itself.

They have no name: made with O_TMPFILE, or removed as soon as they are open. So they are gone with the last
descriptor, in whatever way the process ends, and nobody has to clean up.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from ..errors import AiofsError, reason

MIB = 1 << 20

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS)
"""What file systems (and kernels) without O_TMPFILE answer."""


class NoScratch(Exception):
    """There is no temporary file to be had here; the text says why, to be read after a colon."""


def size_for(directory: Path, limit: int) -> int:
    """Bytes that a temporary file may have: `limit`, or a quarter of what is free. NoScratch: too little."""
    there = os.statvfs(directory)
    free = there.f_bavail * there.f_frsize
    size = min(limit, free // 4) // MIB * MIB
    if size < 4 * MIB:
        raise NoScratch(f"{directory} has {free // MIB:,} MiB free, and 16 MiB are needed; free some space")
    return size


def create(directory: Path, flags: int = 0) -> int:
    """An empty file without a name, open for reading and writing, with more open flags. NoScratch."""
    try:
        first = _nameless(directory)
    except OSError as error:
        raise NoScratch(f"cannot write in {directory}: {reason(error)}") from None
    try:
        # A second time, because O_DIRECT may be refused where O_TMPFILE is not, and has its own message.
        return os.open(f"/proc/self/fd/{first}", os.O_RDWR | os.O_CLOEXEC | flags)
    except OSError as error:
        raise NoScratch(f"cannot open a temporary file in {directory}: {reason(error)}") from None
    finally:
        os.close(first)


def _nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    fd, name = tempfile.mkstemp(prefix=".aiofs-bench.", dir=directory)
    Path(name).unlink()
    return fd


def fill(fd: int, size: int, name: str) -> None:
    """Write the whole file once, so that later writes find every block allocated, and empty its cache.

    `fd` may be O_DIRECT. AiofsError, with `name` in it, when the disk is full.
    """
    plain = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    block = os.urandom(MIB)
    try:
        os.posix_fallocate(plain, 0, size)
        for offset in range(0, size, MIB):
            written = os.pwrite(plain, block[: size - offset], offset)
            if written < min(MIB, size - offset):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(plain)
        os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise AiofsError(f"cannot write {size // MIB} MiB {name}: {reason(error)}; free some space") from None
    finally:
        os.close(plain)
