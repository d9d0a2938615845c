"""The stand-in: does what comes alone in place, answers, and has the loop back for everything else."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import LOOKUP, PATIENCE_S, FakeKernel, answer, at_control_plane
from lone import SLOW, StandIn, system_call
from waiting import wait_until

K = 4096


@pytest.fixture
def slow(kernel: FakeKernel, tmp_path: Path) -> Iterator[StandIn]:
    """An image that the stand-in writes to, of which a WRITE can hang."""
    image = StandIn(kernel, tmp_path)
    yield image
    image.close()


def stood_in(kernel: FakeKernel) -> int:
    count: int = kernel.plane.counters()["stood_in"]
    return count


def by_stand_in(kernel: FakeKernel, image: Path, driver: str = "threads") -> None:
    """Have it at work for this image."""
    kernel.register(image, driver=driver, writes_by_threads=True)
    before = stood_in(kernel)
    deadline = time.monotonic() + PATIENCE_S
    while stood_in(kernel) < before + 3:
        assert kernel.write(0, image.read_bytes()[:K]) == K
        assert time.monotonic() < deadline, "it never answered"


@pytest.mark.parametrize("driver", ["threads", "sync"])
def test_what_comes_alone_is_as_it_was_sent(kernel: FakeKernel, image: Path, driver: str) -> None:
    """1,000 reads and writes of whole blocks and of parts, against a copy in memory; syncs among them."""
    by_stand_in(kernel, image, driver)
    chance = random.Random(2008)
    copy = bytearray(image.read_bytes())
    before = stood_in(kernel)
    for i in range(1000):
        length = chance.choice((K, K, K, 100, 3 * K))
        offset = chance.randrange(0, len(copy) - length)
        if chance.random() < 0.3:
            assert kernel.read(offset, length) == copy[offset : offset + length]
        else:
            data = chance.randbytes(length)
            copy[offset : offset + length] = data
            assert kernel.write(offset, data) == length
        if i % 100 == 0:
            kernel.fsync()
    assert image.read_bytes() == copy
    assert stood_in(kernel) - before > 100
    kernel.settle()  # a request is answered before it counts as done
    counted = kernel.counters()
    assert counted["requests_write"] == counted["ios_write"]
    assert counted["in_flight"] == kernel.plane.counters()["in_flight"] == 0


def test_a_sync_waits_for_what_it_does(kernel: FakeKernel, slow: StandIn) -> None:
    """FSYNC covers the WRITEs that came before it, whoever does them."""
    unique = slow.hang()
    sync = kernel.send_fsync(node=SLOW)
    kernel.settle()
    assert not kernel.has_reply(sync)
    slow.let_go(unique)
    assert kernel.reply(sync)[0] == 0


def test_what_overlaps_waits_for_what_it_does(kernel: FakeKernel, slow: StandIn) -> None:
    """A READ of what is being written brings what was written."""
    unique = slow.hang()
    read = kernel.send_read(K, K, node=SLOW)
    kernel.settle()
    assert not kernel.has_reply(read)
    slow.let_go(unique)
    assert kernel.reply(read) == (0, b"2" * K)


def test_an_error_is_its_requests_alone(kernel: FakeKernel, image: Path) -> None:
    """What the image says is the answer, and the next request is done."""
    by_stand_in(kernel, image)
    kernel.register(image, node=30, driver="threads", flags=os.O_RDONLY)
    for _ in range(20):
        assert kernel.reply(kernel.send_write(0, b"x" * K, node=30))[0] == -errno.EBADF
        assert kernel.read(K, K, node=30) == image.read_bytes()[K : 2 * K]
    assert kernel.counters(30)["errors"] == 20


def test_it_lets_the_loop_have_what_is_not_for_it(kernel: FakeKernel, image: Path) -> None:
    """Whatever comes when it has just answered: names, commands, other images, many at once."""
    by_stand_in(kernel, image)
    before = stood_in(kernel)
    for i in range(200):
        for _ in range(3):
            assert kernel.write(0, image.read_bytes()[:K]) == K
        if i % 4 == 0:
            lookup = kernel.send(LOOKUP, b"disk.img\0", node=1)
            assert at_control_plane(kernel).endswith(b"disk.img\0")
            answer(kernel, lookup, b"entry")
            assert kernel.reply(lookup) == (0, b"entry")
        elif i % 4 == 1:
            kernel.register(image, node=30, driver="io_uring")
            assert kernel.read(0, K, node=30) == image.read_bytes()[:K]
            kernel.unregister(30)
        elif i % 4 == 2:
            for unique in [kernel.send_read(block * K, K) for block in range(16)]:
                assert kernel.reply(unique)[0] == 0
        else:
            kernel.fsync()
    assert stood_in(kernel) - before > 100


def test_it_is_free_again_when_others_came_meanwhile(kernel: FakeKernel, image: Path, slow: StandIn) -> None:
    """Once it has been away and the loop has worked, it answers again."""
    kernel.register(image, driver="threads")
    for _ in range(10):
        unique = slow.hang()
        assert kernel.read(0, K) == image.read_bytes()[:K]
        slow.let_go(unique)
        before = stood_in(kernel)
        wait_until(lambda: bool(kernel.write(0, image.read_bytes()[:K])) and stood_in(kernel) > before)  # noqa: B023


def test_it_sleeps_when_nothing_comes(kernel: FakeKernel, image: Path) -> None:
    """Neither of the two threads runs on."""
    by_stand_in(kernel, image)
    sleeps = -1

    def is_settled() -> bool:
        nonlocal sleeps
        before, sleeps = sleeps, kernel.plane.counters()["sleeps"]
        return before == sleeps and "running" not in (
            system_call("aiofs-loop"),
            system_call("aiofs-stand-in"),
        )

    wait_until(is_settled)
    count = kernel.plane.counters()["sleeps"]
    time.sleep(0.2)
    assert kernel.plane.counters()["sleeps"] == count


@pytest.mark.parametrize("by_unmount", [False, True], ids=["stop", "unmount"])
def test_it_ends_with_the_loop(kernel: FakeKernel, image: Path, by_unmount: bool) -> None:
    """While it waits for messages in the loop's place."""
    by_stand_in(kernel, image)
    assert system_call("aiofs-stand-in") != "none"
    if by_unmount:
        kernel.fuse.shutdown(2)
    else:
        kernel.plane.stop()
    wait_until(lambda: system_call("aiofs-stand-in") == "none")
    wait_until(lambda: system_call("aiofs-loop") == "none")
