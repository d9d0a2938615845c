"""Stand-ins for the data plane and the kernel, for tests that call the control plane directly."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FUSEError

from aiofs import locks
from aiofs.choice import Drivers
from aiofs.config import CacheMode
from aiofs.dataplane import COUNTERS_SIZE, ImageSpec
from aiofs.evidence import Machine
from aiofs.fs import Operations
from aiofs.images import ImageTable
from aiofs.ledger import Ledger
from aiofs.nodes import ROOT, Node
from aiofs.source import Source


class FakePlane:
    """Does what the data plane promises, at once, and keeps an account of it."""

    def __init__(self) -> None:
        self.images: dict[int, ImageSpec] = {}
        self.seen: list[ImageSpec] = []
        """Every spec ever registered."""
        self.truncated: list[tuple[int, int]] = []
        self.hold: trio.Event | None = None
        """When set, unregister waits for it, as for requests in flight."""
        self.refuse = 0
        """When set, register fails with this errno."""
        self.drivers: list[str] = []
        """Those that were opened."""
        self.refused_drivers: set[str] = set()
        """open_driver says EAGAIN of these."""

    async def register(self, node: int, spec: ImageSpec) -> int:
        await trio.lowlevel.checkpoint()
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        assert node not in self.images, "registered twice"
        os.fstat(spec.fd)
        self.images[node] = spec
        self.seen.append(spec)
        return len(self.seen) - 1

    async def unregister(self, node: int) -> int:
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        if node not in self.images:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.fstat(self.images.pop(node).fd)
        return 0

    async def open_driver(self, driver: str) -> None:
        await trio.lowlevel.checkpoint()
        if driver in self.refused_drivers:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.drivers.append(driver)

    async def truncate(self, node: int, size: int) -> None:
        await trio.lowlevel.checkpoint()
        self.truncated.append((node, size))
        os.ftruncate(self.images[node].fd, size)


def make_table(
    path: Path,
    plane: FakePlane,
    *,
    cache: CacheMode | None = None,
    read_only: bool = False,
    aio: str | None = "sync",
    ledger: Ledger | None = None,
) -> ImageTable:
    """An image table on `path`; close its `source`. `aio`: None decides for each image.

    `ledger`: of a server before this one.
    """
    source = Source.open(path, read_only)
    return ImageTable(
        source=source,
        plane=plane,
        drivers=Drivers(aio, source, Machine.look()),
        cache=cache,
        read_only=read_only,
        ledger=ledger or make_ledger(),
        locked_by=locked_by,
    )


async def locked_by(fd: int) -> list[locks.Holder]:
    """Who else has locks on the file of a descriptor."""
    return await trio.to_thread.run_sync(locks.locked_by, locks.Locked.ours(fd))


def make_ledger() -> Ledger:
    """An empty one, whose descriptor lives as long as it does."""
    ledger = Ledger.create(COUNTERS_SIZE)
    weakref.finalize(ledger, os.close, ledger.fd)
    return ledger


def run(coroutine: Callable[[], Awaitable[Any]]) -> None:
    """trio.run with a limit, so that a deadlock is a failure."""

    async def limited() -> None:
        with trio.fail_after(30):
            await coroutine()

    trio.run(limited)


def handle_of(table: ImageTable, ino: int) -> int:
    """What the opens of an image were answered with; 0 when it is not open."""
    image = table._images.get(ino)
    return image.handle if image is not None else 0


def node_of(table: ImageTable, name: bytes = b"a.img", parent: int = ROOT) -> Node:
    """The node of a name, as a lookup makes it."""
    with table.nodes.directory(parent) as dir_fd:
        found = table.nodes.seen(parent, name, table.source.stat(dir_fd, name))
    table.nodes.looked_up(found)
    return found


@dataclass
class Caller:
    """Who asks: stands for pyfuse3.RequestContext."""

    uid: int = os.getuid()
    gid: int = os.getgid()
    pid: int = 1
    umask: int = 0o022


@dataclass
class Fields:
    """Which attributes to set: stands for pyfuse3.SetattrFields."""

    update_size: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_atime: bool = False
    update_mtime: bool = False


@dataclass
class Token:
    """Stands for the kernel's buffer of one READDIRPLUS: room for so many entries."""

    room: int
    entries: list[tuple[bytes, EntryAttributes, int]] = field(default_factory=list)


ME: Any = Caller()


class Mount:
    """The handlers of one mount, and what they told the kernel."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.plane = FakePlane()
        self.ledger = make_ledger()
        self.table: ImageTable = make_table(
            path, self.plane, cache=CacheMode.WRITEBACK, read_only=read_only, ledger=self.ledger
        )
        self.invalidated: list[int] = []
        self.made = 0
        self.ops: Any = self.successor()

    def successor(self) -> Operations:
        """The handlers of a restarted server on the same table."""
        return Operations(
            table=self.table,
            files={b"info.json": self.info, b"metrics": self.metrics},
            ledger=self.ledger,
            invalidate_attributes=self.invalidated.append,
        )

    async def info(self) -> bytes:
        self.made += 1
        return b'{"made": %d}' % self.made

    async def metrics(self) -> bytes:
        return b"aiofs_made %d" % self.made

    async def ino(self, name: bytes, parent: int = ROOT_INODE) -> int:
        entry = await self.ops.lookup(parent, name, ME)
        return int(entry.st_ino)

    async def names(self, handle: int, room: int = 100, ops: Any = None) -> list[bytes]:
        """All names of an open directory, read `room` entries at a time."""
        found: list[bytes] = []
        position = 0
        while True:
            token = Token(room)
            await (ops or self.ops).readdir(handle, position, token)
            if not token.entries:
                return found
            found += [name for name, _, _ in token.entries]
            position = token.entries[-1][2]

    def close(self) -> None:
        trio.run(self.table.close_all)
        self.table.source.close()


async def refused(call: Awaitable[Any]) -> int:
    """The errno that a handler answers."""
    with pytest.raises(FUSEError) as caught:
        await call
    return int(caught.value.errno)
