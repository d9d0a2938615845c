"""The hidden directory `.aiofs` at the root of a mount: files in which the server tells about itself.

Found by name, not listed. The content of a file is made when it is opened and stays so until it is closed.
Since whoever may use the mount can open them as often as they like, what is kept has a limit.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping

from .dataplane.system import FileStat
from .nodes import FIRST_VIRTUAL

DIRECTORY_NAME = b".aiofs"
DIRECTORY = 2**64 - 16
"""Its node id: above all inode numbers that are served. The files have those after it, in order."""
_FIRST_HANDLE = FIRST_VIRTUAL
_HANDLES = 2**28
_FILES = 8
"""File handles are numbered as opens are, times this, plus the number of the file."""

MAX_READ = 64 * 1024
"""Bytes of one answer: a longer message may not fit the socket to the data plane of an ordinary user."""

MAX_OPEN = 256
"""Opens of all files at once; ENFILE beyond."""
MAX_KEPT_BYTES = 256 << 20
"""Contents of all opens; ENOMEM beyond. 200 idle open images took 2.5 kB each: 16,384 would take 40 MB."""


def is_virtual(number: int) -> bool:
    """A node id or file handle of this directory, not of a backing file."""
    return number >= FIRST_VIRTUAL


Content = Callable[[], Awaitable[bytes]]
"""Makes the content of a file."""


class InfoDirectory:
    """The directory, its files, and the opens of them."""

    def __init__(self, files: Mapping[bytes, Content]) -> None:
        """`files`: by name, at most _FILES."""
        self.names = tuple(files)
        self._contents = tuple(files.values())
        self._open: dict[int, bytes] = {}
        self._next = 0
        self._kept_bytes = 0
        self._born_ns = time.time_ns()

    def lookup(self, name: bytes) -> int:
        """The node id of a name in the directory. ENOENT."""
        if name not in self.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(name))
        return DIRECTORY + 1 + self.names.index(name)

    def stat(self, ino: int) -> FileStat:
        """The attributes of the directory or of a file; a file whose size is not known ahead has 0."""
        if ino == DIRECTORY:
            mode, nlink = stat.S_IFDIR | 0o555, 2
        elif 0 < ino - DIRECTORY <= len(self.names):
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

    async def open(self, ino: int, flags: int) -> int:
        """Make the content; returns the file handle. EACCES for writing, EISDIR."""
        if ino == DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        file = ino - DIRECTORY - 1
        content = await self._content(file)
        self._check_room(content)
        handle = _FIRST_HANDLE + self._next * _FILES + file
        self._next = (self._next + 1) % _HANDLES
        self._keep(handle, content)
        return handle

    def _check_room(self, content: bytes) -> None:
        if len(self._open) >= MAX_OPEN:
            raise OSError(errno.ENFILE, f"more than {MAX_OPEN} opens of files in .aiofs")
        if self._open and self._kept_bytes + len(content) > MAX_KEPT_BYTES:
            raise OSError(errno.ENOMEM, f"more than {MAX_KEPT_BYTES} bytes of files in .aiofs are open")

    def _keep(self, handle: int, content: bytes) -> None:
        self._open[handle] = content
        self._kept_bytes += len(content)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """Bytes of the content as it was at the open; after a restart, as it is now."""
        content = self._open.get(handle)
        if content is None:
            content = await self._content((handle - _FIRST_HANDLE) % _FILES)
            if handle not in self._open:
                self._check_room(content)
                self._keep(handle, content)
            content = self._open[handle]
        return content[offset : offset + min(size, MAX_READ)]

    async def _content(self, file: int) -> bytes:
        if not 0 <= file < len(self._contents):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return await self._contents[file]()

    def release(self, handle: int) -> None:
        """The file handle is closed."""
        self._kept_bytes -= len(self._open.pop(handle, b""))
