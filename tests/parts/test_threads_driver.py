"""What only the driver `threads` promises: parallel ios of one file, order, cancel, quiet workers.

Each io reads into a page whose first touch blocks, so a test decides how long it runs.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import Drivers, Instance
from stalling import StallingMemory
from tasks import tasks_named

WORKERS = 64
"""WORKERS_MAX of threads.c."""


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    return Drivers(tmp_path_factory.mktemp("drivers"))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "a.img"
    path.write_bytes(b"d" * mmap.PAGESIZE)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def aio(drivers: Drivers, fd: int) -> Iterator[Instance]:
    wait_for_no_workers()
    with drivers.open("threads", 256) as instance:
        instance.attach(fd)
        yield instance


@pytest.fixture
def stalling(aio: Instance) -> Iterator[Callable[[int], StallingMemory]]:
    """Made after the driver, so that at the end everything is released before the driver is closed."""
    assert aio.reap() == []
    made: list[StallingMemory] = []

    def make(pages: int) -> StallingMemory:
        made.append(StallingMemory(pages))
        return made[-1]

    yield make
    for memory in made:
        memory.close()


def workers() -> list[Path]:
    """The directories in /proc of the threads that do io."""
    return tasks_named("aiofs-io")


def wait_for_no_workers() -> None:
    """A joined thread may show in /proc a moment longer."""
    end = time.monotonic() + 20
    while workers():
        assert time.monotonic() < end, "workers outlive their driver"
        os.sched_yield()


def test_a_slow_io_does_not_hold_up_others(
    aio: Instance, fd: int, stalling: Callable[[int], StallingMemory]
) -> None:
    """While one read of the file blocks, 100 later ones of the same file come back."""
    memory = stalling(1)
    slow = aio.read_into(fd, 0, memory.page(0))
    aio.submit(slow)
    memory.next_stall()
    quick = [aio.read(fd, 0, 512) for _ in range(100)]
    assert aio.submit(*quick) == 100
    assert slow not in aio.finish(100)
    memory.release(0)
    assert aio.finish(1) == [slow]
    assert slow.result == mmap.PAGESIZE


def test_requests_of_one_file_run_in_parallel(
    aio: Instance, fd: int, stalling: Callable[[int], StallingMemory]
) -> None:
    """As many reads of one file as there may be workers are all inside preadv at the same time."""
    memory = stalling(WORKERS)
    aio.submit(*[aio.read_into(fd, 0, memory.page(i)) for i in range(WORKERS)])
    assert {memory.next_stall() for _ in range(WORKERS)} == set(range(WORKERS))
    assert aio.reap() == []


def test_queued_ios_start_in_the_order_of_submission(
    aio: Instance, fd: int, stalling: Callable[[int], StallingMemory]
) -> None:
    """All workers are busy but one, which takes the queued ios one after another, oldest first."""
    memory = stalling(WORKERS + 20)
    ios = [aio.read_into(fd, 0, memory.page(i)) for i in range(WORKERS + 20)]
    for start in range(0, len(ios), 6):
        aio.submit(*ios[start : start + 6])
    running = {memory.next_stall() for _ in range(WORKERS)}
    assert running == set(range(WORKERS))
    free = 0
    for expected in range(WORKERS, WORKERS + 20):
        memory.release(free)
        free = memory.next_stall()
        assert free == expected


def test_cancel_takes_back_what_waits_and_not_what_runs(
    aio: Instance, fd: int, stalling: Callable[[int], StallingMemory]
) -> None:
    """With all workers busy: running ios stay; the first, a middle and the last queued one go."""
    memory = stalling(WORKERS)
    running = [aio.read_into(fd, 0, memory.page(i)) for i in range(WORKERS)]
    aio.submit(*running)
    for _ in range(WORKERS):
        memory.next_stall()
    queued = [aio.read(fd, 0, 100 + i) for i in range(10)]
    aio.submit(*queued)
    assert not any(aio.cancel(io) for io in running)
    assert [aio.cancel(queued[i]) for i in (0, 5, 9)] == [True, True, True]
    assert not aio.cancel(queued[5])
    queued.append(aio.read(fd, 0, 200))
    aio.submit(queued[-1])
    for i in range(WORKERS):
        memory.release(i)
    done = aio.finish(WORKERS + 8)
    rest = [queued[i] for i in (1, 2, 3, 4, 6, 7, 8, 10)]
    assert sorted(map(id, done)) == sorted(map(id, [*running, *rest]))
    assert [io.result for io in rest] == [101, 102, 103, 104, 106, 107, 108, 200]


def test_no_more_workers_than_ios_are_hired(aio: Instance, fd: int) -> None:
    """One io at a time, 200 times over, is the work of few: a worker that is free is used again."""
    for _ in range(200):
        assert aio.run(aio.read(fd, 0, 512)) == [512]
    assert 1 <= len(workers()) <= 3


def test_workers_take_no_signals(aio: Instance, fd: int) -> None:
    """Every signal that can be blocked is, so that signals reach the threads that handle them."""
    aio.run(aio.read(fd, 0, 1))
    assert workers()
    for task in workers():
        [line] = [line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk")]
        blocked = int(line.split()[1], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1, f"{number.name} is not blocked"


def test_close_ends_every_worker(drivers: Drivers, fd: int) -> None:
    """After close no thread is left."""
    with drivers.open("threads", 64) as aio:
        aio.attach(fd)
        aio.run(*[aio.read(fd, 0, 512) for _ in range(64)])
        assert workers()
    wait_for_no_workers()
