"""Whether O_DIRECT works for an image, and with which alignment. Knows descriptors and numbers only."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from dataclasses import dataclass

from .dataplane import system
from .source import Kind, Source

MAX_BLOCK_SIZE = 4096
"""The data plane pads unaligned requests up to this many bytes."""

MIN_BLOCK_SIZE = 512
"""A sector: the smallest unit of the block layer, whatever less a file system may accept."""

_BLKSSZGET = 0x1268
"""ioctl of linux/fs.h: logical block size of a block device in bytes."""

_PAGE_CACHE_IS_THE_STORE = ("tmpfs", "ramfs", "hugetlbfs")
"""tmpfs takes O_DIRECT since Linux 6.6 and ignores it, which gains nothing and costs padding."""


REFUSED_ERRNO = errno.EINVAL
"""What open(2) with O_DIRECT says where the file system has none."""


class DirectRefused(Exception):
    """O_DIRECT does not work; the text says who refuses, to be read after a name and a colon."""


class DirectUnsupported(OSError):
    """An image was to be opened with O_DIRECT, as the user asked, and cannot be."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(errno.EINVAL, f"cannot open {name} with O_DIRECT: {reason}; use --cache writeback")

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True)
class Alignment:
    """What O_DIRECT needs of offsets, lengths and memory."""

    size: int
    """Bytes, MIN_BLOCK_SIZE to MAX_BLOCK_SIZE."""
    looked_at: str
    """Where it is known from, for people."""


def alignment(fd: int, filesystem: str) -> Alignment:
    """The alignment that O_DIRECT needs for this image, opened with O_DIRECT.

    Raises DirectRefused when it does not work. May read the image: call it from a thread, or not at all
    where `known_alignment` has the answer.
    """
    return known_alignment(fd, filesystem) or Alignment(_tried(fd, filesystem), "trial reads")


def known_alignment(fd: int, filesystem: str) -> Alignment | None:
    """The alignment where the kernel tells it, else None; does not read the image. DirectRefused."""
    refuse_by_name(filesystem)
    known = system.statx(fd)
    if known.dio_known:
        if known.dio_offset_align == 0:
            raise DirectRefused(f"{filesystem} does not support it for this file")
        # Parts of a buffer begin at multiples of this, so the memory's alignment counts as well.
        size = max(known.dio_offset_align, known.dio_mem_align)
        looked_at = f"STATX_DIOALIGN: offset {known.dio_offset_align}, memory {known.dio_mem_align}"
    elif stat.S_ISBLK(os.fstat(fd).st_mode):
        size = int.from_bytes(fcntl.ioctl(fd, _BLKSSZGET, bytes(4)), "little")
        looked_at = f"BLKSSZGET: {size}"
    else:
        return None
    if size > MAX_BLOCK_SIZE:
        raise DirectRefused(f"{filesystem} needs blocks of {size} bytes, more than {MAX_BLOCK_SIZE}")
    return Alignment(max(size, MIN_BLOCK_SIZE), looked_at)


def refuse_by_name(filesystem: str) -> None:
    """DirectRefused for file systems where O_DIRECT has no meaning even if it is accepted."""
    if filesystem in _PAGE_CACHE_IS_THE_STORE:
        raise DirectRefused(f"{filesystem} does not support it")


def _tried(fd: int, filesystem: str) -> int:
    """By trial reads. An empty file answers before it looks at the alignment; btrfs reads through the
    page cache when a read is not aligned to its sector: for both the block of stat is right."""
    st = os.fstat(fd)
    smallest = st.st_blksize if st.st_size == 0 or filesystem == "btrfs" else MIN_BLOCK_SIZE
    with mmap.mmap(-1, MAX_BLOCK_SIZE) as page, memoryview(page) as memory:
        size = min(smallest, MAX_BLOCK_SIZE)
        while size <= MAX_BLOCK_SIZE:
            try:
                os.preadv(fd, [memory[:size]], 0)
                return size
            except OSError as error:
                if error.errno != errno.EINVAL:
                    return MAX_BLOCK_SIZE  # the device was reached; its error is for the image's reader
            size *= 2
    raise DirectRefused(f"{filesystem} does not support it")


def check_direct(source: Source) -> None:
    """Raise DirectUnsupported when images of this source cannot be opened with O_DIRECT.

    For a mount that was asked for it by name. A directory is tried with its first image, or with an
    unnamed temporary file when it holds none.
    """
    filesystem = source.filesystem()
    shown = str(source.path)
    try:
        refuse_by_name(filesystem)
        fd = sample(source, os.O_DIRECT)
        if fd is None:
            return
        try:
            alignment(fd, filesystem)
        finally:
            os.close(fd)
    except DirectRefused as refused:
        raise DirectUnsupported(shown, str(refused)) from refused
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DirectUnsupported(shown, f"{filesystem} does not support it") from error
        raise


def sample(source: Source, flags: int) -> int | None:
    """An image of the source opened for reading and with `flags`, or None when there is none to try."""
    if source.kind is not Kind.TREE:
        return source.open_file(source.root_fd, source.name, os.O_RDONLY | flags)
    dir_fd = source.open_directory(b"", 0)
    try:
        for name in source.names(dir_fd):
            try:
                if stat.S_ISREG(source.stat(dir_fd, name).mode):
                    return source.open_file(dir_fd, name, os.O_RDONLY | flags)
            except (PermissionError, FileNotFoundError):
                continue
        if source.read_only:
            return None
        return system.open_beneath(dir_fd, b".", os.O_TMPFILE | os.O_RDWR | flags, 0o600)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EACCES, errno.EROFS, errno.EPERM):
            return None  # no temporary file to be had: the first image will tell
        raise
    finally:
        os.close(dir_fd)
