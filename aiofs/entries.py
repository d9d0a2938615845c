"""What the kernel and the caller see of a backing file: its attributes, and who owns a new one."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from pyfuse3 import EntryAttributes, RequestContext

from .dataplane import system
from .dataplane.system import FileStat
from .nodes import generation_of

VALID_S = 1.0
"""Seconds the kernel may believe names and attributes: how soon changes made underneath appear."""

MIN_BLKSIZE = 4096


def entry_of(st: FileStat, ino: int) -> EntryAttributes:
    """The kernel's view of a file as node `ino`: a block device is a regular file."""
    entry = EntryAttributes()
    entry.st_ino = ino
    entry.generation = generation_of(st)
    entry.entry_timeout = VALID_S
    entry.attr_timeout = VALID_S
    entry.st_mode = stat.S_IFREG | stat.S_IMODE(st.mode) if stat.S_ISBLK(st.mode) else st.mode
    entry.st_nlink = st.nlink
    entry.st_uid = st.uid
    entry.st_gid = st.gid
    entry.st_rdev = 0
    entry.st_size = st.size
    entry.st_blocks = st.blocks
    entry.st_blksize = max(st.blksize, MIN_BLKSIZE)
    entry.st_atime_ns = st.atime_ns
    entry.st_mtime_ns = st.mtime_ns
    entry.st_ctime_ns = st.ctime_ns
    return entry


def path_to(fd: int) -> Path:
    """A path that means the very file of a descriptor (O_PATH will do) whatever its names do."""
    return Path(f"/proc/self/fd/{fd}")


def give_to_caller(fd: int, dir_fd: int, mode: int, ctx: RequestContext) -> None:
    """Owner, group and mode of a new file as if the caller had made it in the backing directory itself.

    The kernel has applied the caller's umask to `mode`; the server's must not count. Only root can give
    files away: otherwise they belong to the server's user.
    """
    parent, made, path = system.stat(dir_fd), system.stat(fd), path_to(fd)
    mode = stat.S_IMODE(mode)
    inherits_group = bool(parent.mode & stat.S_ISGID)
    if inherits_group and stat.S_ISDIR(made.mode):
        mode |= stat.S_ISGID
    # Refused by file systems that keep no owners or modes (FAT): the file is the caller's to use anyway.
    with suppress(PermissionError):
        if os.geteuid() == 0:
            os.chown(path, ctx.uid, -1 if inherits_group else ctx.gid)
    with suppress(PermissionError):
        path.chmod(mode)  # after chown, which clears set-id bits
