"""The open images: how they are opened, locked, registered with the data plane, and closed again.

Life of an image: the first open of a node opens the backing, locks it, finds how O_DIRECT works and
registers it; further opens share it; the last release unregisters it (which waits for what is in flight)
and closes it. All of this, and every change of size, runs under a lock of that node, so that an open that
comes during the last release finds the image either open or closed. Everything else about names and
attributes is in nodes.py and fs.py.

What outlives a close: the errno of an fsync that failed (for the life of the mount), the stamp that tells
whether the kernel's cached pages are still right, and the counters.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from . import directio, locks
from .choice import Drivers
from .config import CacheMode
from .dataplane import ImageCounters, ImageSpec, system
from .dataplane.system import FileStat
from .directio import DirectRefused, DirectUnsupported, check_direct
from .nodes import Node, NodeTable
from .pagecache import Stamps
from .select import Decision, Direct
from .source import Kind, Source
from .tallies import Tallies

__all__ = ["DirectUnsupported", "ImageTable", "OpenImage", "Source", "check_direct"]

log = logging.getLogger(__name__)

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EBUSY)
"""What opening for writing may say where opening for reading still works."""


class Plane(Protocol):
    """What the image table needs of DataPlane."""

    async def register(self, node: int, spec: ImageSpec) -> int: ...

    async def unregister(self, node: int) -> int: ...

    async def truncate(self, node: int, size: int) -> None: ...

    async def open_driver(self, driver: str) -> None: ...


class ImageLocked(OSError):
    """Another process uses the image in a way that excludes ours."""

    def __init__(self, name: str, holders: list[locks.Holder]) -> None:
        who = ", ".join(map(str, holders)) or "another process (root can see which)"
        super().__init__(errno.EBUSY, f"{name} is locked by {who}")


@dataclass
class OpenImage:
    """An image that is registered with the data plane."""

    node: Node
    name: str
    """For messages."""
    fd: int
    cache: CacheMode
    direct: Direct
    block_device: bool
    write_error: int
    """0 when `fd` can be written; otherwise the errno of opening it so."""
    decision: Decision = field(default_factory=lambda: Decision("", "not decided yet"))
    tail_fd: int = -1
    block_size: int = 1
    """Alignment of O_DIRECT in bytes; 1 when buffered."""
    slot: int = -1
    """Its place in the data plane's table."""
    counters: ImageCounters = field(default_factory=ImageCounters)
    opens: int = 0
    write_locked: bool = False

    def spec(self, sticky_error: int) -> ImageSpec:
        """How the data plane is to serve it."""
        return ImageSpec(
            fd=self.fd,
            tail_fd=self.tail_fd,
            driver=self.decision.driver,
            direct=self.cache.direct,
            block_size=self.block_size,
            dsync=self.cache.dsync,
            no_fsync=not self.cache.honours_fsync,
            block_device=self.block_device,
            writes_by_threads=self.decision.writes_by_threads,
            sticky_error=sticky_error,
            counters=self.counters,
        )

    def close(self) -> None:
        """Give up locks and descriptors."""
        with suppress(OSError, locks.LocksUnsupported):
            locks.unlock(self.fd)
        os.close(self.fd)
        if self.tail_fd >= 0:
            os.close(self.tail_fd)


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
    """errno of an fsync that failed before this registration, or 0."""
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
        said: frozenset[str] = frozenset(),
    ) -> None:
        """`said`: what the mount has warned of, so that no image says it again."""
        self.source = source
        self.nodes = NodeTable(source)
        self.read_only = read_only
        self._plane = plane
        self._drivers = drivers
        self._cache = cache
        self._images: dict[int, OpenImage] = {}
        self._turns: dict[int, _Turn] = {}
        self._sticky: dict[int, tuple[int, int, str]] = {}
        """By node: its generation, the errno of an fsync that failed, and the name it had at its close."""
        self._stamps = Stamps()
        self._tallies = Tallies()
        self._said = set(said)
        self._filesystem = source.filesystem()

    # -- opening and closing --

    async def open(self, node: Node, flags: int) -> bool:
        """Open a node as open(2) with `flags` asked; True when the kernel's cached pages are still right.

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
                return self._stamps.unchanged(node.ino, system.stat(image.fd))
            except BaseException:
                await self._drop(image)
                raise

    async def release(self, ino: int) -> None:
        """Take back one open; the last one closes the image."""
        async with self._turn(ino):
            image = self._images.get(ino)
            if image is not None:
                await self._drop(image)

    async def _start(self, node: Node, write: bool) -> OpenImage:
        """Open, lock and register the backing of a node."""
        image = await self._open_backing(node, write)
        try:
            await self._lock(image.fd, image.name, write)
            image.write_locked = write
            image.decision = await self._drivers.choose(
                self._plane, image.name, image.fd, image.direct, self.read_only
            )
            sticky = self._sticky_error(node)
            image.counters = self._tallies.take(node)
            image.slot = await self._plane.register(node.ino, image.spec(sticky))
        except BaseException:
            self._close(image)
            raise
        self._images[node.ino] = image
        return image

    def _close(self, image: OpenImage) -> None:
        """Close what is not registered (any more); its counters stay."""
        self._tallies.give_back(image.node, image.name, self.nodes.path(image.node), image.counters)
        image.close()

    async def _drop(self, image: OpenImage) -> None:
        image.opens -= 1
        if image.opens > 0:
            return
        try:
            error = await self._plane.unregister(image.node.ino)
        except OSError as refused:  # it is not registered: nothing of it is in flight either
            log.error("%s: %s", image.name, refused)
            error = 0
        if error:
            self._sticky[image.node.ino] = (image.node.generation, error, image.name)
        # At the end `close_all` may have taken it meanwhile: then it is closed there.
        if self._images.get(image.node.ino) is image:
            del self._images[image.node.ino]
            self._close(image)

    async def _prepare_write(self, image: OpenImage) -> None:
        """An open for writing joins those there are."""
        if image.write_error:
            raise OSError(image.write_error, os.strerror(image.write_error), image.name)
        if not image.write_locked:
            await self._lock(image.fd, image.name, write=True)
            image.write_locked = True

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

    # -- the backing --

    async def _open_backing(self, node: Node, write: bool) -> OpenImage:
        """Open an image in the cache mode that was asked for, or in the best one that works."""
        cache = self._cache or CacheMode.NONE
        if not cache.direct:
            return await self._open_as(node, write, cache, f"buffered, as --cache {cache} asks")
        try:
            return await self._open_as(node, write, cache)
        except DirectRefused as refused:
            if self._cache is not None:
                raise DirectUnsupported(self.nodes.display(node), str(refused)) from refused
            # The mount has warned already; this is for the images that differ from the others.
            self._say_once(
                logging.INFO,
                str(refused),
                f"{self.nodes.display(node)}: no O_DIRECT, using --cache writeback",
            )
            why = str(refused)
        return await self._open_as(node, write, CacheMode.WRITEBACK, why)

    async def _open_as(self, node: Node, write: bool, cache: CacheMode, no_direct: str = "") -> OpenImage:
        """`no_direct`: why it is opened buffered."""
        flags = (os.O_DIRECT if cache.direct else 0) | (os.O_DSYNC if cache.dsync else 0)
        try:
            fd, write_error = self._open_fd(node, write, flags)
        except OSError as error:
            if cache.direct and error.errno == errno.EINVAL:
                raise DirectRefused(f"{self._filesystem} does not support it") from error
            raise
        image = OpenImage(
            node=node,
            name=self.nodes.display(node),
            fd=fd,
            cache=cache,
            direct=Direct(False, "opened without it", no_direct),
            block_device=self.source.kind is Kind.DEVICE,
            write_error=write_error,
        )
        if cache.direct:
            try:
                aligned = await self._alignment(fd)
                image.block_size = aligned.size
                image.direct = Direct(True, aligned.looked_at, f"in blocks of {aligned.size} bytes")
                # The tail of an image whose size is no whole block is written through the page cache.
                access = os.O_RDONLY if write_error else os.O_RDWR
                image.tail_fd = self.nodes.open(node, access | os.O_DSYNC)
            except BaseException:
                image.close()
                raise
        return image

    async def _alignment(self, fd: int) -> directio.Alignment:
        known = directio.known_alignment(fd, self._filesystem)
        if known is not None:
            return known
        return await trio.to_thread.run_sync(directio.alignment, fd, self._filesystem)

    def _open_fd(self, node: Node, write: bool, flags: int) -> tuple[int, int]:
        """The image's descriptor, and 0 or the errno that opening it for writing gave.

        Opened for writing whenever that is possible: later opens for writing share it.
        """
        write_error = errno.EROFS
        if not self.read_only:
            # Block devices: fails with EBUSY when it is mounted or otherwise claimed (open(2)).
            claim = os.O_EXCL if self.source.kind is Kind.DEVICE else 0
            try:
                return self.nodes.open(node, os.O_RDWR | flags | claim), 0
            except OSError as error:
                if error.errno == errno.EBUSY:
                    log.warning("%s is in use (mounted?): not open for writing", self.nodes.display(node))
                if write or error.errno not in _NOT_WRITABLE:
                    raise
                write_error = error.errno or errno.EACCES
        return self.nodes.open(node, os.O_RDONLY | flags), write_error

    async def _lock(self, fd: int, name: str, write: bool) -> None:
        """Take the writer's or the reader's locks of an image. ImageLocked names who holds it."""
        try:
            if write:
                locks.lock_for_writing(fd)
            else:
                locks.lock_for_reading(fd)
        except locks.LocksUnsupported:
            what = f"{self._filesystem} has no locks: nothing keeps two writers of an image apart"
            self._say_once(logging.WARNING, what)
        except locks.LockConflict as conflict:
            holders = await trio.to_thread.run_sync(locks.locked_by, fd)
            error = ImageLocked(name, holders)
            log.warning("%s", error.strerror)
            raise error from conflict

    def _say_once(self, level: int, what: str, where: str = "") -> None:
        """Log something that is as true of the mount's other images; `where` it showed first."""
        if what not in self._said:
            self._said.add(what)
            log.log(level, "%s", f"{where} ({what})" if where else what)

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
                await self._lock(fd, self.nodes.display(node), write=True)
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
                sticky_error=self._sticky_error(image.node),
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

    def _sticky_error(self, node: Node) -> int:
        generation, error, _ = self._sticky.get(node.ino, (0, 0, ""))
        return error if generation == node.generation else 0

    async def fdatasync(self, ino: int) -> None:
        """fdatasync(2) of an open image, beside the data plane. EBADF when it is not open."""
        image = self._images.get(ino)
        if image is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        await trio.to_thread.run_sync(os.fdatasync, image.fd)

    async def close_all(self) -> list[OSError]:
        """Sync, unlock and close every image; returns what failed, the image's name in `filename`.

        For the end, when the data plane's loop has returned: images that are still open stay registered
        with nobody. `unsafe` images are synced as well: nothing is gained by losing them now. An image whose
        fsync failed earlier has failed: a sync that succeeds after that says nothing of what was lost.
        """
        failed = {name: error for _, error, name in self._sticky.values()}
        while self._images:
            # Out of the table first: the last release of it may still be on its way, and would close it too.
            _, image = self._images.popitem()
            try:
                await trio.to_thread.run_sync(os.fdatasync, image.fd)
            except OSError as error:
                failed[image.name] = error.errno or errno.EIO
                log.error("%s: cannot write to disk: %s", image.name, error.strerror)
            if image.counters.sticky_error:
                failed[image.name] = image.counters.sticky_error
            image.close()
        return [OSError(error, os.strerror(error), name) for name, error in failed.items()]
