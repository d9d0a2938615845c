"""System calls that Python's os module lacks: openat2 beneath a directory, renameat2, statx and others."""

from __future__ import annotations

import os
from typing import NamedTuple

from .binding import check, ffi, lib


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


class FileStat(NamedTuple):
    """One file as statx(2) shows it, taken in one system call."""

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    """Bytes; 0 for a block device."""
    blocks: int
    """Units of 512 bytes."""
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    """Time of birth in nanoseconds since 1970; 0 when the file system keeps none."""
    mount_root: bool
    """Something is mounted here."""


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


def stat(dir_fd: int, name: bytes = b"") -> FileStat:
    """statx(2) of `name` in `dir_fd`, or of `dir_fd` itself; a symbolic link is not followed."""
    out = ffi.new("aiofs_stat_result *")
    result: int = lib.aiofs_stat(dir_fd, name, out)
    if result < 0:
        raise OSError(-result, os.strerror(-result), os.fsdecode(name))
    return FileStat(
        out.dev,
        out.ino,
        out.mode,
        out.nlink,
        out.uid,
        out.gid,
        out.size,
        out.blocks,
        out.blksize,
        out.atime_ns,
        out.mtime_ns,
        out.ctime_ns,
        out.birth_ns,
        bool(out.mount_root),
    )


def become_io_flusher() -> None:
    """prctl(2), PR_SET_IO_FLUSHER, of this thread and those that it starts later. OSError: EPERM, EINVAL."""
    check(lib.aiofs_become_io_flusher(), "PR_SET_IO_FLUSHER")


def lock_memory() -> None:
    """mlockall(2), now and in the future, of pages that are touched. OSError: EPERM, ENOMEM, EINVAL."""
    check(lib.aiofs_lock_memory(), "mlockall")


def limit_capabilities(keep: int) -> None:
    """Give up all capabilities of this thread, and of those that it starts, but those in the set `keep`.

    A bit for each, by its number in capabilities(7)'s header. OSError.
    """
    check(lib.aiofs_limit_capabilities(keep), "capset")


def refuse_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS (prctl(2)) for this thread and those that it starts. OSError."""
    check(lib.aiofs_refuse_new_privileges(), "PR_SET_NO_NEW_PRIVS")
