"""The fault drivers, each around its driver: what the plan says happens, and nothing else does."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiofs.dataplane import Completion, Io, Op, Queue, add_fault, driver_names, fault_counts, set_faults
from aiofs.faults import HALF, Fault, Kind, Plan, parse

K = 4096
BLOCKS = 64


@pytest.fixture(params=driver_names())
def name(request: pytest.FixtureRequest) -> str:
    return f"fault:{request.param}"


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 64 blocks, each filled with its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * K for number in range(BLOCKS)))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.fixture(autouse=True)
def without_faults() -> Iterator[None]:
    """Nothing goes wrong but what the test asks for, nor after it."""
    set_faults(Plan())
    yield
    set_faults(Plan())


def plan(words: str) -> Plan:
    """The plan of `fault:sync,WORDS`, set up."""
    made = parse(f"fault:sync,{words}")[1]
    set_faults(made)
    return made


def reads(fd: int, count: int) -> list[Io]:
    """Of the first blocks, with the block's number for id."""
    return [Io(number, Op.READ, fd, number * K, bytearray(K)) for number in range(count)]


def finish(queue: Queue, ios: list[Io]) -> list[Completion]:
    """Submit, and wait for all; in the order in which they came back."""
    assert queue.submit(ios) == len(ios)
    try:
        queue.flush(20)
    except TimeoutError:
        for io in ios:  # so that the end of the queue does not wait for them
            with contextlib.suppress(OSError):
                queue.cancel(io.id)
        raise
    return queue.reap(timeout=0)


def results(queue: Queue, ios: list[Io]) -> list[int]:
    """The same; results in the order of submission."""
    found = {done.io.id: done.result for done in finish(queue, ios)}
    return [found[io.id] for io in ios]


def test_without_a_plan_nothing_happens(name: str, fd: int) -> None:
    """Bytes and results are the driver's."""
    with Queue(name, 32) as queue:
        queue.attach(fd)
        ios = reads(fd, 32)
        assert results(queue, ios) == [K] * 32
        assert [bytes(io.buffer or b"")[:1] for io in ios] == [bytes([i]) for i in range(32)]
    assert fault_counts(Plan()).ios == 32


def test_an_error_strikes_the_operation_of_its_number(name: str, fd: int) -> None:
    """The third write, wherever it is among others; it is not done, and the fault is counted once."""
    made = plan("error=EIO,on=write,op=3")
    with Queue(name, 32) as queue:
        queue.attach(fd)
        ios = [Io(i, Op.WRITE if i % 2 else Op.READ, fd, i * K, bytearray(b"w" * K)) for i in range(12)]
        assert results(queue, ios) == [-errno.EIO if i == 5 else K for i in range(12)]
    assert os.pread(fd, 1, 5 * K) == b"\5"
    assert os.pread(fd, 1, 7 * K) == b"w"
    assert fault_counts(made).struck == (1,)


def test_fsync_and_truncate_meet_their_faults_too(name: str, fd: int) -> None:
    """Though most drivers leave them to threads."""
    plan("error=EIO,on=fsync,error=ENOSPC,on=truncate,op=1")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        assert results(queue, [Io(1, Op.FSYNC, fd)]) == [-errno.EIO]
        assert results(queue, [Io(1, Op.TRUNCATE, fd, K)]) == [-errno.ENOSPC]
        assert os.fstat(fd).st_size == BLOCKS * K
        assert results(queue, [Io(1, Op.TRUNCATE, fd, K)]) == [0]
    assert os.fstat(fd).st_size == K


def test_a_short_read_leaves_rubbish_behind_its_end(name: str, fd: int) -> None:
    """Whoever takes it for data is found out."""
    plan("short=1000,on=read,op=1")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        [io] = reads(fd, 1)
        assert results(queue, [io]) == [1000]
        assert bytes(io.buffer or b"") == bytes(1000) + b"\xdb" * (K - 1000)


def test_a_short_write_writes_no_more_than_it_says(name: str, fd: int) -> None:
    """Half, in whole sectors; what is shorter than the limit, and one byte, is left alone."""
    plan("short,on=write,op=1-3,short=100,on=write")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        lengths = [K, 1536, 3, 1, 100, 101]
        ios = [Io(i, Op.WRITE, fd, i * K, b"w" * length) for i, length in enumerate(lengths)]
        assert results(queue, ios) == [2048, 512, 1, 1, 100, 100]
    for number, written in enumerate([2048, 512, 1, 1, 100, 100]):
        assert os.pread(fd, written + 1, number * K) == b"w" * written + bytes([number])


def test_a_short_direct_write_is_whole_blocks(name: str, fd: int, tmp_path: Path) -> None:
    """A device that takes whole blocks only takes them, whatever is told."""
    try:
        direct = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on {tmp_path}: {error.strerror}")
    plan("short=512,on=write")
    with Queue(name, 8) as queue, mmap.mmap(-1, 2 * K) as memory:
        memory.write(b"w" * 2 * K)
        queue.attach(direct)
        assert results(queue, [Io(1, Op.WRITE, direct, 0, memory)]) == [512]
    os.close(direct)
    assert os.pread(fd, 2 * K, 0) == b"w" * K + b"\1" * K


