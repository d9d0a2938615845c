"""The open images: how they are opened, locked, registered with the data plane, and closed again.

Life of an image: the first open of a node opens the backing, locks it, finds how O_DIRECT works and
registers it; further opens share it; the last release unregisters it (which waits for what is in flight)
and closes it. All of this, and every change of size, runs under a lock of that node, so that an open that
comes during the last release finds the image either open or closed. Everything else about names and
attributes is in nodes.py and fs.py.

What outlives a close: the stamp that tells whether the kernel's cached pages are still right, and the
counters. What outlives the server: which images are open and how often, the counters, and the errno of an
fsync that failed, which every fsync gets until the image has been closed by all who have it open.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from .backing import LockedBy, Opener, OpenImage
from .changes import Changes
from .choice import Drivers
from .config import CacheMode
from .dataplane import ImageCounters, ImageSpec, system
from .dataplane.system import FileStat
from .ledger import Kind as LedgerKind
from .ledger import Ledger, LedgerUnusable
from .nodes import Node, NodeTable
from .pagecache import Stamps
from .source import Kind, Source
from .tallies import Tallies

log = logging.getLogger(__name__)


_MAX_ERRNO = 4095
"""The kernel's MAX_ERRNO."""


class Plane(Protocol):
    """What the image table needs of DataPlane."""

    async def register(self, node: int, spec: ImageSpec) -> int: ...

    async def unregister(self, node: int) -> int: ...

    async def truncate(self, node: int, size: int) -> None: ...

    async def open_driver(self, driver: str) -> None: ...


class Link(Protocol):
    """What the image table needs of the keeper."""

    orphans: Mapping[int, int]
    """Descriptors (O_PATH) of open images without a name, by node id, from the server before this one."""

    def hold(self, ino: int, fd: int) -> None: ...

    def drop(self, ino: int) -> None: ...


_FAILURE = struct.Struct("<I")  # of the ledger: errno; then the image's name
_RECORD = struct.Struct("<QIQ?")  # of the ledger: generation, slot of the counters, handle, write-locked


