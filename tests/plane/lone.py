"""Requests that hang when they have come alone: in each of the two ways in which such a one is done.

`RING`: a READ of a pipe, submitted by the loop and slept on in the same call.
`STAND_IN`: a WRITE that is done by the stand-in, in place, to a file whose lock somebody else holds.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fakekernel import PATIENCE_S, FakeKernel
from stalling import StallingMemory
from tasks import tasks_named

K = 4096
SLOW = 20
"""The node of an image that answers when it is told to."""

_CALLS = {
    "x86_64": {"io_uring_enter": "426", "epoll_wait": "232", "pwritev": "296"},
    "aarch64": {"io_uring_enter": "426", "epoll_wait": "22", "pwritev": "70"},
}.get(os.uname().machine, {})
IO_URING_ENTER, EPOLL_WAIT, PWRITEV = (
    _CALLS.get(name, "") for name in ("io_uring_enter", "epoll_wait", "pwritev")
)


def system_calls(thread: str) -> list[str]:
    """The calls (numbers) that this process's threads of a name sleep in; "running": it does not sleep."""
    calls = []
    for task in tasks_named(thread):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            calls.append((task / "syscall").read_text().split()[0])
    return calls


def system_call(thread: str) -> str:
    """That of the only thread of a name; "none" when there is none."""
    return (system_calls(thread) or ["none"])[0]


class Lone:
    """An image of which a request hangs, when it came alone and is done in the way that a test is about."""

    answer: bytes
    """Of the request that hangs."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel

    def hang(self) -> int:
        """The unique of a request that is in work, and hangs.

        Tried again where it is done in another way: a socket says that it can be read when its message has
        been read already, and then the call of the ring returns too early. /dev/fuse does not.
        """
        for _ in range(20):
            for _ in range(5):
                self.one()
            unique = self.begin()
            if self.is_as_meant():
                return unique
            self.let_go(unique)
        raise AssertionError("a request that came alone was never done in that way")

    def one(self) -> None:
        """One that does not hang."""
        raise NotImplementedError

    def begin(self) -> int:
        """One that hangs, whoever does it: its unique."""
        raise NotImplementedError

    def is_as_meant(self) -> bool:
        """Once the request is being done: in the way that the test is about?"""
        raise NotImplementedError

    def release(self) -> None:
        """Let it end."""
        raise NotImplementedError

    def let_go(self, unique: int) -> None:
        """It has not been answered; let it end, and see that it is."""
        assert not self.kernel.has_reply(unique)
        self.release()
        assert self.kernel.reply(unique) == (0, self.answer)

    def close(self) -> None:
        """Let everybody go on."""
        raise NotImplementedError


class Ring(Lone):
    """READs of a pipe."""

    answer = b"x"

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        super().__init__(kernel)
        path = directory / "slow.img"
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)
        kernel.register(Path(f"/proc/self/fd/{self._pipe}"), node=SLOW, driver="io_uring")

    def one(self) -> None:
        self.kernel.read(0, K)

    def begin(self) -> int:
        return self.kernel.send_read(0, 1, node=SLOW)

    def is_as_meant(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            call = system_call("aiofs-loop")
            if self.kernel.plane.counters()["in_flight"] == 1 and call in (IO_URING_ENTER, EPOLL_WAIT):
                return call == IO_URING_ENTER
            assert time.monotonic() < deadline, f"the loop is in system call {call}"

    def release(self) -> None:
        os.write(self._pipe, b"x")

    def close(self) -> None:
        os.write(self._pipe, b"-" * 100)  # a test that failed may have left somebody waiting
        os.close(self._pipe)


class StandIn(Lone):
    """WRITEs to a file whose lock another thread has: it writes there, from memory that is not there yet."""

    answer = struct.pack("II", K, 0)

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        super().__init__(kernel)
        self._memory = StallingMemory(1000)
        self._page = 0
        self._writer: threading.Thread | None = None
        path = directory / "slow.img"
        path.write_bytes(bytes(16 * K))
        self._fd = os.open(path, os.O_RDWR)
        kernel.register(path, node=SLOW, driver="io_uring", writes_by_threads=True)

    def one(self) -> None:
        assert self.kernel.write(0, b"1" * K, node=SLOW) == K

    def begin(self) -> int:
        self._writer = threading.Thread(
            target=os.pwrite, args=(self._fd, self._memory.page(self._page), 8 * K), daemon=True
        )
        self._writer.start()
        assert self._memory.next_stall() == self._page
        return self.kernel.send_write(K, b"2" * K, node=SLOW)

    def is_as_meant(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            calls = {name: system_calls(name) for name in ("aiofs-stand-in", "aiofs-io", "aiofs-loop")}
            for thread in ("aiofs-stand-in", "aiofs-io"):
                if PWRITEV in calls[thread]:
                    return thread == "aiofs-stand-in"
            assert time.monotonic() < deadline, f"nobody writes: {calls}, {self.kernel.plane.counters()}"

    def release(self) -> None:
        self._memory.release(self._page)
        if self._writer is not None:
            self._writer.join(PATIENCE_S)
            assert not self._writer.is_alive()
            self._page += 1
        self._writer = None

    def close(self) -> None:
        self.release()
        self._memory.close()
        os.close(self._fd)


WAYS: dict[str, Callable[[FakeKernel, Path], Lone]] = {"ring": Ring, "stand-in": StandIn}
