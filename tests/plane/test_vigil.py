"""The thread that keeps the caller's core awake: there while the loop looks, in nobody's way, and gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel
from lone import system_call
from tasks import is_asleep, tasks_named
from waiting import wait_until

K = 4096
CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="there is one core, on which the loop is, too")


def thread(name: str) -> int:
    """The one of this process that is called so; it may have to say its name first."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [int(task.name) for task in tasks_named(name)]
        return len(found) == 1

    wait_until(is_there)
    return found[0]


def core_of(thread_id: int) -> int:
    """Where it runs, or ran last (proc_pid_stat(5), field 39)."""
    return int(Path(f"/proc/{thread_id}/stat").read_text().rpartition(")")[2].split()[36])


def slept(thread_id: int) -> int:
    """How often it has gone to sleep."""
    lines = Path(f"/proc/{thread_id}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("voluntary_ctxt_switches:")]
    return int(line.split()[1])


class Looking:
    """A plane whose loop looks for work, if only in a trial, for a caller that is on a core of its own."""

    def __init__(self, image: Path, caller: int) -> None:
        self.kernel = FakeKernel(look_us=1_000_000)
        self.kernel.register(image)
        self.caller = caller
        self.vigil = thread("aiofs-vigil")

    def put_loop(self, *, beside_caller: bool) -> None:
        """Have the loop on the caller's core, or on another one."""
        there = core_of(self.caller)
        core = there if beside_caller else next(core for core in CORES if core != there)
        os.sched_setaffinity(thread("aiofs-loop"), {core})

    def burst(self) -> None:
        """One request after the other."""
        for _ in range(20):
            self.kernel.read(0, K, pid=self.caller)


@pytest.fixture
def looking(image: Path) -> Iterator[Looking]:
    """The caller is another process, which sleeps and so stays where it is."""
    with subprocess.Popen(["sleep", "infinity"]) as caller:
        try:
            made = Looking(image, caller.pid)
            yield made
            made.kernel.close()
        finally:
            caller.kill()


def test_it_is_on_the_core_of_the_caller(looking: Looking) -> None:
    """While the loop looks on another one."""

    def is_there() -> bool:
        looking.put_loop(beside_caller=False)
        looking.burst()
        return os.sched_getaffinity(looking.vigil) == {core_of(looking.caller)}

    wait_until(is_there)


def test_it_gives_way_to_everybody(looking: Looking) -> None:
    """As SCHED_IDLE, before it has ever run anywhere."""
    wait_until(lambda: os.sched_getscheduler(looking.vigil) == os.SCHED_IDLE)


def test_it_stays_away_from_the_core_of_the_loop(looking: Looking) -> None:
    """Where the caller is, too: it asks now and then, and goes nowhere."""
    anywhere = os.sched_getaffinity(looking.vigil)
    before = slept(looking.vigil)

    def has_asked() -> bool:
        looking.put_loop(beside_caller=True)
        looking.burst()
        return slept(looking.vigil) > before + 3

    wait_until(has_asked)
    assert os.sched_getaffinity(looking.vigil) == anywhere


def test_it_sleeps_when_nobody_looks(looking: Looking) -> None:
    """Soon after the last request, and until the next one."""
    wait_until(lambda: is_asleep(looking.vigil))
    before, waits_in = slept(looking.vigil), system_call("aiofs-vigil")

    def has_begun() -> bool:
        looking.put_loop(beside_caller=False)
        looking.burst()
        return slept(looking.vigil) > before

    wait_until(has_begun)
    wait_until(lambda: system_call("aiofs-vigil") == waits_in)


def test_a_kernel_thread_has_none(image: Path, kernel_thread: int) -> None:
    """Its core is wanted by others of its kind, who take one that is idle."""
    looking = Looking(image, kernel_thread)
    try:
        wait_until(lambda: is_asleep(looking.vigil))
        before = slept(looking.vigil)

        def has_looked() -> bool:
            looking.burst()
            return int(looking.kernel.plane.counters()["looks"]) > 100

        wait_until(has_looked)
        assert slept(looking.vigil) == before
    finally:
        looking.kernel.close()


def test_a_loop_that_sleeps_needs_none(kernel: FakeKernel, image: Path) -> None:
    """Its caller's core halts, as everybody's does."""
    kernel.register(image)
    vigil = thread("aiofs-vigil")
    wait_until(lambda: is_asleep(vigil))
    before = slept(vigil)
    for _ in range(200):
        kernel.read(0, K, pid=os.getpid())
    assert slept(vigil) == before
