"""driver.h, over every driver: one suite, so that no driver can have a contract of its own."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driving import FALLOCATE, FAULTY, FSYNC, NAMES, SEEK, TRUNCATE, Drivers, Instance

BLOCK = 4096

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE = 1, 2


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    return Drivers(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(params=(*NAMES, *FAULTY))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def aio(drivers: Drivers, name: str) -> Iterator[Instance]:
    """The driver, open at depth 32."""
    with drivers.open(name, 32) as instance:
        yield instance


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`opened(content, flags)`: a descriptor of a new file; closed at the end."""
    fds: list[int] = []

    def make(content: bytes = b"", flags: int = os.O_RDWR) -> int:
        path = tmp_path / f"file-{len(fds)}"
        path.write_bytes(content)
        fds.append(os.open(path, flags | os.O_CLOEXEC))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def descriptors() -> list[Path]:
    gc.collect()  # ledgers of earlier tests hold descriptors until they are collected
    return sorted(Path("/proc/self/fd").iterdir())


def test_the_table_holds_the_five_drivers_in_order(drivers: Drivers) -> None:
    """The suite's parameters are the table: each driver by itself, then each behind faults."""
    assert tuple(drivers.names()) == (*NAMES, *FAULTY)
    assert drivers.lib.aiofs_driver_listed_count == len(NAMES)


def test_each_accepted_io_comes_back_exactly_once(aio: Instance, opened: Callable[..., int]) -> None:
    """A full batch: 32 ios in, the same 32 out, then none."""
    fd = opened(bytes(32 * BLOCK))
    aio.attach(fd)
    ios = [aio.read(fd, i * BLOCK, BLOCK) for i in range(32)]
    assert aio.submit(*ios) == 32
    done = aio.finish(32)
    assert sorted(map(id, done)) == sorted(map(id, ios))
    assert aio.reap() == []


def test_reads_see_what_was_written(aio: Instance, opened: Callable[..., int]) -> None:
    """Blocks written in one batch, in no order, are read back in the next, each from its own place."""
    fd = opened()
    aio.attach(fd)
    blocks = {i: random.Random(i).randbytes(BLOCK) for i in random.Random(1).sample(range(100), 32)}
    writes = [aio.write(fd, i * BLOCK, data) for i, data in blocks.items()]
    assert aio.run(*writes) == [BLOCK] * 32
    reads = {i: aio.read(fd, i * BLOCK, BLOCK) for i in blocks}
    assert aio.run(*reads.values()) == [BLOCK] * 32
    assert {i: io.data for i, io in reads.items()} == blocks


def test_segments_are_written_and_read_in_order(aio: Instance, opened: Callable[..., int]) -> None:
    """A vector is one run of bytes, however it is cut: written in 5 segments, read in 3."""
    fd = opened()
    aio.attach(fd)
    parts = [bytes([65 + i]) * length for i, length in enumerate((1, 512, 4096, 7, 10000))]
    assert aio.run(aio.write(fd, 100, *parts)) == [14616]
    read = aio.read(fd, 100, 5000, 1, 9615)
    assert aio.run(read) == [14616]
    assert read.data == b"".join(parts)


def test_one_io_carries_1024_segments(aio: Instance, opened: Callable[..., int]) -> None:
    """IO_SEGMENTS_MAX segments, 1 MiB together: the most that a merge makes."""
    fd = opened()
    aio.attach(fd)
    data = random.Random(2).randbytes(1 << 20)
    segments = [data[i : i + 1024] for i in range(0, 1 << 20, 1024)]
    assert aio.run(aio.write(fd, 0, *segments)) == [1 << 20]
    read = aio.read(fd, 0, *[1024] * 1024)
    assert aio.run(read) == [1 << 20]
    assert read.data == data


def test_more_large_vectors_than_it_may_hold_all_get_done(aio: Instance, opened: Callable[..., int]) -> None:
    """64 vectors of 1 MiB through a driver of depth 32: what it does not accept at once, it accepts later."""
    fd = opened(b"x" * (1 << 20))
    aio.attach(fd)
    assert aio.run(*[aio.read(fd, 0, 1 << 19, 1 << 19) for _ in range(64)]) == [1 << 20] * 64


def test_a_read_at_the_end_of_the_file_gives_zero(aio: Instance, opened: Callable[..., int]) -> None:
    """At the end and far beyond it: 0 bytes, no error."""
    fd = opened(b"x" * 100)
    aio.attach(fd)
    assert aio.run(aio.read(fd, 100, 10), aio.read(fd, 1 << 40, 10)) == [0, 0]


