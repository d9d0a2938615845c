"""measure: every driver under the closed loop; what is counted is what happened."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiofs.bench.order import disorder, numbers_in
from aiofs.dataplane import Io, Op, Queue, add_fault, driver_names, set_faults
from aiofs.dataplane.binding import ffi, lib
from aiofs.dataplane.measure import Load, Stop, measure
from aiofs.faults import Fault, Kind, Plan

BLOCK = 4096
BLOCKS = 256
MS = 10**6


@pytest.fixture(params=driver_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 1 MiB, each block filled with its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(BLOCKS)))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.fixture
def faults() -> Iterator[None]:
    """Nothing goes wrong on purpose, but what the test asks for."""
    set_faults(Plan())
    yield
    set_faults(Plan())


def load(op: Op, **more: object) -> Load:
    """Depth 8, the whole file."""
    return Load(**{"op": op, "depth": 8, "block_size": BLOCK, "end": BLOCKS * BLOCK, **more})  # type: ignore[arg-type]


def submitted() -> list[tuple[int, int, int]]:
    """Offset, segments and batch of each io that the fault driver was given."""
    log = ffi.new("aiofs_fault_entry[]", 4096)
    return [(log[i].offset, log[i].segments, log[i].batch) for i in range(lib.aiofs_fault_log(log, 4096))]


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
@pytest.mark.parametrize("random", [False, True])
def test_so_many_requests_are_done_as_were_asked_for(name: str, fd: int, op: Op, random: bool) -> None:
    """Counts, and the order of the latencies."""
    done = measure(name, fd, load(op, random=random, count=1000), Stop())
    assert (done.requests, done.ios, done.errors, done.error) == (1000, 1000, 0, 0)
    assert 1000 / 8 <= done.submits <= 1000
    assert 0 < done.p50_ns <= done.p99_ns <= done.max_ns <= done.elapsed_ns
    assert 0 < done.submit_max_ns <= done.submit_ns <= done.elapsed_ns
    assert os.fstat(fd).st_size == BLOCKS * BLOCK


def test_sequential_writes_reach_every_block_with_its_number(name: str, fd: int) -> None:
    """Block n of the file begins with n, in every driver: offsets and contents belong together."""
    done = measure(name, fd, load(Op.WRITE, numbered=True, count=BLOCKS), Stop())
    assert done.requests == BLOCKS
    assert numbers_in(fd, BLOCK) == list(range(BLOCKS))


def test_a_run_ends_with_its_time(name: str, fd: int) -> None:
    """And what was counted is not less than was asked for."""
    done = measure(name, fd, load(Op.READ, warm_up_s=0.01, duration_s=0.02), Stop())
    assert done.elapsed_ns >= 20 * MS
    assert done.requests > 0


def test_a_run_without_end_is_stopped_from_another_thread(name: str, fd: int) -> None:
    """Nothing is in flight when it returns: the file can be closed and its memory given back."""
    stop = Stop()
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.append(measure(name, fd, load(Op.WRITE), stop).errors), daemon=True
    )
    thread.start()
    stop.set()
    thread.join(20)
    assert results == [0]


@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failure_ends_the_run_and_is_counted(fd: int, code: int) -> None:
    """The errno is that of the request that failed."""
    add_fault(Fault(Kind.ERROR, code, ("write",), end=BLOCK, last=1))
    done = measure("fault:sync", fd, load(Op.WRITE), Stop())
    assert (done.errors, done.error) == (1, -code)


@pytest.mark.usefixtures("faults")
def test_a_short_request_is_a_failure(fd: int) -> None:
    """ENODATA: a benchmark of half requests would be no benchmark."""
    add_fault(Fault(Kind.SHORT, 512, ("read",), end=BLOCK, last=1))
    assert measure("fault:sync", fd, load(Op.READ), Stop()).error == -errno.ENODATA


@pytest.mark.usefixtures("faults")
def test_sequential_requests_follow_each_other_and_begin_again(fd: int) -> None:
    """Three rounds over a range of four blocks in the middle of the file."""
    measure("fault:sync", fd, load(Op.READ, depth=1, start=8 * BLOCK, end=12 * BLOCK, count=12), Stop())
    assert [offset // BLOCK for offset, _, _ in submitted()] == [8, 9, 10, 11] * 3


@pytest.mark.usefixtures("faults")
def test_random_requests_are_those_of_their_seed(fd: int) -> None:
    """The same twice, others with another seed, all within the range and on whole blocks."""

    def offsets(seed: int) -> list[int]:
        set_faults(Plan())
        measure("fault:sync", fd, load(Op.READ, random=True, start=BLOCK, count=500, seed=seed), Stop())
        return [offset for offset, _, _ in submitted()]

    first = offsets(1)
    assert first == offsets(1) != offsets(2)
    assert {offset % BLOCK for offset in first} == {0}
    assert min(first) >= BLOCK
    assert max(first) < BLOCKS * BLOCK
    assert len(set(first)) > 100


@pytest.mark.usefixtures("faults")
def test_merged_requests_are_one_io_and_are_counted_each(fd: int) -> None:
    """A batch of eight neighbours is one io of eight segments; without merging it is eight ios."""
    done = measure("fault:sync", fd, load(Op.READ, merge=True, count=64), Stop())
    assert (done.requests, done.ios, done.submits) == (64, 8, 8)
    assert {segments for _, segments, _ in submitted()} == {8}
    assert measure("fault:sync", fd, load(Op.READ, count=64), Stop()).ios == 64


def test_merged_writes_have_the_bytes_of_each_request(name: str, fd: int) -> None:
    """Every driver puts the segments where the requests wanted them."""
    measure(name, fd, load(Op.WRITE, merge=True, numbered=True, count=BLOCKS), Stop())
    assert numbers_in(fd, BLOCK) == list(range(BLOCKS))


def test_a_driver_that_works_in_the_submitters_thread_is_seen_to(fd: int) -> None:
    """`sync` spends its time inside submit: all that is done outside is to count."""
    done = measure("sync", fd, load(Op.WRITE, block_size=1 << 16, count=500), Stop())
    assert done.submit_ns > done.elapsed_ns / 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 1025},
        {"block_size": 1000},
        {"block_size": 2 << 20},
        {"end": BLOCK - 1},
        {"start": -1},
        {"op": Op.FSYNC},
    ],
)
def test_limits_are_kept_by_c(fd: int, wrong: dict[str, object]) -> None:
    """A load outside of them is refused before anything is opened."""
    with pytest.raises(ValueError, match="limits"):
        measure("sync", fd, load(**{"op": Op.READ, "count": 1, **wrong}), Stop())  # type: ignore[arg-type]


# -- the order detector --


def appended(tmp_path: Path, numbers: list[int], driver: str = "sync") -> int:
    """A file to which blocks with these numbers were appended, submitted in this order."""
    fd = os.open(tmp_path / "appended", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with Queue(driver, len(numbers)) as queue:
        queue.attach(fd)
        blocks = [number.to_bytes(8, "little").ljust(BLOCK, b"x") for number in numbers]
        queue.submit([Io(i, Op.WRITE, fd, 0, block) for i, block in enumerate(blocks)])
        queue.flush(20)
    return fd


def test_an_appending_descriptor_keeps_the_order_of_arrival(tmp_path: Path) -> None:
    """The detector finds no disorder in a sequential stream, and half or all of it where it is."""
    for numbers, late, displacement in (
        (list(range(32)), 0, 0),
        (list(range(31, -1, -1)), 31 / 32, 31),
        ([1, 0, 3, 2], 0.5, 1),
        ([3, 0, 1, 2], 0.75, 3),
    ):
        fd = appended(tmp_path, numbers)
        found = disorder(numbers_in(fd, BLOCK))
        os.close(fd)
        (tmp_path / "appended").unlink()
        assert (found.late, found.displacement) == (late, displacement)


@pytest.mark.parametrize("name", ["io_uring", "linux", "sync"])
def test_drivers_that_keep_the_order_are_seen_to(tmp_path: Path, name: str) -> None:
    """Through the closed loop, at depth 32."""
    fd = os.open(tmp_path / "appended", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    measure(name, fd, load(Op.WRITE, depth=32, numbered=True, count=BLOCKS), Stop())
    assert disorder(numbers_in(fd, BLOCK)).late == 0
    os.close(fd)


def test_a_file_that_was_not_appended_to_is_no_answer() -> None:
    """A block missing or twice: the file system ignores O_APPEND, and the order says nothing."""
    with pytest.raises(ValueError, match="O_APPEND"):
        disorder([0, 1, 1])
    with pytest.raises(ValueError, match="O_APPEND"):
        disorder([0, 2])
    assert disorder([]).late == 0
