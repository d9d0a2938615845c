"""A fake kernel: the FUSE protocol spoken by a test to a real data plane over a socketpair.

The data plane cannot tell it from /dev/fuse, but the test decides what is sent, in which order, and
sees every reply. `FakeKernel.control_plane` is the other side: the socket that pyfuse3 would have.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import outcome
import trio
import trio.testing

from aiofs.dataplane import DataPlane, ImageCounters, ImageSpec, add_fault, fault_counts, set_faults
from aiofs.dataplane.binding import ffi, lib
from aiofs.faults import MAX_NUMBER, OPERATIONS, Fault, Kind, Plan

T = TypeVar("T")

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, FSYNC, INIT, INTERRUPT, CREATE, BATCH_FORGET = (
    1, 2, 3, 14, 15, 16, 20, 26, 36, 35, 42,
)  # fmt: skip
RELEASE, FALLOCATE, LSEEK = 18, 43, 46

HEADER = struct.Struct("<IIQQIIIHH")  # fuse_in_header
OUT_HEADER = struct.Struct("<IiQ")  # fuse_out_header
READ_IN = struct.Struct("<QQIIQII")
WRITE_IN = struct.Struct("<QQIIQII")
FSYNC_IN = struct.Struct("<QII")
FALLOCATE_IN = struct.Struct("<QQQII")
LSEEK_IN = struct.Struct("<QQII")

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, NO_HIDE_STALE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = (
    1, 2, 4, 8, 16, 32, 64,
)  # fmt: skip
PUNCH = PUNCH_HOLE | KEEP_SIZE

FAR = 1 << 30
"""Where `together` reads, bytes: behind the end of every image."""

PATIENCE_S = 20.0
"""How long a test waits for something that has to come; only a failing test waits that long."""


class FakeKernel:
    """A data plane with a test at each of its ends."""

    def __init__(
        self,
        *,
        queue_depth: int = 32,
        merge: bool = True,
        look_us: int = 0,
        replies: str = "adapt",
        predecessor_init: bytes = b"",
    ) -> None:
        self.fuse, fuse_end = _pair()
        self.control_plane, forward_end = _pair()
        self.fuse_end = fuse_end
        """The end that the data plane has."""
        self._ends = (fuse_end, forward_end)
        self.progress = bytearray(16)
        """Two words: asked and answered."""
        self.plane = DataPlane(
            fuse_end.fileno(),
            forward_end.fileno(),
            queue_depth=queue_depth,
            merge=merge,
            max_images=64,
            look_us=look_us,
            replies=replies,
            progress=(self.progress, 0),
            predecessor_init=predecessor_init,
        )
        self.queue_depth = queue_depth
        self.unique = 2
        self._replies: dict[int, tuple[int, bytes]] = {}
        self._registered: dict[int, list[int]] = {}
        self._counters: dict[int, ImageCounters] = {}
        self.ended = False
        set_faults(Plan())
        self.plane.start(on_exit=lambda: None)

    def close(self) -> None:
        """End the loop and free everything. Without faults, so that what is in work can finish."""
        set_faults(Plan())
        release()
        self.end()
        self.plane.close()
        for end in (self.fuse, self.control_plane, *self._ends):
            end.close()

    def end(self) -> None:
        """End the loop with all images registered, and close them, as a server does whose mount is gone."""
        self.plane.stop()
        self.plane.join()
        for fds in self._registered.values():
            for fd in fds:
                os.close(fd)
        self._registered.clear()

    # -- commands, as the control plane gives them --

    def command(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run one of the plane's coroutines to its end."""

        async def main() -> outcome.Outcome[T]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.plane.answers)
                with trio.fail_after(PATIENCE_S):
                    result = await outcome.acapture(call)
                nursery.cancel_scope.cancel()
            return result

        result = trio.run(main)
        return result.unwrap()

    def wait_for_submits(self, count: int) -> None:
        """Return when the fault driver has been given so many ios in all."""
        deadline = time.monotonic() + PATIENCE_S
        while len(submitted()) < count:
            assert time.monotonic() < deadline, f"the driver was given {submitted()}"
            time.sleep(0.001)

    def register(self, path: Path, **how: Any) -> int:
        """Serve `path` as `registering` does; returns its slot."""
        return self.command(lambda: self.registering(path, **how))

    async def registering(
        self,
        path: Path,
        *,
        node: int = 10,
        driver: str = "fault:sync",
        direct: bool = False,
        block_size: int = 1,
        sticky_error: int = 0,
        no_fsync: bool = False,
        writes_by_threads: bool = False,
        wide_driver: str = "",
        dsync: bool = False,
        handle: int = 0,
        flags: int = os.O_RDWR,
        counters: ImageCounters | None = None,
    ) -> int:
        """Serve `path` as `node`; returns its slot."""
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        tail = os.open(path, flags | os.O_DSYNC) if direct else -1
        self._registered.setdefault(node, []).extend(f for f in (fd, tail) if f >= 0)
        spec = ImageSpec(
            fd=fd,
            tail_fd=tail,
            driver=driver,
            direct=direct,
            block_size=block_size,
            no_fsync=no_fsync,
            writes_by_threads=writes_by_threads,
            wide_driver=wide_driver,
            dsync=dsync,
            handle=handle,
            sticky_error=sticky_error,
            counters=counters or ImageCounters(),
        )
        self._counters[node] = spec.counters
        return await self.plane.register(node, spec)

    def unregister(self, node: int = 10) -> int:
        """Stop serving `node`; returns its sticky error."""
        return self.command(lambda: self.unregistering(node))

    async def unregistering(self, node: int) -> int:
        """The same for one of several commands."""
        result = await self.plane.unregister(node)
        for fd in self._registered.pop(node):
            os.close(fd)
        return result

    def opens(self, node: int = 10) -> int:
        """How often the kernel has been told that `node` is open."""
        opens: int = self._counters[node].memory.opens
        return opens

    def counters(self, node: int = 10) -> dict[str, Any]:
        """What was counted of the image that is, or was last, registered as `node`."""
        return self._counters[node].read()

    # -- requests, as the kernel sends them --

    def send(
        self, opcode: int, body: bytes = b"", *, node: int = 10, pid: int = 0, unique: int | None = None
    ) -> int:
        """Send one message, of thread `pid`; returns its unique."""
        if unique is None:
            self.unique += 2
            unique = self.unique
        length = HEADER.size + len(body)
        self.fuse.send(HEADER.pack(length, opcode, unique, node, 0, 0, pid, 0, 0) + body)
        return unique

    def send_read(self, offset: int, size: int, **where: int) -> int:
        return self.send(READ, READ_IN.pack(0, offset, size, 0, 0, 0, 0), **where)

    def send_write(self, offset: int, data: bytes, **where: int) -> int:
        return self.send(WRITE, WRITE_IN.pack(0, offset, len(data), 0, 0, 0, 0) + data, **where)

    def send_fsync(self, **where: int) -> int:
        return self.send(FSYNC, FSYNC_IN.pack(0, 1, 0), **where)

    def send_fallocate(self, mode: int, offset: int, length: int, **where: int) -> int:
        return self.send(FALLOCATE, FALLOCATE_IN.pack(0, offset, length, mode, 0), **where)

    def send_lseek(self, offset: int, whence: int, **where: int) -> int:
        return self.send(LSEEK, LSEEK_IN.pack(0, offset & (1 << 64) - 1, whence, 0), **where)

    def reply(self, unique: int) -> tuple[int, bytes]:
        """The reply to a message: its error (0 or -errno) and its body. Waits for it."""
        while unique not in self._replies:
            if not select.select([self.fuse], [], [], PATIENCE_S)[0]:
                raise AssertionError(f"no reply to message {unique}")
            self._receive()
        return self._replies.pop(unique)

    def has_reply(self, unique: int) -> bool:
        """Whether the reply has come already. Does not wait."""
        while select.select([self.fuse], [], [], 0)[0]:
            self._receive()
        return unique in self._replies

    def _receive(self) -> None:
        data = self.fuse.recv(2 << 20)
        length, error, unique = OUT_HEADER.unpack_from(data)
        assert length == len(data)
        assert unique not in self._replies, f"two replies to message {unique}"
        self._replies[unique] = (error, data[OUT_HEADER.size :])

    def read(self, offset: int, size: int, **where: int) -> bytes:
        """READ, answered; OSError for an errno."""
        return self._checked(self.send_read(offset, size, **where))

    def write(self, offset: int, data: bytes, **where: int) -> int:
        """WRITE, answered: the size in the answer; OSError for an errno."""
        (size, _) = struct.unpack("<II", self._checked(self.send_write(offset, data, **where)))
        assert isinstance(size, int)
        return size

    def fsync(self, **where: int) -> None:
        """FSYNC, answered; OSError for an errno."""
        self._checked(self.send_fsync(**where))

    def fallocate(self, mode: int, offset: int, length: int, **where: int) -> None:
        """FALLOCATE, answered; OSError for an errno."""
        assert self._checked(self.send_fallocate(mode, offset, length, **where)) == b""

    def lseek(self, offset: int, whence: int, **where: int) -> int:
        """LSEEK, answered: the offset found; OSError for an errno."""
        (found,) = struct.unpack("<Q", self._checked(self.send_lseek(offset, whence, **where)))
        assert isinstance(found, int)
        return found

    def _checked(self, unique: int) -> bytes:
        error, body = self.reply(unique)
        if error:
            raise OSError(-error, os.strerror(-error))
        return body

    def together(self, send: Callable[[], list[int]]) -> tuple[list[int], list[tuple[str, int, int]]]:
        """Make the loop find all messages of `send` in one drain; returns their uniques and their ios.

        Every request of the plane is busy while they are sent, so they gather in the socket, as they do
        in the kernel while the device works.
        """
        hold()
        depth = self.queue_depth
        far = [FAR + i * 8192 for i in range(depth)]
        fillers = [self.send_read(offset, 1) for offset in far]
        deadline = time.monotonic() + PATIENCE_S
        while self.plane.counters()["in_flight"] != depth:
            assert time.monotonic() < deadline, "the plane did not take the fillers"
        uniques = send()
        before = len(submitted())
        release()
        for unique in fillers:
            assert self.reply(unique) == (0, b"")
        for unique in uniques:
            if unique not in self._replies:
                self._replies[unique] = self.reply(unique)
        return uniques, submitted()[before:]

    def resize_between(
        self, size: int, before: Callable[[], list[int]], after: Callable[[], list[int]]
    ) -> tuple[list[int], list[str]]:
        """Requests, a resize, and more requests, all in work before the first finishes: the requests'
        uniques, and the operations that were submitted before anything had finished."""
        hold()
        uniques = before()
        started: list[str] = []
        self.settle()

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.plane.truncate, 10, size)
                await trio.testing.wait_all_tasks_blocked()
                await self.plane.open_driver("fault:sync")  # commands keep their order
                uniques.extend(after())
                while self.plane.counters()["in_flight"] != len(uniques) + 1:
                    await trio.lowlevel.checkpoint()
                # The turn of the loop that took the last one has ended.
                await self.plane.open_driver("fault:sync")
                started.extend(op for op, _, _ in submitted())
                release()

        self.command(main)
        return uniques, started

    def settle(self) -> None:
        """Return when the plane has submitted everything sent so far that may be submitted.

        The first round trip shows that it has drained all (messages are handled in order), the second
        one, that the turn of the loop in which it did so has ended.
        """
        error, _ = self.reply(self.send(WRITE, WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"x", node=999_999))
        assert error == -errno.EBADF
        self.command(lambda: self.plane.open_driver("fault:sync"))