def test_a_read_across_the_end_of_the_file_is_short(aio: Instance, opened: Callable[..., int]) -> None:
    """A driver gives what there is, in one segment and in several, and leaves the rest of them alone."""
    fd = opened(b"x" * 100)
    aio.attach(fd)
    one, several = aio.read(fd, 90, 50), aio.read(fd, 90, 4, 4, 4, 4)
    assert aio.run(one, several) == [10, 10]
    assert one.data == b"x" * 10 + bytes(40)
    assert several.data == b"x" * 10 + bytes(6)


def test_an_io_of_no_bytes_gives_zero(aio: Instance, opened: Callable[..., int]) -> None:
    """Nothing to read is no error."""
    fd = opened(b"x")
    aio.attach(fd)
    assert aio.run(aio.read(fd, 0, 0)) == [0]


def test_an_error_is_the_ios_own(aio: Instance, opened: Callable[..., int]) -> None:
    """In one batch a write to a read-only descriptor gives -EBADF, and its neighbours succeed."""
    good, read_only = opened(b"y" * 10), opened(b"", os.O_RDONLY)
    aio.attach(good)
    aio.attach(read_only)
    ios = [
        aio.read(good, 0, 10),
        aio.write(read_only, 0, b"x"),
        aio.read(good, 5, 10),
        aio.write(good, 0, b"z"),
    ]
    assert aio.run(*ios) == [10, -errno.EBADF, 5, 1]


def test_a_batch_that_is_refused_whole_comes_back(aio: Instance, opened: Callable[..., int]) -> None:
    """32 ios that the kernel will not have: each comes back with its error, and an edge says so."""
    fd = opened(b"", os.O_RDONLY)
    aio.attach(fd)
    assert aio.submit(*[aio.write(fd, 0, b"x") for _ in range(32)]) == 32
    assert aio.edge()
    assert [io.result for io in aio.finish(32)] == [-errno.EBADF] * 32


def test_a_negative_offset_is_einval(aio: Instance, opened: Callable[..., int]) -> None:
    """No driver takes -2 for something else. (-1 means the file's position to io_uring: not used.)"""
    fd = opened(b"x")
    aio.attach(fd)
    assert aio.run(aio.read(fd, -2, 1)) == [-errno.EINVAL]


def drop_cache(fd: int) -> None:
    """While the cache has pages of a file, a driver may say of direct I/O that it would block."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_misaligned_direct_io_is_einval(aio: Instance, opened: Callable[..., int]) -> None:
    """O_DIRECT at offset 1: the driver neither pads nor falls back, it reports."""
    try:
        fd = opened(bytes(8192), os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"O_DIRECT does not open here: {error}")
    drop_cache(fd)
    aio.attach(fd)
    assert aio.run(aio.read(fd, 1, 512)) == [-errno.EINVAL]


def test_a_write_past_the_largest_file_is_efbig(aio: Instance, opened: Callable[..., int]) -> None:
    """The file system's limit comes through as it is."""
    fd = opened()
    aio.attach(fd)
    assert aio.run(aio.write(fd, (1 << 63) - 4096 - 1, b"x")) == [-errno.EFBIG]


@contextmanager
def small_filesystem(path: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=True)
    try:
        yield
    finally:
        # Lazily: after a failed test the driver may still hold its file.
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_file_system_is_enospc(drivers: Drivers, name: str, tmp_path: Path) -> None:
    """The write that does not fit any more gets -ENOSPC; what was there stays readable."""
    with small_filesystem(tmp_path / "small"):
        fd = os.open(tmp_path / "small" / "a.img", os.O_RDWR | os.O_CREAT)
        with drivers.open(name, 4) as aio:
            aio.attach(fd)
            assert aio.run(aio.write(fd, 0, b"x" * 65536)) == [65536]
            assert aio.run(aio.write(fd, 65536, b"x" * 4096)) == [-errno.ENOSPC]
            assert aio.run(aio.read(fd, 0, 10)) == [10]
        os.close(fd)


def test_a_full_driver_accepts_a_prefix(drivers: Drivers, name: str, opened: Callable[..., int]) -> None:
    """Depth 4, six offered: the first four are accepted, and none more until one has been reaped."""
    fd = opened(bytes(6 * 512))
    with drivers.open(name, 4) as aio:
        aio.attach(fd)
        ios = [aio.read(fd, 512 * i, 512) for i in range(6)]
        assert aio.submit(*ios) == 4
        assert aio.submit(*ios[4:]) == 0
        while not (done := aio.reap(1)):
            assert aio.edge()
        assert done[0] in ios[:4]
        assert aio.submit(*ios[4:]) == 1


