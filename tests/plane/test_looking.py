"""Whom the loop looks for first: in a plane, whose requests come one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel
from waiting import wait_until

K = 4096
MOST = 8_000
"""Looks: more than in a trial that is left open, which is 0.16 s, and fewer than in 4 s."""


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """Before a loop that may look, however long it takes."""
    made = FakeKernel(look_us=1_000_000)
    yield made
    made.close()


def counted(kernel: FakeKernel, name: str) -> int:
    """One of the plane's counters."""
    return int(kernel.plane.counters()[name])


def burst(kernel: FakeKernel) -> None:
    """One request after the other, for long enough that what is between bursts is little."""
    for _ in range(500):
        kernel.read(0, K)


@pytest.mark.parametrize("driver", ["threads", "posix"])
def test_where_threads_do_the_io_looking_is_a_trial(kernel: FakeKernel, image: Path, driver: str) -> None:
    """It ends as one: that requests came alone in it, too, is no reason to go on."""
    kernel.register(image, driver=driver)

    def has_been_tried() -> bool:
        burst(kernel)
        return counted(kernel, "look_trials") > 0

    wait_until(lambda: has_been_tried() or counted(kernel, "looks") > MOST)
    assert has_been_tried()


@pytest.mark.parametrize("writes_by_threads", [False, True])
def test_where_the_kernel_does_the_io_it_is_the_first_choice(
    kernel: FakeKernel, image: Path, writes_by_threads: bool
) -> None:
    """And holds, without a trial; also for the reads of an image whose writes are done by threads."""
    kernel.register(image, driver="io_uring", writes_by_threads=writes_by_threads)

    def has_looked() -> bool:
        burst(kernel)
        return counted(kernel, "looks") > MOST // 16

    wait_until(has_looked)
    assert counted(kernel, "look_trials") == 0
