"""System calls that Python's os module lacks: openat2 beneath a directory, renameat2, statx."""

from __future__ import annotations

import os
from typing import NamedTuple

from .binding import ffi, lib


class Statx(NamedTuple):
    """What statx(2) knows beyond os.stat."""

    birth_ns: int
    """Time of birth in nanoseconds since 1970; 0 when the file system keeps none."""
    dio_known: bool
    """The kernel answered STATX_DIOALIGN (Linux 6.1 and later)."""
    dio_mem_align: int
    """Alignment of memory for O_DIRECT in bytes; 0: O_DIRECT not supported."""
    dio_offset_align: int
    """Alignment of offsets and lengths for O_DIRECT in bytes; 0: O_DIRECT not supported."""


def open_beneath(root_fd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """openat2(2) of `path` beneath `root_fd`: no symbolic link, no magic link, no other file system.

    Raises OSError: ELOOP for a symbolic link on the way, EXDEV for a path that leaves the tree or the
    file system, and whatever openat2 says.
    """
    fd: int = lib.aiofs_open_beneath(root_fd, path, flags, mode)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), os.fsdecode(path))
    return fd


def rename(old_dir: int, old_name: bytes, new_dir: int, new_name: bytes, flags: int) -> None:
    """renameat2(2), with RENAME_NOREPLACE and RENAME_EXCHANGE in `flags`."""
    result: int = lib.aiofs_rename(old_dir, old_name, new_dir, new_name, flags)
    if result < 0:
        raise OSError(-result, os.strerror(-result), os.fsdecode(old_name))


def statx(fd: int) -> Statx:
    """statx(2) of an open descriptor; O_PATH will do."""
    out = ffi.new("aiofs_statx_result *")
    result: int = lib.aiofs_statx(fd, out)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return Statx(out.birth_ns, bool(out.dio_known), out.dio_mem_align, out.dio_offset_align)
