"""The hidden directory `.aiofs` at the root of a mount, with info.json: what `aiofs info` reads.

Found by name, not listed. The content is made when the file is opened and stays so until it is closed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

from .dataplane.system import FileStat
from .nodes import FIRST_VIRTUAL

DIRECTORY_NAME = b".aiofs"
FILE_NAME = b"info.json"
DIRECTORY = 2**64 - 16
"""Node ids: above all inode numbers that are served."""
FILE = 2**64 - 15
_FIRST_HANDLE = FIRST_VIRTUAL
_HANDLES = 2**31

MAX_READ = 64 * 1024
"""Bytes of one answer: a longer message may not fit the socket to the data plane of an ordinary user."""


def is_virtual(number: int) -> bool:
    """A node id or file handle of this directory, not of a backing file."""
    return number >= FIRST_VIRTUAL


class InfoDirectory:
    """The directory, its one file, and the opens of it."""

    def __init__(self, content: Callable[[], bytes]) -> None:
        self._content = content
        self._open: dict[int, bytes] = {}
        self._next = 0
        self._born_ns = time.time_ns()

    def lookup(self, name: bytes) -> int:
        """The node id of a name in the directory. ENOENT."""
        if name != FILE_NAME:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(name))
        return FILE

    def stat(self, ino: int) -> FileStat:
        """The attributes of the directory or the file; a file whose size is not known ahead has 0."""
        if ino == DIRECTORY:
            mode, nlink = stat.S_IFDIR | 0o555, 2
        elif ino == FILE:
            mode, nlink = stat.S_IFREG | 0o444, 1
        else:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        now = self._born_ns
        return FileStat(
            dev=0,
            ino=ino,
            mode=mode,
            nlink=nlink,
            uid=os.getuid(),
            gid=os.getgid(),
            size=0,
            blocks=0,
            blksize=4096,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            birth_ns=0,
            mount_root=False,
        )

    def open(self, ino: int, flags: int) -> int:
        """Make the content; returns the file handle. EACCES for writing, EISDIR."""
        if ino != FILE:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle = _FIRST_HANDLE + self._next
        self._next = (self._next + 1) % _HANDLES
        self._open[handle] = self._content()
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Bytes of the content as it was at the open; after a restart, as it is now."""
        content = self._open.setdefault(handle, b"") or self._content()
        self._open[handle] = content
        return content[offset : offset + min(size, MAX_READ)]

    def release(self, handle: int) -> None:
        """The file handle is closed."""
        self._open.pop(handle, None)
