"""How an image is opened: in the cache mode that was asked for or the best that works, and locked.

Knows descriptors, names and locks; what is open, and for whom, is in images.py.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from . import directio, locks
from .config import CacheMode
from .dataplane import ImageCounters, ImageSpec
from .directio import DirectRefused, DirectUnsupported
from .nodes import Node, NodeTable
from .select import Decision, Direct
from .source import Kind

log = logging.getLogger(__name__)

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EBUSY)
"""What opening for writing may say where opening for reading still works."""
LockedBy = Callable[[int], Awaitable[list[locks.Holder]]]
"""Finds who else has locks on the file of a descriptor, as far as that can be seen."""
FENCE_LOOK_S = 0.002
DYING_S = 10.0
"""How long after a death an image may still be locked, or claimed, by the server that died."""
CLAIM_S = 60.0
"""How long a block device may stay claimed: by the dead server, or by somebody who was quicker."""
FENCE_WARN_S = 5.0
"""After so long, and then as often, a word about what is being waited for."""


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
    handle: int = 0
    """What all its opens are answered with, until it is closed; no other image ever has the same."""
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
            wide_driver=self.decision.wide_driver,
            handle=self.handle,
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


class Opener:
    """Opens and locks the images of one mount."""

    def __init__(
        self,
        nodes: NodeTable,
        cache: CacheMode | None,
        read_only: bool,
        said: frozenset[str],
        locked_by: LockedBy,
    ) -> None:
        """`said`: what the mount has warned of, so that no image says it again."""
        self._nodes = nodes
        self._source = nodes.source
        self._cache = cache
        self._read_only = read_only
        self._said = set(said)
        self._locked_by = locked_by
        self._filesystem = nodes.source.filesystem()
        self._patient_until = -math.inf

    def follow_a_server(self) -> None:
        """One has died just now, and may have locked an image that it had told nobody of.

        Its lock goes when the last of its I/O has ended; until then who opens that image waits.
        """
        self._patient_until = trio.current_time() + DYING_S

    async def open(self, node: Node, write: bool) -> OpenImage:
        """Open an image in the cache mode that was asked for, or in the best one that works."""
        return await self._open_until(self._patient_until, node, write)

    async def _open_until(self, patience: float, node: Node, write: bool) -> OpenImage:
        """A block device that is claimed is waited for until then."""
        while True:
            try:
                return await self._open_once(node, write)
            except OSError as error:
                if error.errno != errno.EBUSY or trio.current_time() > patience:
                    raise
            await trio.sleep(FENCE_LOOK_S)

    async def _open_once(self, node: Node, write: bool) -> OpenImage:
        cache = self._cache or CacheMode.NONE
        if not cache.direct:
            return await self._open_as(node, write, cache, f"buffered, as --cache {cache} asks")
        try:
            return await self._open_as(node, write, cache)
        except DirectRefused as refused:
            if self._cache is not None:
                raise DirectUnsupported(self._nodes.display(node), str(refused)) from refused
            # The mount has warned already; this is for the images that differ from the others.
            self._say_once(
                logging.INFO,
                str(refused),
                f"{self._nodes.display(node)}: no O_DIRECT, using --cache writeback",
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
            name=self._nodes.display(node),
            fd=fd,
            cache=cache,
            direct=Direct(False, "opened without it", no_direct),
            block_device=self._source.kind is Kind.DEVICE,
            write_error=write_error,
        )
        if cache.direct:
            try:
                aligned = await self._alignment(fd)
                image.block_size = aligned.size
                image.direct = Direct(True, aligned.looked_at, f"in blocks of {aligned.size} bytes")
                # The tail of an image whose size is no whole block is written through the page cache.
                access = os.O_RDONLY if write_error else os.O_RDWR
                image.tail_fd = self._nodes.open(node, access | os.O_DSYNC)
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
        if not self._read_only:
            # Block devices: fails with EBUSY when it is mounted or otherwise claimed (open(2)).
            claim = os.O_EXCL if self._source.kind is Kind.DEVICE else 0
            try:
                return self._nodes.open(node, os.O_RDWR | flags | claim), 0
            except OSError as error:
                if error.errno == errno.EBUSY:
                    what = f"{self._nodes.display(node)} is in use (mounted?): not open for writing"
                    self._say_once(logging.WARNING, what)
                if write or error.errno not in _NOT_WRITABLE:
                    raise
                write_error = error.errno or errno.EACCES
        return self._nodes.open(node, os.O_RDONLY | flags), write_error

    async def lock(self, fd: int, name: str, write: bool) -> None:
        """Take the writer's or the reader's locks of an image. ImageLocked names who holds it."""
        take = locks.lock_for_writing if write else locks.lock_for_reading
        while True:
            try:
                return take(fd)
            except locks.LocksUnsupported:
                what = f"{self._filesystem} has no locks: nothing keeps two writers of an image apart"
                return self._say_once(logging.WARNING, what)
            except locks.LockConflict as conflict:
                if trio.current_time() > self._patient_until:
                    holders = await self._locked_by(fd)
                    error = ImageLocked(name, holders)
                    log.warning("%s", error.strerror)
                    raise error from conflict
            await trio.sleep(FENCE_LOOK_S)

    def _say_once(self, level: int, what: str, where: str = "") -> None:
        """Log something that is as true of the mount's other images; `where` it showed first."""
        if what not in self._said:
            self._said.add(what)
            log.log(level, "%s", f"{where} ({what})" if where else what)

    async def open_again(self, node: Node, write: bool) -> OpenImage:
        """As `open`; a block device that the dead server's last I/O still claims is waited for."""
        return await self._open_until(trio.current_time() + CLAIM_S, node, write)

    async def fence(self, image: OpenImage) -> None:
        """Wait until nothing of the dead server is in flight to the image.

        Its lock ends with its last reference to the open file: with the process, or with the last I/O that
        the kernel still does for it, of which an old write could land after a newer one.
        """
        patience = trio.current_time() + FENCE_WARN_S
        while True:
            try:
                locks.lock_for_writing(image.fd)
                return
            except locks.LocksUnsupported:
                return  # nothing to wait for, as `_lock` has said
            except locks.LockConflict:
                pass
            if trio.current_time() > patience:
                patience += FENCE_WARN_S
                holders = await self._locked_by(image.fd)
                who = ", ".join(map(str, holders)) or "I/O of the server before"
                log.warning("%s is still locked, waiting: %s", image.name, who)
            await trio.sleep(FENCE_LOOK_S)
