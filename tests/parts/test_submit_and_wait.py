"""submit_and_wait (driver.h), over every driver that has it: one io and a sleep in one system call."""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import NAMES, Drivers, Instance, Io

BLOCK = 4096
FDS = 4


class Bells:
    """Pipes that can be read when they are rung: what submit_and_wait heeds beside its io."""

    def __init__(self) -> None:
        self.pipes = [os.pipe() for _ in range(FDS)]
        self.fds = [read_end for read_end, _ in self.pipes]

    def ring(self, n: int) -> None:
        os.write(self.pipes[n][1], b"!")

    def hush(self, n: int) -> None:
        assert os.read(self.pipes[n][0], 1) == b"!"

    def close(self) -> None:
        for pipe in self.pipes:
            for fd in pipe:
                os.close(fd)


class Slow:
    """A file whose reads wait until there is something: a pipe."""

    def __init__(self) -> None:
        self.fd, self._write_end = os.pipe()

    def give(self, data: bytes) -> None:
        os.write(self._write_end, data)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_end)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    return Drivers(tmp_path_factory.mktemp("drivers"))


@pytest.fixture
def bells() -> Iterator[Bells]:
    bells = Bells()
    yield bells
    bells.close()


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file of random bytes."""
    path = tmp_path / "image"
    path.write_bytes(random.Random(5).randbytes(16 * BLOCK))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(params=["io_uring"])
def aio(drivers: Drivers, request: pytest.FixtureRequest) -> Iterator[Instance]:
    """The driver, open at depth 8."""
    with drivers.open(request.param, 8) as instance:
        yield instance


def polls() -> int:
    """How many descriptors the rings of this process are polling."""
    texts = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if str(fd.readlink()) == "anon_inode:[io_uring]":
                texts.append(Path("/proc/self/fdinfo", fd.name).read_text())
        except FileNotFoundError:  # of the directory's own listing
            continue
    return sum(len(re.findall(r"op=6\b", text)) for text in texts)


def test_these_drivers_have_it(drivers: Drivers) -> None:
    """Those of the fixture above, and no others."""
    have = []
    for name in NAMES:
        with drivers.open(name, 1) as instance:
            if instance.waits():
                have.append(name)
    assert have == ["io_uring"]


def test_it_wakes_when_the_io_has_finished(aio: Instance, bells: Bells, image: int) -> None:
    """500 times: when it returns, and no bell has rung, the io is there to be reaped."""
    aio.attach(image)
    data = os.pread(image, 16 * BLOCK, 0)
    for i in range(500):
        io = aio.read(image, i % 16 * BLOCK, BLOCK)
        assert aio.submit_and_wait(io, bells.fds) == 0
        assert aio.finish(1) == [io]
        assert (io.result, io.data) == (BLOCK, data[i % 16 * BLOCK :][:BLOCK])


def test_an_io_that_fails_wakes_it(aio: Instance, bells: Bells, tmp_path: Path) -> None:
    """The error is the io's, as always."""
    fd = os.open(tmp_path, os.O_RDONLY)
    aio.attach(fd)
    io = aio.read(fd, 0, BLOCK)
    assert aio.submit_and_wait(io, bells.fds) == 0
    assert [done.result for done in aio.finish(1)] == [-errno.EISDIR]
    aio.detach(fd)
    os.close(fd)


@pytest.mark.parametrize("n", range(FDS))
def test_each_descriptor_wakes_it(aio: Instance, bells: Bells, slow: Slow, n: int) -> None:
    """While the io is not done; again when nobody has read it; and no more when somebody has."""
    aio.attach(slow.fd)
    for _ in range(3):
        for was_read in (False, True):
            if not was_read:
                bells.ring(n)
            io = aio.read(slow.fd, 0, 1)
            assert aio.submit_and_wait(io, bells.fds) == 1 << n
            assert aio.reap() == []
            slow.give(b"x")
            assert aio.finish(1) == [io]
        bells.hush(n)
        slow.give(b"y")
        io = aio.read(slow.fd, 0, 1)
        assert aio.submit_and_wait(io, bells.fds) == 0
        assert aio.finish(1) == [io]
        assert io.data == b"y"


def test_what_rang_between_two_calls_is_heard(aio: Instance, bells: Bells, slow: Slow, image: int) -> None:
    """The polls of the call before are there still; a bell that has been read since says nothing."""
    aio.attach(slow.fd)
    aio.attach(image)
    for round_ in range(50):
        n = round_ % FDS
        io = aio.read(image, 0, BLOCK)
        assert aio.submit_and_wait(io, bells.fds) == 0
        assert aio.finish(1) == [io]
        bells.ring(n)
        if round_ % 2:
            io = aio.read(slow.fd, 0, 1)
            assert aio.submit_and_wait(io, bells.fds) == 1 << n
            slow.give(b"x")
            assert aio.finish(1) == [io]
        bells.hush(n)


def test_what_finishes_after_it_gives_an_edge(aio: Instance, bells: Bells, slow: Slow) -> None:
    """Woken by a bell, with the io still in flight, its end is an edge like any other."""
    aio.attach(slow.fd)
    for _ in range(200):
        bells.ring(1)
        io = aio.read(slow.fd, 0, 1)
        aio.submit_and_wait(io, bells.fds)
        bells.hush(1)
        aio.reap()
        slow.give(b"x")
        assert aio.edge()
        assert aio.finish(1) == [io]


def test_the_polls_are_removed_when_they_are_of_no_use(aio: Instance, bells: Bells, image: int) -> None:
    """After 64 submits of the other kind. Rounds of both kinds lose nothing."""
    aio.attach(image)
    for _ in range(20):
        assert aio.submit_and_wait(aio.read(image, 0, BLOCK), bells.fds) == 0
        aio.finish(1)
        assert polls() == FDS
        for _ in range(70):
            assert aio.run(*[aio.read(image, i * BLOCK, BLOCK) for i in range(8)]) == [BLOCK] * 8
        assert polls() == 0


def test_any_order_of_calls_loses_nothing(aio: Instance, bells: Bells, image: int) -> None:
    """2,000 steps, seeded: each io comes back once, with its bytes, whatever rings meanwhile."""
    aio.attach(image)
    data = os.pread(image, 16 * BLOCK, 0)
    dice = random.Random(20080426)
    rung: set[int] = set()
    steps: list[Callable[[], None]] = []

    def offsets(n: int) -> list[int]:
        return [dice.randrange(16) * BLOCK for _ in range(n)]

    def checked(ios: list[Io], wanted: list[int]) -> None:
        for io, offset in zip(ios, wanted, strict=True):
            assert (io.result, io.data) == (BLOCK, data[offset : offset + BLOCK])

    def alone() -> None:
        [offset] = offsets(1)
        io = aio.read(image, offset, BLOCK)
        mask = aio.submit_and_wait(io, bells.fds)
        assert {n for n in range(FDS) if mask >> n & 1} <= rung
        assert aio.finish(1) == [io]
        checked([io], [offset])

    def several() -> None:
        wanted = offsets(dice.randint(1, 8))
        ios = [aio.read(image, offset, BLOCK) for offset in wanted]
        aio.run(*ios)
        checked(ios, wanted)

    def ring() -> None:
        n = dice.randrange(FDS)
        if n not in rung:
            bells.ring(n)
            rung.add(n)

    def hush() -> None:
        if rung:
            n = dice.choice(sorted(rung))
            bells.hush(n)
            rung.remove(n)

    steps = [alone, alone, several, ring, hush]
    for _ in range(2000):
        dice.choice(steps)()