@pytest.mark.parametrize("depth", [1, 8192])
def test_the_limits_of_depth_work(
    drivers: Drivers, name: str, depth: int, opened: Callable[..., int]
) -> None:
    """Depth 1 and depth 8192: filled to the brim twice over."""
    fd = opened(bytes(range(256)) * 4)
    with drivers.open(name, depth) as aio:
        aio.attach(fd)
        ios = [aio.read(fd, i % 1024, 1) for i in range(2 * depth)]
        assert aio.run(*ios) == [1] * (2 * depth)
        assert all(io.data == bytes([i % 256]) for i, io in enumerate(ios))


def test_fsync_succeeds_or_says_why(aio: Instance, opened: Callable[..., int]) -> None:
    """0 on a file; -EINVAL on a pipe, which nothing can make durable."""
    if not aio.can(FSYNC):
        pytest.skip("this driver leaves fsync to threads; test_queue.py covers it")
    fd = opened(b"x")
    ends = os.pipe()
    aio.attach(fd)
    aio.attach(ends[1])
    assert aio.run(aio.fsync(fd), aio.fsync(ends[1])) == [0, -errno.EINVAL]
    aio.detach(ends[1])
    for end in ends:
        os.close(end)


def test_truncate_sets_the_size(aio: Instance, opened: Callable[..., int]) -> None:
    """Shorter and longer, to the byte."""
    if not aio.can(TRUNCATE):
        pytest.skip("this driver leaves truncate to threads; test_queue.py covers it")
    fd = opened(b"x" * 100)
    aio.attach(fd)
    for size in (7, 12345):
        assert aio.run(aio.truncate(fd, size)) == [0]
        assert os.fstat(fd).st_size == size


def test_fallocate_takes_and_gives_back_blocks(aio: Instance, opened: Callable[..., int]) -> None:
    """A hole reads as zeros and has no blocks; allocation makes the file longer; errors are results."""
    if not aio.can(FALLOCATE):
        pytest.skip("this driver leaves fallocate to threads; tests/plane/test_holes.py covers it")
    fd = opened(b"x" * (64 << 10))
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    aio.attach(fd)
    assert aio.run(aio.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK, 32 << 10)) == [0]
    assert os.fstat(fd).st_blocks == before - 64
    assert os.pread(fd, 34 << 10, BLOCK - 1) == b"x" + bytes(32 << 10) + b"x" * 2047
    assert aio.run(aio.fallocate(fd, 0, 64 << 10, 5)) == [0]
    assert os.fstat(fd).st_size == (64 << 10) + 5
    assert aio.run(aio.fallocate(fd, PUNCH_HOLE, 0, BLOCK)) == [-errno.EOPNOTSUPP]
    assert aio.run(aio.fallocate(fd, 0, 0, 0)) == [-errno.EINVAL]


def test_a_seek_finds_data_and_holes(aio: Instance, opened: Callable[..., int]) -> None:
    """The result is an offset; ENXIO behind the last data, and at the end of the file."""
    if not aio.can(SEEK):
        pytest.skip("this driver leaves lseek to threads; tests/plane/test_holes.py covers it")
    fd = opened()
    aio.attach(fd)
    os.pwrite(fd, b"x" * BLOCK, 1 << 20)
    os.ftruncate(fd, 2 << 20)
    seeks = [(0, os.SEEK_DATA), (0, os.SEEK_HOLE), (1 << 20, os.SEEK_HOLE), ((1 << 20) + BLOCK, os.SEEK_DATA)]
    found = aio.run(*[aio.seek(fd, offset, whence) for offset, whence in seeks])
    assert found == [1 << 20, 0, (1 << 20) + BLOCK, -errno.ENXIO]
    assert aio.run(aio.seek(fd, 2 << 20, os.SEEK_HOLE)) == [-errno.ENXIO]


def test_many_files_are_kept_apart(aio: Instance, opened: Callable[..., int]) -> None:
    """One hundred files in work at once: each read comes from its own."""
    contents = [f"file {i}".ljust(10).encode() for i in range(100)]
    fds = [opened(content) for content in contents]
    for fd in fds:
        aio.attach(fd)
    reads = [aio.read(fd, 0, 10) for fd in fds]
    assert aio.run(*reads) == [10] * 100
    assert [io.data for io in reads] == contents


def test_an_edge_follows_completions_that_nobody_polls_for(aio: Instance, opened: Callable[..., int]) -> None:
    """500 times: submit, sleep on the event alone, and the edge comes."""
    fd = opened(bytes(16 * BLOCK))
    aio.attach(fd)
    for round_ in range(500):
        n = 1 + round_ % 5
        assert aio.submit(*[aio.read(fd, i * BLOCK, BLOCK) for i in range(n)]) == n
        assert aio.edge(), f"no edge in round {round_}"
        aio.finish(n)


