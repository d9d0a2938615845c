"""A device that reports what it has done in lumps: half of the work at a time, and nobody is forgotten.

The device is the driver `fault:sync`, held: what it has been given is all done when the loop looks again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import PATIENCE_S, FakeKernel, hold, release, submitted

from aiofs.dataplane import add_fault
from aiofs.faults import Fault, Kind

K = 4096
COUNT = 24
"""Requests at once."""
OTHER = 20
"""The node of another image."""
HANGS_NS = 5 * 10**9
LUMPS = 3
"""So many are seen before anything is held back."""


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """One whose requests are not merged: an io each."""
    fake = FakeKernel(merge=False)
    yield fake
    fake.close()


def send(kernel: FakeKernel, count: int = COUNT, apart: int = 1) -> dict[int, int]:
    """READs of a block each, by unique, while nothing is done; all that may be submitted is."""
    hold()
    uniques = {kernel.send_read(i * K, K): i for i in range(0, count * apart, apart)}
    kernel.settle()
    return uniques


def check(kernel: FakeKernel, image: Path, uniques: dict[int, int]) -> None:
    content = image.read_bytes()
    for unique, i in uniques.items():
        assert kernel.reply(unique) == (0, content[i * K :][:K])


def lumps(kernel: FakeKernel, image: Path, count: int = LUMPS) -> None:
    """The loop has seen so many."""
    kernel.register(image)
    for _ in range(count):
        uniques = send(kernel)
        release()
        check(kernel, image, uniques)


def halves(kernel: FakeKernel) -> int:
    return int(kernel.plane.counters()["halves"])


def test_all_goes_out_at_once_before_that_is_known(kernel: FakeKernel, image: Path) -> None:
    """Two lumps may be chance."""
    lumps(kernel, image, LUMPS - 1)
    before = len(submitted())
    uniques = send(kernel)
    assert len(submitted()) - before == COUNT
    release()
    check(kernel, image, uniques)
    assert halves(kernel) == 0


def test_half_is_held_back_until_the_other_half_is_done(kernel: FakeKernel, image: Path) -> None:
    """Twelve of 24 are in flight; the others go out when those are done, and all are answered."""
    lumps(kernel, image)
    before = len(submitted())
    uniques = send(kernel)
    assert len(submitted()) - before == COUNT // 2
    assert halves(kernel) > 0
    release()
    check(kernel, image, uniques)
    assert len(submitted()) - before == COUNT


def test_few_requests_are_not_held_back(kernel: FakeKernel, image: Path) -> None:
    """Eight are no more than a device does side by side."""
    lumps(kernel, image)
    before = len(submitted())
    uniques = send(kernel, 8)
    assert len(submitted()) - before == 8
    release()
    check(kernel, image, uniques)


def test_nobody_waits_for_an_io_that_hangs(kernel: FakeKernel, image: Path) -> None:
    """One of the first half is not done: the second half goes out when the rest of the first is."""
    lumps(kernel, image, 3 * LUMPS)  # of that the loop is sure
    add_fault(Fault(Kind.DELAY, HANGS_NS, ("read",), 0, K, 1, 1))
    uniques = send(kernel)
    hung = next(iter(uniques))
    release()
    check(kernel, image, {unique: i for unique, i in uniques.items() if unique != hung})
    assert not kernel.has_reply(hung)


def test_other_images_do_not_wait_for_a_lump(kernel: FakeKernel, image: Path) -> None:
    """However much of one is held back, another's requests go out: its device may be a better one."""
    lumps(kernel, image)
    kernel.register(image, node=OTHER)
    uniques = send(kernel)
    before = len(submitted())
    other = [kernel.send_read((100 + i) * K, K, node=OTHER) for i in range(4)]
    kernel.settle()
    assert [offset for _, offset, _ in submitted()[before:]] == [(100 + i) * K for i in range(4)]
    release()
    check(kernel, image, uniques)
    for i, unique in enumerate(other):
        assert kernel.reply(unique) == (0, image.read_bytes()[(100 + i) * K :][:K])


def test_requests_go_out_in_their_order(kernel: FakeKernel, image: Path) -> None:
    """Held back or not."""
    lumps(kernel, image)
    before = len(submitted())
    uniques = send(kernel)
    release()
    check(kernel, image, uniques)
    assert [offset for _, offset, _ in submitted()[before:]] == [i * K for i in range(COUNT)]


@pytest.mark.parametrize(("count", "first"), [(COUNT, COUNT // 2), (12, 12)])
def test_lumps_of_many_writes_are_halved(kernel: FakeKernel, image: Path, count: int, first: int) -> None:
    """Those of a few are not; and each WRITE is done."""
    kernel.register(image)
    for turn in range(LUMPS + 1):
        hold()
        before = len(submitted())
        uniques = [kernel.send_write(i * K, bytes([turn + i]) * K) for i in range(count)]
        kernel.settle()
        assert len(submitted()) - before == (count if turn < LUMPS else first)
        release()
        for unique in uniques:
            assert kernel.reply(unique)[0] == 0
        content = image.read_bytes()
        assert all(content[i * K :][:K] == bytes([turn + i]) * K for i in range(count))


def test_a_write_between_reads_keeps_its_place(kernel: FakeKernel, image: Path) -> None:
    """A READ behind a WRITE of the same block, both held back, sees it."""
    lumps(kernel, image)
    uniques = send(kernel, COUNT - 2)
    write = kernel.send_write(40 * K, b"w" * K)
    read = kernel.send_read(40 * K, K)
    kernel.settle()
    release()
    check(kernel, image, uniques)
    assert kernel.reply(write)[0] == 0
    assert kernel.reply(read) == (0, b"w" * K)


def test_a_server_that_is_stopped_finishes_what_it_held_back(kernel: FakeKernel, image: Path) -> None:
    """Half in flight, half held back: all is answered before the loop ends."""
    lumps(kernel, image)
    uniques = send(kernel)
    kernel.plane.stop()
    release()
    check(kernel, image, uniques)
    deadline = time.monotonic() + PATIENCE_S
    while kernel.plane.counters()["in_flight"]:
        assert time.monotonic() < deadline


def test_merged_requests_count_as_one(image: Path) -> None:
    """After a stream that was merged, lumps are seen as before it."""
    kernel = FakeKernel()
    try:
        kernel.register(image)
        _, ios = kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
        assert ios == [("read", 0, 4 * K)]
        for _ in range(LUMPS):
            uniques = send(kernel, apart=2)
            release()
            check(kernel, image, uniques)
        before = len(submitted())
        uniques = send(kernel, apart=2)
        assert len(submitted()) - before == COUNT // 2
        release()
        check(kernel, image, uniques)
    finally:
        kernel.close()
