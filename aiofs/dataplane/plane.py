"""DataPlane: the C loop that serves the data requests of images, and the commands it takes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from .binding import check, ffi, lib
from .counters import ImageCounters, fields

MAX_QUEUE_DEPTH = 4096
MAX_REQUEST_BYTES = 1 << 20
"""The longest READ or WRITE that the kernel may send: max_write of the amended INIT reply."""

_REPLIES: dict[str, int] = {
    "adapt": lib.AIOFS_REPLIES_ADAPT,
    "singly": lib.AIOFS_REPLIES_SINGLY,
    "together": lib.AIOFS_REPLIES_TOGETHER,
}


@dataclass(frozen=True)
class ImageSpec:
    """How the data plane is to serve one image. The descriptors stay open until unregister returns."""

    fd: int
    tail_fd: int
    """The same file opened buffered with O_DSYNC; needed when `direct`, otherwise -1."""
    driver: str
    direct: bool
    block_size: int
    """Alignment of offsets and lengths in bytes when `direct`; otherwise 1."""
    dsync: bool = False
    """Opened with O_DSYNC."""
    no_fsync: bool = False
    block_device: bool = False
    writes_by_threads: bool = False
    """WRITEs go to the pool of threads beside the driver."""
    wide_driver: str = ""
    """Serves reads of more than a block, such as READs that were merged; empty: `driver` does."""
    handle: int = 0
    """What its opens are answered with; a RELEASE of another handle is not counted as one of them."""
    sticky_error: int = 0
    """errno of an fsync that failed in a server before this one, while the image was open, or 0."""
    counters: ImageCounters = field(default_factory=ImageCounters)
    """Counted up from what is in them."""


class DataPlane:
    """The data plane on three descriptors: the kernel's, pyfuse3's socket and the control socket.

    `run` is called by a thread of its own (`start` makes it); the commands are coroutines of the trio
    task that owns the plane; `stop` may come from anywhere.
    """

    def __init__(
        self,
        fuse_fd: int,
        forward_fd: int,
        *,
        queue_depth: int = 128,
        merge: bool = True,
        max_images: int = 16384,
        look_us: int = 200,
        replies: str = "adapt",
        progress: tuple[Any, int] | None = None,
        predecessor_init: bytes = b"",
    ) -> None:
        """A plane on these descriptors, not started. OSError.

        `replies`: how answers are written: `adapt`, or always `singly` or `together` (replies.h), for tests.

        `progress`: where an aiofs_progress is counted up: a buffer and an offset in it.

        `predecessor_init`: the kernel's INIT to a server before this one. The loop then gives it to pyfuse3,
        and reads nothing from the kernel before `serve`.
        """
        buffer, offset = progress or (bytearray(ffi.sizeof("aiofs_progress")), 0)
        self._progress = ffi.from_buffer(
            buffer, require_writable=True
        )  # referred to until the plane is closed
        init = ffi.from_buffer(predecessor_init)
        self._control, self._control_peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        config = ffi.new(
            "aiofs_config *",
            {
                "fuse_fd": fuse_fd,
                "forward_fd": forward_fd,
                "control_fd": self._control_peer.fileno(),
                "queue_depth": queue_depth,
                "max_images": max_images,
                "merge": int(merge),
                "look_us": look_us,
                "replies": _REPLIES[replies],
                "held": int(bool(predecessor_init)),
                "init_size": len(predecessor_init),
                "init": init,
                "progress": ffi.cast("aiofs_progress *", self._progress + offset),
            },
        )
        out = ffi.new("aiofs_plane **")
        check(lib.aiofs_open(out, config), "open the data plane")
        self._plane = out[0]
        self._next_id = 1
        self._answers: dict[int, trio.MemorySendChannel[int]] = {}
        self._lent: dict[int, ImageCounters] = {}
        """By node: memory that the loop writes, kept until it is known to have stopped doing so."""
        self._thread: threading.Thread | None = None
        self.result: int | None = None
        """What the loop returned: 0 unmounted, 1 stopped, -errno; None while it runs."""

    # -- the thread --

    def start(self, on_exit: Callable[[], None]) -> None:
        """Run the loop in a new thread; `on_exit` is called there when it has returned."""

        def run() -> None:
            self.result = lib.aiofs_run(self._plane)  # releases the GIL until the mount ends
            on_exit()

        self._thread = threading.Thread(target=run, name="aiofs-dataplane", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more requests, finish what is in flight, return from the loop. Any thread."""
        lib.aiofs_stop(self._plane)

    def join(self) -> None:
        """Wait for the thread that `start` made."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Free the plane; its thread must have ended."""
        self.join()
        if self._plane is not None:
            lib.aiofs_close(self._plane)
            self._plane = None
        self._control.close()
        self._control_peer.close()

    # -- commands --

    async def register(self, node: int, spec: ImageSpec) -> int:
        """Serve `node` from now on; returns its slot in the table of images. OSError says why not."""
        flags = (
            (lib.AIOFS_IMAGE_DIRECT if spec.direct else 0)
            | (lib.AIOFS_IMAGE_DSYNC if spec.dsync else 0)
            | (lib.AIOFS_IMAGE_NO_FSYNC if spec.no_fsync else 0)
            | (lib.AIOFS_IMAGE_BLOCKDEV if spec.block_device else 0)
            | (lib.AIOFS_IMAGE_WRITES_BY_THREADS if spec.writes_by_threads else 0)
        )
        before = self._lent.get(node)
        self._lent[node] = spec.counters
        result = await self._command(
            verb=lib.AIOFS_REGISTER,
            node=node,
            fd=spec.fd,
            tail_fd=spec.tail_fd,
            driver=driver_index(spec.driver),
            wide_driver=driver_index(spec.wide_driver or spec.driver),
            flags=flags,
            block_size=spec.block_size,
            error=-spec.sticky_error,
            handle=spec.handle,
            counters=spec.counters.memory,
        )
        if result < 0:
            self._lent.pop(node)
            if before is not None:
                self._lent[node] = before  # it is registered already
        return check(result, f"register an image with driver {spec.driver}")

    async def unregister(self, node: int) -> int:
        """Stop serving `node`; returns when nothing of it is in flight: the sticky fsync errno, or 0."""
        result = check(await self._command(verb=lib.AIOFS_UNREGISTER, node=node), "unregister an image")
        self._lent.pop(node, None)
        return result

    async def truncate(self, node: int, size: int) -> None:
        """Set the size of a registered image, after all requests before and before all after it."""
        check(await self._command(verb=lib.AIOFS_TRUNCATE, node=node, size=size), "truncate")

    async def open_driver(self, driver: str) -> None:
        """Make a driver's queue ready; OSError when the kernel refuses it."""
        result = await self._command(verb=lib.AIOFS_OPEN_DRIVER, driver=driver_index(driver))
        check(result, f"open driver {driver}")

    async def serve(self) -> None:
        """Take over from the server before this one: have the kernel send again what that did not answer.

        OSError: EINVAL from a kernel before Linux 6.9.
        """
        check(await self._command(verb=lib.AIOFS_SERVE, flags=lib.AIOFS_RESEND), "take over a mount")

    async def _command(self, **words: Any) -> int:
        ident = self._next_id
        self._next_id += 1
        message = ffi.new("aiofs_command *", {"id": ident, **words})
        send, receive = trio.open_memory_channel[int](1)
        self._answers[ident] = send
        try:
            await self._send(bytes(ffi.buffer(message)))
            return await receive.receive()
        finally:
            self._answers.pop(ident, None)
            receive.close()

    async def _send(self, message: bytes) -> None:
        while True:
            try:
                self._control.send(message)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._control)

    async def answers(self) -> None:
        """Deliver the plane's answers to the commands that wait for them; run it as a task."""
        size = ffi.sizeof("aiofs_answer")
        while True:
            await trio.lowlevel.wait_readable(self._control)
            try:
                data = self._control.recv(size)
            except BlockingIOError:
                continue
            if not data:
                return
            answer = ffi.from_buffer("aiofs_answer *", data)
            waiting = self._answers.get(answer.id)
            if waiting is not None:
                waiting.send_nowait(answer.result)

    # -- counters --

    def counters(self) -> dict[str, Any]:
        """aiofs_plane_counters as a dict (api.h says what each one counts)."""
        return fields(lib.aiofs_counters(self._plane), "aiofs_plane_counters")

    def init_exchange(self) -> tuple[bytes, bytes] | None:
        """The kernel's INIT request and the reply it got; None before the exchange is complete."""
        buffer = ffi.new("char[4096]")
        parts = []
        for reply in (0, 1):
            size = lib.aiofs_init_exchange(self._plane, reply, buffer, 4096)
            if size < 0:
                return None
            parts.append(bytes(ffi.buffer(buffer, size)))
        return parts[0], parts[1]


def driver_index(name: str) -> int:
    """The place of a driver in the C table. ValueError for an unknown name."""
    index: int = lib.aiofs_driver_index(name.encode())
    if index < 0:
        raise ValueError(f"unknown driver {name!r}; there are {', '.join(driver_names())}")
    return index


def driver_names() -> list[str]:
    """The names of all drivers, in the order of the C table."""
    return [ffi.string(lib.aiofs_driver_name(i)).decode() for i in range(lib.aiofs_driver_count())]


@dataclass(frozen=True)
class DriverStatus:
    """One driver on this machine."""

    name: str
    description: str
    works: bool
    reason: str
    """Why it does not work here, and the way out; empty when it works."""


def drivers() -> list[DriverStatus]:
    """Every driver with the verdict of its probe on this machine."""
    found = []
    why = ffi.new("char[512]")
    for index, name in enumerate(driver_names()):
        description = ffi.string(lib.aiofs_driver_description(index)).decode()
        why[0] = b"\0"
        result = lib.aiofs_driver_probe(name.encode(), why, 512)
        reason = ffi.string(why).decode(errors="replace") if result < 0 else ""
        found.append(DriverStatus(name, description, result == 0, reason))
    return found
