"""The timer that makes short sleeps cheap: due soon while batches follow each other, and never otherwise."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakekernel import FakeKernel
from waiting import wait_until

K = 4096
DUE_NS = 1_000_000
FAR_APART_S = 0.005
"""Between two batches: more than the time in which the next one is expected."""


def timers() -> set[Path]:
    """The descriptors of this process that are timers."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if str(fd.readlink()) == "anon_inode:[timerfd]":
                found.add(fd)
    return found


@dataclass(frozen=True)
class Timer:
    """The plane's."""

    fd: Path

    def due_ns(self) -> int:
        """Until it is due; 0: it is not set."""
        told = Path("/proc/self/fdinfo", self.fd.name).read_text()
        found = re.search(r"it_value: \((\d+), (\d+)\)", told)
        assert found, told
        return int(found[1]) * 10**9 + int(found[2])


@pytest.fixture
def timer(kernel: FakeKernel) -> Timer:
    """Before there are others: the fault drivers have one each."""
    assert kernel.plane
    [fd] = timers()
    return Timer(fd)


def burst(kernel: FakeKernel, **of: int) -> None:
    """Batches that follow each other."""
    for _ in range(10):
        kernel.read(0, K, **of)


def test_a_timer_is_due_while_batches_follow_each_other(
    kernel: FakeKernel, timer: Timer, image: Path
) -> None:
    """It is set anew again and again, so most looks find it."""
    kernel.register(image)

    def is_due() -> bool:
        burst(kernel)
        return 0 < timer.due_ns() <= DUE_NS

    wait_until(is_due)


def test_it_wakes_nobody(kernel: FakeKernel, timer: Timer, image: Path) -> None:
    """When no more batches follow, it is due once, and the loop sleeps on."""
    kernel.register(image)

    def sleeps_through_it() -> bool:
        burst(kernel)
        before = kernel.plane.counters()["sleeps"]
        is_ahead = timer.due_ns() > 0
        wait_until(lambda: timer.due_ns() == 0)
        return is_ahead and kernel.plane.counters()["sleeps"] == before

    wait_until(sleeps_through_it)


def test_batches_far_apart_set_no_timer(kernel: FakeKernel, timer: Timer, image: Path) -> None:
    """A core that sleeps for long is not woken in between."""
    kernel.register(image)
    for _ in range(10):
        time.sleep(FAR_APART_S)
        kernel.read(0, K)
        assert timer.due_ns() == 0


def test_a_loop_that_looks_sets_no_timer(image: Path, kernel_thread: int) -> None:
    """Its core does not sleep, and each time costs it some microseconds."""
    kernel = FakeKernel(look_us=100_000)
    try:
        [fd] = timers()
        kernel.register(image)

        def counted(name: str) -> int:
            return int(kernel.plane.counters()[name])

        def looks_set_none() -> bool:
            """Of a burst in which it has looked and not slept, what was set before having been due.

            A loop that shares a core with us may find most of it without a look.
            """
            wait_until(lambda: Timer(fd).due_ns() == 0)
            sleeps, looks = counted("sleeps"), counted("looks")
            burst(kernel, pid=kernel_thread)
            due = Timer(fd).due_ns()
            if counted("sleeps") != sleeps or counted("looks") == looks:
                return False
            assert not due
            return True

        wait_until(looks_set_none)
    finally:
        kernel.close()


def test_it_goes_with_the_plane() -> None:
    """A process that opens and closes planes collects none."""
    before = timers()
    kernel = FakeKernel()
    assert len(timers() - before) == 1
    kernel.close()
    assert timers() == before
