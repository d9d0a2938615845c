"""Queue: the AIO layer by itself, from Python: ios on descriptors, through one driver.

For tests, benchmarks and image sources to come; a mount's data goes through the C loop instead.
"""

from __future__ import annotations

import enum
import errno
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from .binding import check, ffi, lib
from .plane import driver_index

Buffer = bytes | bytearray | memoryview | mmap.mmap


class Op(enum.IntEnum):
    """What an Io does; the values are io_op's of io.h."""

    READ = 0
    WRITE = 1
    FSYNC = 2
    """fdatasync."""
    TRUNCATE = 3
    """Set the file's size to `offset` bytes."""


@dataclass(frozen=True)
class Io:
    """One operation on a descriptor given to `Queue.attach`."""

    id: int
    """The caller's own number, 0 .. 2**64-1; not that of another io in flight."""
    op: Op
    fd: int
    offset: int = 0
    """Bytes."""
    buffer: Buffer | None = field(default=None, repr=False)
    """READ: writable, filled to its length; WRITE: written whole. Not to be touched until reaped."""


@dataclass(frozen=True)
class Completion:
    """A finished Io."""

    io: Io
    result: int
    """Bytes for READ and WRITE, 0 for the others; or -errno."""


class Queue:
    """A queue on one driver; a context manager. To be used by one thread at a time.

    Leaving the `with` block waits for what is in flight, then closes.
    """

    def __init__(self, driver: str, depth: int) -> None:
        """Open `driver` for up to `depth` (1..4096) ios in flight. ValueError names what is wrong with them.

        OSError when the kernel refuses; `aiofs.dataplane.drivers()` tells why.
        """
        driver_index(driver)
        if not 1 <= depth <= 4096:
            raise ValueError(f"queue depth {depth} is not within 1..4096")
        out = ffi.new("aiofs_queue **")
        check(lib.aiofs_queue_open(out, driver.encode(), depth), f"open a queue on driver {driver}")
        self._queue: Any = out[0]
        self._depth = depth
        self._out = ffi.new("aiofs_io[]", depth)
        self._kept: dict[int, tuple[Io, Any]] = {}
        """By id: each io in flight, and what keeps its buffer alive and in its place."""

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.in_flight:
            self.reap()
        self.close()

    def attach(self, fd: int) -> None:
        """Announce a descriptor; it stays open until `detach`. OSError: EEXIST when it is attached."""
        check(lib.aiofs_queue_attach(self._open(), fd), f"attach descriptor {fd}")

    def detach(self, fd: int) -> None:
        """Forget a descriptor. OSError: EBUSY while ios on it are in flight, EBADF when not attached."""
        check(lib.aiofs_queue_detach(self._open(), fd), f"detach descriptor {fd}")

    def submit(self, ios: Sequence[Io]) -> int:
        """Start ios, as one batch; how many were accepted, from the first on. Fewer than all: full.

        OSError, with nothing accepted: EEXIST for an id in flight, EBADF for a descriptor not attached,
        EINVAL for a length over 2 GiB.
        """
        queue = self._open()
        batch = ffi.new("aiofs_io[]", max(1, len(ios)))
        buffers = []
        for entry, io in zip(batch, ios, strict=False):
            entry.id, entry.op, entry.fd, entry.offset = io.id, io.op, io.fd, io.offset
            buffer = None
            if io.buffer is not None:
                buffer = ffi.from_buffer("char[]", io.buffer, require_writable=io.op == Op.READ)
                entry.buffer, entry.length = buffer, len(buffer)
            buffers.append(buffer)
        accepted = check(lib.aiofs_queue_submit(queue, batch, len(ios)), f"submit {len(ios)} ios")
        for io, buffer in zip(ios[:accepted], buffers, strict=False):
            self._kept[io.id] = (io, buffer)
        return accepted

    def reap(self, max: int | None = None, timeout: float | None = None) -> list[Completion]:
        """Finished ios, at most `max`; waits up to `timeout` seconds for the first.

        None: no limit, 0: not at all. Empty when none has finished in time, or when nothing is in flight.
        """
        limit = self._depth if max is None else min(max, self._depth)
        queue = self._open()

        def call(timeout_ms: int) -> int:
            return int(lib.aiofs_queue_reap(queue, self._out, limit, timeout_ms))

        n = check(_uninterrupted(call, timeout), "reap")
        return [Completion(self._kept.pop(self._out[i].id)[0], self._out[i].result) for i in range(n)]

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted has finished; the results stay to be reaped. TimeoutError."""
        queue = self._open()
        result = _uninterrupted(lambda timeout_ms: int(lib.aiofs_queue_flush(queue, timeout_ms)), timeout)
        if result == -errno.ETIME:
            raise TimeoutError(f"{self.in_flight} ios are still in flight after {timeout} s")
        check(result, "flush")

    def cancel(self, id: int) -> bool:
        """Take an io back: True, and it will not be reaped; False when it runs or has finished.

        OSError: ENOENT when no such id is in flight.
        """
        result = lib.aiofs_queue_cancel(self._open(), id)
        if result == -errno.EALREADY:
            return False
        check(result, f"cancel io {id}")
        del self._kept[id]
        return True

    @property
    def in_flight(self) -> int:
        """Ios accepted and neither reaped nor cancelled."""
        return check(lib.aiofs_queue_in_flight(self._open()), "in flight")

    def close(self) -> None:
        """Free everything; again does nothing. OSError: EBUSY while something is in flight."""
        if self._queue is not None:
            check(lib.aiofs_queue_close(self._queue), "close the queue")
            self._queue = None

    def _open(self) -> Any:
        if self._queue is None:
            raise ValueError("the queue is closed")
        return self._queue


def _uninterrupted(call: Callable[[int], int], timeout: float | None) -> int:
    """Call with a timeout in ms (-1: none), again after each EINTR: Python's signal handlers run between."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = -1 if end is None else max(0, round((end - time.monotonic()) * 1000))
        result = call(left)
        if result != -errno.EINTR:
            return result