def test_the_first_fault_that_strikes_is_the_one_that_counts(name: str, fd: int) -> None:
    """Two faults of the first read strike the first and the second."""
    made = plan("error=EIO,on=read,op=1,error=ENOSPC,on=read,op=1")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        assert results(queue, reads(fd, 3)) == [-errno.EIO, -errno.ENOSPC, K]
    assert fault_counts(made).struck == (1, 1)


def test_a_bad_range_fails_whoever_touches_it(name: str, fd: int) -> None:
    """And no neighbour."""
    plan("error=EIO,from=8K,to=12K")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        assert results(queue, reads(fd, 4)) == [K, K, -errno.EIO, K]
        wide = Io(9, Op.READ, fd, 3 * K - 1, bytearray(2))
        beside = Io(10, Op.READ, fd, 3 * K, bytearray(2))
        assert results(queue, [wide, beside]) == [-errno.EIO, 2]


def test_a_delay_passes_for_that_one_only(name: str, fd: int) -> None:
    """The others overtake it, and it takes no less than it should."""
    plan("delay=30ms,op=1")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        start = time.monotonic()
        assert [done.io.id for done in finish(queue, reads(fd, 4))][-1] == 0
        assert time.monotonic() - start >= 0.03


def test_during_a_stall_nothing_starts(name: str, fd: int) -> None:
    """Not what comes later either; then all goes on."""
    plan("stall=30ms,op=2")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        assert results(queue, [Io(0, Op.READ, fd, 0, bytearray(K))]) == [K]
        start = time.monotonic()
        queue.submit([Io(1, Op.READ, fd, 0, bytearray(K))])
        assert results(queue, [Io(2, Op.READ, fd, 0, bytearray(K))]) == [K]
        assert time.monotonic() - start >= 0.03


def test_a_held_io_can_be_taken_back(name: str, fd: int) -> None:
    """It has not been started; another one has, and cannot."""
    plan("delay=3600s,op=1")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        queue.submit(reads(fd, 2))
        assert [done.io.id for done in queue.reap(timeout=20)] == [1]
        assert queue.cancel(0)
        assert queue.in_flight == 0


def test_any_order_is_another_one_and_that_of_its_seed(fd: int) -> None:
    """With `sync`, which has an order of its own."""

    def order(words: str) -> list[int]:
        plan(words)
        with Queue("fault:sync", 32) as queue:
            queue.attach(fd)
            return [done.io.id for done in finish(queue, reads(fd, 32))]

    straight = list(range(32))
    assert order("seed=1") == straight
    assert order("reorder") == order("reorder,seed=1") != straight
    assert sorted(order("reorder")) == straight
    assert order("reorder,seed=2") not in (straight, order("reorder,seed=1"))


def test_chance_is_that_of_its_seed(fd: int) -> None:
    """The same seed strikes the same numbers; about as many as the probability says."""

    def struck(words: str) -> list[bool]:
        plan(words)
        with Queue("fault:sync", 1000) as queue:
            queue.attach(fd)
            ios = [Io(i, Op.READ, fd, 0, bytearray(1)) for i in range(1000)]
            return [result < 0 for result in results(queue, ios)]

    first = struck("error=EIO,probability=0.1,seed=5")
    assert first == struck("error=EIO,probability=0.1,seed=5") != struck("error=EIO,probability=0.1,seed=6")
    assert 50 < sum(first) < 150
    assert sum(struck("error=EIO,probability=0")) == 0
    assert sum(struck("error=EIO,probability=1")) == 1000


def test_overlapping_changes_in_flight_are_counted(name: str, fd: int, tmp_path: Path) -> None:
    """A write with a read or a write of the same bytes, by whatever descriptor; two reads do no harm."""
    made = plan("delay=5ms")
    other = os.open(tmp_path / "disk.img", os.O_RDONLY)
    with Queue(name, 8) as queue:
        queue.attach(fd)
        queue.attach(other)
        results(queue, [Io(0, Op.READ, fd, 0, bytearray(K)), Io(1, Op.READ, fd, 10, bytearray(K))])
        results(queue, [Io(0, Op.WRITE, fd, 0, b"w" * K), Io(1, Op.WRITE, fd, K, b"w" * K)])
        assert fault_counts(made).overlaps == 0
        results(queue, [Io(0, Op.WRITE, fd, 0, b"w" * K), Io(1, Op.READ, other, K - 1, bytearray(K))])
        assert fault_counts(made).overlaps == 1
        results(queue, [Io(0, Op.TRUNCATE, fd, BLOCKS * K), Io(1, Op.READ, fd, 50 * K, bytearray(K))])
        assert fault_counts(made).overlaps == 2
    os.close(other)


def test_more_faults_than_there_is_room_for_are_refused() -> None:
    """64, as the words allow."""
    set_faults(Plan((Fault(Kind.SHORT, HALF, ("read",)),) * 64))
    with pytest.raises(ValueError, match="more than 64"):
        add_fault(Fault(Kind.SHORT, HALF, ("read",)))