@dataclass
class _Turn:
    """The lock of one node, kept while somebody uses or waits for it."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0


@dataclass(frozen=True)
class ImageInfo:
    """One open image, for the info file."""

    name: str
    path: str
    """Its name in the mount."""
    node: int
    """Its inode number, which stays when it is renamed."""
    driver: str
    driver_reason: str
    tests: list[dict[str, Any]]
    """What led to the driver: the fields of each select.Test."""
    cache: CacheMode
    block_size: int
    slot: int
    opens: int
    writable: bool
    size: int
    sticky_error: int
    """errno of an fsync that failed since the image was opened, or 0."""
    counters: dict[str, Any]
    """Since the mount began."""


class ImageTable:
    """All images of one mount that are open."""

    def __init__(
        self,
        *,
        source: Source,
        plane: Plane,
        drivers: Drivers,
        cache: CacheMode | None,
        read_only: bool,
        ledger: Ledger,
        locked_by: LockedBy,
        said: frozenset[str] = frozenset(),
        link: Link | None = None,
    ) -> None:
        """`said`: what the mount has warned of, so that no image says it again. `link`: None: no keeper."""
        self.source = source
        self._link = link
        self.nodes = NodeTable(source, ledger, link.orphans if link is not None else {})
        self.read_only = read_only
        self._plane = plane
        self._drivers = drivers
        self._images: dict[int, OpenImage] = {}
        self._by_handle: dict[int, int] = {}
        self._last_handle = 0
        self._turns: dict[int, _Turn] = {}
        self._stamps = Stamps()
        self._ledger = ledger
        self._failed = dict(ledger.restored(LedgerKind.FAILURE, _unpack_failure))
        """By name: the errno of an fsync that failed, of images that are closed."""
        self._left = dict(ledger.restored(LedgerKind.IMAGE, self._unpack))
        """Open images of a server before this one, until `restore`."""
        self._tallies = Tallies(ledger, in_use=(slot for _, slot, _, _ in self._left.values()))
        self._opener = Opener(self.nodes, cache, read_only, said, locked_by)

    def _unpack(self, ino: int, record: bytes) -> tuple[int, tuple[int, int, int, bool]]:
        generation, slot, handle, write = _RECORD.unpack(record)
        self._ledger.counters_place(slot)  # there is one; not looked at before the server before has ended
        return ino, (generation, slot, handle, write)

    # -- opening and closing --

    async def open(self, node: Node, flags: int) -> tuple[int, bool]:
        """Open a node as open(2) with `flags` asked: its handle, and if the kernel's cached pages are right.

        OSError: ImageLocked, DirectUnsupported, EROFS, ESTALE, and whatever the backing says.
        """
        write = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if write and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        async with self._turn(node.ino):
            image = self._images.get(node.ino)
            if image is None:
                image = await self._start(node, write)
            elif write:
                await self._prepare_write(image)
            image.opens += 1
            try:
                # A block device keeps its size, as open(2) of the device itself with O_TRUNC would.
                if flags & os.O_TRUNC and not image.block_device:
                    await self._plane.truncate(node.ino, 0)
                return image.handle, self._stamps.unchanged(node.ino, system.stat(image.fd))
            except BaseException:
                await self._drop(image)
                raise

    async def release(self, handle: int) -> None:
        """Take back one open; the last one closes the image.

        Of a handle that is not known, nothing: a server before this one closed its image, and died before the
        kernel heard of it. The image may be open again, with another handle.
        """
        ino = self._by_handle.get(handle)
        if ino is None:
            return
        async with self._turn(ino):
            image = self._images.get(ino)
            if image is not None and image.handle == handle:
                await self._drop(image)

    async def _start(self, node: Node, write: bool) -> OpenImage:
        """Open, lock and register the backing of a node."""
        image = await self._opener.open(node, write)
        await self._lock_and_choose(image, write, self._opener.lock(image.fd, image.name, write))
        # The clock goes on from server to server, so what they hand out differs.
        self._last_handle = image.handle = max(self._last_handle + 1, time.monotonic_ns())
        image.counters = self._tallies.take(node)
        image.counters.memory.opens = 0
        await self._register(image)
        return image

    async def _lock_and_choose(self, image: OpenImage, write: bool, lock: Awaitable[None]) -> None:
        """Wait for the `lock`, and choose the driver of an image just opened; closed when either fails."""
        try:
            await lock
            image.write_locked = write
            image.decision = await self._drivers.choose(
                self._plane, image.name, image.fd, image.direct, self.read_only
            )
        except BaseException:
            image.close()
            raise

    async def _register(self, image: OpenImage) -> None:
        """Have the data plane serve it. Its counters' errno of a failed fsync, and opens, go on to count."""
        self._keep(image)
        try:
            sticky = -image.counters.memory.sticky_error
            image.slot = await self._plane.register(image.node.ino, image.spec(sticky))
        except BaseException:
            self._close(image)
            raise
        self._images[image.node.ino] = image
        self._by_handle[image.handle] = image.node.ino

    def _keep(self, image: OpenImage) -> None:
        record = _RECORD.pack(image.node.generation, image.counters.slot, image.handle, image.write_locked)
        self._ledger.put(LedgerKind.IMAGE, image.node.ino, record)

    def _close(self, image: OpenImage) -> None:
        """Close what is not registered (any more); its counters stay."""
        try:
            self._forget_open(image)
        finally:
            image.close()  # whatever happens: its lock would shut out the next open

    def _forget_open(self, image: OpenImage) -> None:
        """All that is kept of an open image, but for its descriptors."""
        error = image.counters.sticky_error
        if error:
            self._failed[image.name] = error
            self._ledger.put(
                LedgerKind.FAILURE, image.node.ino, _FAILURE.pack(error) + os.fsencode(image.name)
            )
        image.counters.memory.sticky_error = 0
        self._by_handle.pop(image.handle, None)
        self._ledger.drop(LedgerKind.IMAGE, image.node.ino)
        orphan = self.nodes.orphans.pop(image.node.ino, None)
        if orphan is not None:
            os.close(orphan)
            if self._link is not None:
                self._link.drop(image.node.ino)
        self._tallies.give_back(image.node, image.name, self.nodes.path(image.node), image.counters)

    async def _drop(self, image: OpenImage) -> None:
        image.opens -= 1
        if image.opens > 0:
            return
        try:
            await self._plane.unregister(image.node.ino)
        except OSError as refused:  # it is not registered: nothing of it is in flight either
            log.error("%s: %s", image.name, refused)
        # At the end `close_all` may have taken it meanwhile: then it is closed there.
        if self._images.get(image.node.ino) is image:
            del self._images[image.node.ino]
            self._close(image)

    async def _prepare_write(self, image: OpenImage) -> None:
        """An open for writing joins those there are."""
        if image.write_error:
            raise OSError(image.write_error, os.strerror(image.write_error), image.name)
        if not image.write_locked:
            await self._opener.lock(image.fd, image.name, write=True)
            image.write_locked = True
            self._keep(image)

    def removed(self, parent: int, name: bytes, ino: int) -> None:
        """The name was removed; it belonged to `ino`. An open image without a name is held by the keeper."""
        self.nodes.removed(parent, name, ino)
        image = self._images.get(ino)
        if image is None or image.node.names() or self._link is None or ino in self.nodes.orphans:
            return
        self.nodes.orphans[ino] = os.open(f"/proc/self/fd/{image.fd}", os.O_PATH)
        self._link.hold(ino, self.nodes.orphans[ino])

    # -- after the death of a server --

    def follow_a_server(self) -> None:
        """A server has died just now, or handed over: what it leaves locked for a moment is waited for."""
        self._opener.follow_a_server()

    async def restore(self) -> None:
        """Open and register what was open when the server before this one died, its own I/O having ended.

        An image that cannot be opened any more is logged; who has it open gets errors. LedgerUnusable.
        """
        left, self._left = self._left, {}
        for old, new, ino in Changes(self._ledger).renames() if left else ():
            with suppress(OSError):  # what cannot be looked at is told when it is opened
                self.nodes.catch_up(old, new, ino)
        counted = {ino: self._tallies.in_slot(slot) for ino, (_, slot, _, _) in left.items()}
        for ino, counters in counted.items():  # of all, before anything is done
            if not 0 <= counters.sticky_error <= _MAX_ERRNO:
                about = f"fsync of node {ino} failed with errno {counters.sticky_error}"
                raise LedgerUnusable(f"the memory of the mount is damaged: {about}")
        for ino, (generation, _, handle, write) in left.items():
            counters = counted[ino]
            node = self.nodes.find(ino)
            if node is None or node.generation != generation or not counters.memory.opens:
                # Opened, or closed, by the one before, which did not get to tell the kernel.
                self._ledger.drop(LedgerKind.IMAGE, ino)
                continue
            try:
                await self._restore(node, handle, write, counters)
            except OSError as error:
                log.error(
                    "%s was open and cannot be opened again: %s; who uses it gets errors",
                    self.nodes.display(node),
                    error.strerror,
                )

    async def _restore(self, node: Node, handle: int, write: bool, counters: ImageCounters) -> None:
        image = await self._opener.open_again(node, write)
        opener = self._opener
        lock = opener.fence(image) if write else opener.lock(image.fd, image.name, write)
        await self._lock_and_choose(image, write, lock)
        image.counters = counters
        image.opens = counters.memory.opens
        image.handle = handle
        await self._register(image)

    @asynccontextmanager
    async def _turn(self, ino: int) -> AsyncIterator[None]:
        """The only task that opens, closes or resizes this image."""
        turn = self._turns.setdefault(ino, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[ino]

    # -- size, attributes --

    async def truncate(self, node: Node, size: int) -> None:
        """Set the size of an image in bytes; a registered one after the requests before this."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        async with self._turn(node.ino):
            if self.source.kind is Kind.DEVICE:
                if size != self.nodes.stat(node).size:
                    raise OSError(errno.EINVAL, "a block device cannot change its size")
                return
            image = self._images.get(node.ino)
            if image is not None:
                await self._prepare_write(image)
                await self._plane.truncate(node.ino, size)
                return
            fd = self.nodes.open(node, os.O_RDWR)
            try:
                await self._opener.lock(fd, self.nodes.display(node), write=True)
                await trio.to_thread.run_sync(os.ftruncate, fd, size)
            finally:
                os.close(fd)

    def stat(self, node: Node) -> FileStat:
        """The attributes of a node: of the open image, else of the file its names lead to."""
        image = self._images.get(node.ino)
        if image is None:
            return self.nodes.stat(node)
        return self.source.sized(system.stat(image.fd))

    @contextmanager
    def descriptor(self, node: Node) -> Iterator[int]:
        """Some descriptor of the node (O_PATH perhaps), for changes of its attributes."""
        image = self._images.get(node.ino)
        if image is not None:
            yield image.fd
        elif node.is_dir:
            with self.nodes.directory(node.ino) as fd:
                yield fd
        else:
            fd = self.nodes.open(node, os.O_PATH)
            try:
                yield fd
            finally:
                os.close(fd)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave back `count` lookups of a node."""
        if self.nodes.forget(ino, count):
            self._stamps.forget(ino)

    # -- what is known of them --

    def is_open(self, ino: int) -> bool:
        """The image is registered with the data plane."""
        return ino in self._images

    def info(self) -> list[ImageInfo]:
        """The open images."""
        return [
            ImageInfo(
                name=image.name,
                path=self.nodes.path(image.node),
                node=image.node.ino,
                driver=image.decision.driver,
                driver_reason=image.decision.reason,
                tests=[vars(test) for test in image.decision.tests],
                cache=image.cache,
                block_size=image.block_size,
                slot=image.slot,
                opens=image.opens,
                writable=image.write_locked,
                size=self.stat(image.node).size,
                sticky_error=-image.counters.memory.sticky_error,
                counters=image.counters.read(),
            )
            for image in self._images.values()
        ]

    def closed(self) -> list[dict[str, Any]]:
        """Images that were open earlier: names, inode number, counters; for the info file."""
        told = []
        for tally in self._tallies:
            node = self.nodes.find(tally.ino)
            name, path = tally.name, tally.path
            if node is not None and node.generation == tally.generation:
                name, path = self.nodes.display(node), self.nodes.path(node)
            counters = tally.counters.read()
            told.append({"name": name, "path": path, "node": tally.ino, "counters": counters})
        return told

    async def fdatasync(self, handle: int) -> None:
        """fdatasync(2) of an open image, beside the data plane. EBADF when it is not open."""
        image = self._images.get(self._by_handle.get(handle, 0))
        if image is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        await trio.to_thread.run_sync(os.fdatasync, image.fd)

    async def close_all(self) -> list[OSError]:
        """Sync, unlock and close every image; returns what failed, the image's name in `filename`.

        For the end, when the data plane's loop has returned: images that are still open stay registered
        with nobody. `unsafe` images are synced as well: nothing is gained by losing them now. An image whose
        fsync failed earlier has failed: a sync that succeeds after that says nothing of what was lost.
        """
        failed = dict(self._failed)
        while self._images:
            # Out of the table first: the last release of it may still be on its way, and would close it too.
            _, image = self._images.popitem()
            try:
                await trio.to_thread.run_sync(os.fdatasync, image.fd)
            except OSError as error:
                image.counters.memory.sticky_error = -(
                    error.errno or errno.EIO
                )  # for a server after this one
                log.error("%s: cannot write to disk: %s", image.name, error.strerror)
            if image.counters.sticky_error:
                failed[image.name] = image.counters.sticky_error
            image.close()
        return [OSError(error, os.strerror(error), name) for name, error in failed.items()]


def _unpack_failure(_: int, record: bytes) -> tuple[str, int]:
    """Name and errno. ValueError, struct.error: it is no such record."""
    (error,) = _FAILURE.unpack_from(record)
    if not 0 < error <= _MAX_ERRNO:
        raise ValueError(f"there is no errno {error}")
    return os.fsdecode(record[_FAILURE.size :]), error
