"""A disk that remembers: one file on FUSE that writes down when each WRITE and each FLUSH began and was done.

Run as a program, between aiofs and the image: recorder.py IMAGE MOUNTPOINT LOG SEED serves IMAGE as
MOUNTPOINT/disk.img. Requests take a moment, drawn from SEED, and are served side by side, so that they end in
another order than they came in, as on a real disk. Knows the events of a log (crashlog.py), nothing else.
"""
# ruff: noqa: ARG002 -- pyfuse3 prescribes the handlers' arguments

from __future__ import annotations

import errno
import itertools
import os
import random
import sys
from collections.abc import Sequence

import pyfuse3
import trio
from crashlog import Event, Kind
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ReaddirToken, RequestContext

NAME = b"disk.img"
FILE = InodeT(pyfuse3.ROOT_INODE + 1)
LONGEST_S = 0.002


class Recorder(pyfuse3.Operations):
    """The directory with the one file."""

    def __init__(self, image: str, log: str, seed: int) -> None:
        super().__init__()
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._random = random.Random(seed)
        self._numbers = itertools.count()

    # -- what is recorded --

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """The bytes are on the image, in the disk's cache, somewhen between the two events."""
        number = self._begun(Kind.WRITE, off, buf)
        await self._work()
        os.pwrite(self._image, buf, off)
        self._done(Kind.WRITE_DONE, number)
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Covers the writes that were done when it began."""
        number = self._begun(Kind.FLUSH)
        await self._work()
        self._done(Kind.FLUSH_DONE, number)

    def _begun(self, kind: Kind, offset: int = 0, data: bytes = b"") -> int:
        number = next(self._numbers)
        self._append(Event(kind, number, offset, data))
        return number

    def _done(self, kind: Kind, number: int) -> None:
        self._append(Event(kind, number))

    def _append(self, event: Event) -> None:
        """In one write, so that the size of the log always ends an event."""
        data = event.pack()
        if os.write(self._log, data) != len(data):
            raise FUSEError(errno.EIO)

    async def _work(self) -> None:
        await trio.sleep(self._random.uniform(0, LONGEST_S))

    # -- what is not --

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """What is on the image."""
        return os.pread(self._image, size, off)

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The one name."""
        if name != NAME:
            raise FUSEError(errno.ENOENT)
        return self._entry(FILE)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes of the file or the directory."""
        return self._entry(inode)

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """The file; a handle carries no state."""
        return FileInfo(fh=FileHandleT(inode))

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """The directory."""
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """The one name."""
        if start_id == 0:
            pyfuse3.readdir_reply(token, NAME, self._entry(FILE), 1)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Both are there as long as the mount."""

    async def flush(self, fh: FileHandleT) -> None:
        """close(2) makes nothing durable."""

    async def release(self, fh: FileHandleT) -> None:
        """A handle carries no state."""

    async def releasedir(self, fh: FileHandleT) -> None:
        """A handle carries no state."""

    def _entry(self, inode: InodeT) -> EntryAttributes:
        st = os.fstat(self._image)
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = st.st_mode if inode == FILE else 0o040755
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = st.st_uid, st.st_gid
        entry.st_size = st.st_size if inode == FILE else 0
        entry.st_blocks = st.st_blocks if inode == FILE else 0
        entry.st_mtime_ns, entry.st_ctime_ns, entry.st_atime_ns = (
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_atime_ns,
        )
        return entry


def main(image: str, mountpoint: str, log: str, seed: str) -> None:
    """Serve until unmounted."""
    options = {*pyfuse3.default_options, "fsname=recorder"}
    pyfuse3.init(Recorder(image, log, int(seed)), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