@pytest.mark.parametrize("faulty", FAULTY)
@pytest.mark.parametrize("kind", ["error", "delay"])
def test_an_edge_follows_what_a_fault_has_finished_or_put_off(
    drivers: Drivers, faulty: str, kind: str, opened: Callable[..., int]
) -> None:
    """No driver has worked on the one; the other starts when a timer says so."""
    fd = opened(bytes(BLOCK))
    drivers.lib.aiofs_fault_reset(1, 0)
    everything = {"ops": 63, "to": 1 << 62, "first": 1, "last": 1 << 62, "chance": 1 << 32}
    which, value = (0, -errno.EIO) if kind == "error" else (2, 2_000_000)
    fault = {**everything, "kind": which, "value": value}
    assert drivers.lib.aiofs_fault_add(drivers.ffi.new("aiofs_fault *", fault)) == 0
    with drivers.open(faulty, 4) as aio:
        aio.attach(fd)
        for _ in range(20):
            assert aio.submit(aio.read(fd, 0, BLOCK)) == 1
            assert aio.edge()
            [io] = aio.finish(1)
            assert io.result == (-errno.EIO if kind == "error" else BLOCK)
    drivers.lib.aiofs_fault_reset(1, 0)


def test_a_reap_smaller_than_what_is_ready_loses_nothing(aio: Instance, opened: Callable[..., int]) -> None:
    """Reaped one by one: 32 ios, 32 reaps of one, and edges enough to find them all."""
    fd = opened(bytes(BLOCK))
    aio.attach(fd)
    aio.submit(*[aio.read(fd, 0, BLOCK) for _ in range(32)])
    done = 0
    while done < 32:
        some = aio.reap(1)
        done += len(some)
        assert some or aio.edge(), f"lost edge after {done}"
    assert aio.reap() == []


def test_direct_reads_and_writes_work(aio: Instance, opened: Callable[..., int]) -> None:
    """O_DIRECT with aligned memory: the way a mount uses the driver when it can."""
    content = random.Random(3).randbytes(64 * BLOCK)
    try:
        fd = opened(content, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"O_DIRECT does not open here: {error}")
    drop_cache(fd)
    aio.attach(fd)
    memory = memoryview(mmap.mmap(-1, 32 * BLOCK))
    pages = [memory[i * BLOCK : (i + 1) * BLOCK] for i in range(32)]
    assert aio.run(*[aio.read_into(fd, i * BLOCK, page) for i, page in enumerate(pages)]) == [BLOCK] * 32
    assert bytes(memory) == content[: 32 * BLOCK]
    assert aio.run(aio.write(fd, 32 * BLOCK, *pages)) == [32 * BLOCK]
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == content[: 32 * BLOCK] * 2


def test_cancel_gives_each_io_to_one_side(aio: Instance, opened: Callable[..., int]) -> None:
    """Taken back or reaped, never both and never neither."""
    if aio.driver.cancel == aio.ffi.NULL:
        pytest.skip("this driver starts its ios at submit: nothing to take back")
    fd = opened(bytes(32 * BLOCK))
    aio.attach(fd)
    for _ in range(50):
        ios = [aio.read(fd, i * BLOCK, BLOCK) for i in range(32)]
        aio.submit(*ios)
        cancelled = [io for io in reversed(ios) if aio.cancel(io)]
        done = aio.finish(32 - len(cancelled))
        assert sorted(map(id, [*cancelled, *done])) == sorted(map(id, ios))
        assert aio.reap() == []


def test_open_and_close_leave_nothing_behind(drivers: Drivers, name: str, opened: Callable[..., int]) -> None:
    """Descriptors are the same after 20 lives with files attached; so is what attach took."""
    fd = opened(b"x")
    before = descriptors()
    for _ in range(20):
        with drivers.open(name, 8) as aio:
            for _ in range(5):
                aio.attach(fd)
                assert aio.run(aio.read(fd, 0, 1)) == [1]
                aio.detach(fd)
    assert descriptors() == before


def test_more_files_than_any_table_come_and_go(aio: Instance, opened: Callable[..., int]) -> None:
    """Attach and detach 10,000 times: slots are used again."""
    fd = opened(b"x")
    for _ in range(10_000):
        aio.attach(fd)
        aio.detach(fd)
    aio.attach(fd)
    assert aio.run(aio.read(fd, 0, 1)) == [1]


def test_detach_lets_go_of_the_file(aio: Instance, tmp_path: Path) -> None:
    """After detach and close another opener gets the lock at once: the driver keeps no reference."""
    path = tmp_path / "locked"
    path.write_bytes(b"x")
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    aio.attach(fd)
    assert aio.run(aio.read(fd, 0, 1)) == [1]
    aio.detach(fd)
    os.close(fd)
    other = os.open(path, os.O_RDWR)
    fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)
    os.close(other)
