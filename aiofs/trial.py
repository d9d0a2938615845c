"""Live probes of one image or file system, through the drivers themselves. Changes no image.

Blocking: each takes about a millisecond, or as long as the device takes. Call them from a thread.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from .dataplane import Io, Op, Queue
from .select import Blocking

READ_BYTES = 4096
"""A whole block of every image that is served (directio.MAX_BLOCK_SIZE)."""

BLOCKING_WRITES = DEPTH = 32
BLOCKING_STRIDE = 64 * 1024
"""Bytes between the writes of the blocking probe, so that each needs blocks of its own."""
BLOCKING_LIMIT_S = 0.025
"""The blocking probe ends early when the file system is this slow; what it has seen is enough."""


_closing = threading.BoundedSemaphore(4)
"""So many decisions may be over whose queues are not closed yet: fs.aio-max-nr counts those."""


class Queues:
    """The queues of one decision, each opened once. They are closed after its end, by a thread of their own:
    closing Linux AIO's takes 30 to 60 ms."""

    def __init__(self) -> None:
        self._open: dict[str, Queue] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            _closing.acquire()
            threading.Thread(target=self._close, name="aiofs-trial").start()

    def _close(self) -> None:
        try:
            for queue in self._open.values():
                queue.close()
        finally:
            _closing.release()

    @contextmanager
    def on(self, driver: str, fd: int) -> Iterator[Queue]:
        """The queue of a driver, with `fd` attached to it. OSError when the kernel refuses it."""
        if driver not in self._open:
            self._open[driver] = Queue(driver, DEPTH)
        queue = self._open[driver]
        queue.attach(fd)
        try:
            yield queue
        finally:
            queue.detach(fd)


def read(queues: Queues, driver: str, fd: int) -> str:
    """Read the beginning of `fd` through `driver`: "" when that works (an empty file too), else why not."""
    try:
        with mmap.mmap(-1, READ_BYTES) as page, queues.on(driver, fd) as queue:
            queue.submit([Io(id=1, op=Op.READ, fd=fd, buffer=page)])
            result = queue.reap()[0].result
    except OSError as error:
        return f"a queue of {driver}: {os.strerror(error.errno or errno.EIO)}"
    return "" if result >= 0 else f"reading it: {os.strerror(-result)}"


def takes_nowait(fd: int) -> bool:
    """Does the file take requests that must not wait (preadv2(2), RWF_NOWAIT)?

    io_uring asks the same of a file; one that refuses has each of its requests done by a kernel worker.
    """
    with mmap.mmap(-1, READ_BYTES) as page:
        try:
            os.preadv(fd, [page], 0, os.RWF_NOWAIT)
        except OSError as error:
            return error.errno not in (errno.EOPNOTSUPP, errno.EINVAL)
    return True


def takes_wide_nowait(fd: int, size: int) -> bool | None:
    """Does the file take direct reads of more than one block that must not wait (RWF_NOWAIT)? None: unknown.

    btrfs refuses them all, even those of a hole, and then a worker of io_uring's does them. A single refusal
    says little: the page cache may have something to write back there. So it is a no when a block was read,
    but not together with the next one, and no two were.
    """
    found = None
    for place in (0, size // 2, size - 2 * READ_BYTES) if size >= 2 * READ_BYTES else ():
        offset = place // READ_BYTES * READ_BYTES
        if _reads_at_once(fd, offset, 2 * READ_BYTES):
            return True
        if _reads_at_once(fd, offset, READ_BYTES):
            found = False
    return found


def _reads_at_once(fd: int, offset: int, length: int) -> bool:
    with mmap.mmap(-1, length) as pages:
        try:
            return os.preadv(fd, [pages], offset, os.RWF_NOWAIT) == length
        except OSError:
            return False


def blocking(queues: Queues, fd: int, growing: bool) -> Blocking:
    """Submit direct writes that allocate blocks through `linux`, counting how often that made us wait.

    `fd` is an empty temporary file opened with O_DIRECT; the writes fill holes of it, or make it longer when
    `growing`. Waits are voluntary context switches of this thread (getrusage(2), RUSAGE_THREAD), as Seastar
    counts them.
    """
    if not growing:
        os.ftruncate(fd, BLOCKING_WRITES * BLOCKING_STRIDE)
    waits = 0
    submitted = 0
    end = time.monotonic() + BLOCKING_LIMIT_S
    with mmap.mmap(-1, READ_BYTES) as page, queues.on("linux", fd) as queue:
        while submitted < BLOCKING_WRITES and (submitted == 0 or time.monotonic() < end):
            io = Io(id=submitted, op=Op.WRITE, fd=fd, offset=submitted * BLOCKING_STRIDE, buffer=page)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            queue.submit([io])
            waits += resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
            submitted += 1
        queue.flush()
        failed = next((done.result for done in queue.reap() if done.result < 0), 0)
    where = "growing" if growing else "sparse"
    looked_at = f"{submitted} direct writes to a {where} temporary file beside it"
    if failed:
        return Blocking(looked_at, None, f"writes to a temporary file failed ({os.strerror(-failed)})")
    return Blocking(looked_at, waits / submitted)