# -- the plan of the fault drivers --


def at_control_plane(kernel: FakeKernel) -> bytes:
    """The next message that reaches the control plane."""
    if not select.select([kernel.control_plane], [], [], PATIENCE_S)[0]:
        raise AssertionError("nothing was forwarded")
    return kernel.control_plane.recv(2 << 20)


def answer(kernel: FakeKernel, unique: int, body: bytes = b"", error: int = 0) -> None:
    """Answer as the control plane."""
    kernel.control_plane.send(OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


def hold() -> None:
    """From now on no io starts."""
    lib.aiofs_fault_hold(1)


def release() -> None:
    """Ios start again."""
    lib.aiofs_fault_hold(0)


def fault(
    op: str, result: int, *, first: int = 0, end: int = 1 << 62, times: int = 1, spares_threads: bool = False
) -> None:
    """Make ios of `op` that touch bytes first .. end-1 fail with `result` < 0, or do only `result` bytes.

    `times`: so many of them; -1: all.
    """
    kind, value = (Kind.ERROR, -result) if result < 0 else (Kind.SHORT, result)
    last = MAX_NUMBER if times < 0 else times
    add_fault(Fault(kind, value, (op,), first, end, 1, last, spares_threads=spares_threads))


class Entry(NamedTuple):
    """One io that a driver was given."""

    op: str
    offset: int
    length: int
    segments: int
    blocks: bool
    """The plane marked it as blocking: `threads` does it."""


def entries(room: int = 4096) -> list[Entry]:
    """What the drivers were given so far, the first `room` of it, in order."""
    log = ffi.new("aiofs_fault_entry[]", room)
    count = lib.aiofs_fault_log(log, room)
    return [Entry(OPERATIONS[e.op], e.offset, e.length, e.segments, bool(e.blocks)) for e in log[0:count]]


def submitted() -> list[tuple[str, int, int]]:
    """What the drivers were given so far: (op, offset, length), in order."""
    return [(entry.op, entry.offset, entry.length) for entry in entries()]


def overlaps() -> int:
    """Ios that were submitted while one that they overlap was in flight; at least one of them a change."""
    return fault_counts(Plan()).overlaps


def _pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE: a message of 1 MiB has to fit
            try:
                end.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    return ends
