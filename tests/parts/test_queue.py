"""Queue: a driver made whole, over every driver."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiofs.dataplane import Completion, Io, Op, Queue, driver_names, drivers

BLOCK = 4096


@pytest.fixture(params=driver_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


def finish(queue: Queue) -> dict[int, int]:
    """Flush and reap everything: results by id."""
    queue.flush(20)
    return {done.io.id: done.result for done in queue.reap(timeout=0)}


def test_every_driver_works_on_this_machine() -> None:
    """What the other tests run on is what the probes say."""
    assert [(status.name, status.reason) for status in drivers() if not status.works] == []


def test_all_four_operations_work_on_every_driver(name: str, opened: Callable[..., int]) -> None:
    """A driver without fsync or truncate has `threads` do it: nobody can tell from outside."""
    fd = opened(b"x" * BLOCK)
    with Queue(name, 8) as queue:
        queue.attach(fd)
        buffer = bytearray(BLOCK)
        queue.submit([Io(1, Op.WRITE, fd, 0, b"y" * BLOCK)])
        assert finish(queue) == {1: BLOCK}
        queue.submit([Io(1, Op.READ, fd, 0, buffer), Io(2, Op.FSYNC, fd), Io(3, Op.TRUNCATE, fd, 3 * BLOCK)])
        assert finish(queue) == {1: BLOCK, 2: 0, 3: 0}
        assert buffer == b"y" * BLOCK
        assert os.fstat(fd).st_size == 3 * BLOCK


def test_a_mixed_batch_is_parted_and_complete(name: str, opened: Callable[..., int]) -> None:
    """300 reads, fsyncs and truncates in one batch: more than the second lane holds, all come back."""
    fd = opened(b"x" * BLOCK)
    kinds = [Op.READ, Op.FSYNC, Op.TRUNCATE] * 100
    random.Random(4).shuffle(kinds)
    with Queue(name, 300) as queue:
        queue.attach(fd)
        ios = [Io(i, op, fd, 0, bytearray(1)) for i, op in enumerate(kinds) if op == Op.READ]
        ios += [Io(i, op, fd, BLOCK) for i, op in enumerate(kinds) if op != Op.READ]
        random.Random(5).shuffle(ios)
        assert queue.submit(ios) == 300
        assert finish(queue) == {i: int(op == Op.READ) for i, op in enumerate(kinds)}


def test_a_full_queue_accepts_a_prefix(name: str, opened: Callable[..., int]) -> None:
    """Depth 4: four of six are accepted, then none, then as many as were reaped."""
    fd = opened(b"x" * 100)
    with Queue(name, 4) as queue:
        queue.attach(fd)
        ios = [Io(i, Op.READ, fd, i, bytearray(1)) for i in range(6)]
        assert queue.submit(ios) == 4
        assert queue.in_flight == 4
        assert queue.submit(ios[4:]) == 0
        queue.flush(20)
        assert queue.submit(ios[4:]) == 0, "finished and not reaped still counts"
        [done] = queue.reap(max=1)
        assert done.io in ios[:4]
        assert queue.submit(ios[4:]) == 1


def test_flush_waits_for_all_and_leaves_the_results(name: str, opened: Callable[..., int]) -> None:
    """After flush everything has finished, is still counted, and is reaped without waiting."""
    fd = opened(bytes(256 * BLOCK))
    with Queue(name, 256) as queue:
        queue.attach(fd)
        queue.submit([Io(i, Op.READ, fd, i * BLOCK, bytearray(BLOCK)) for i in range(256)])
        queue.flush(20)
        assert queue.in_flight == 256
        assert len(queue.reap(timeout=0)) == 256
        assert queue.in_flight == 0


def test_reap_of_an_idle_queue_returns_at_once(name: str) -> None:
    """With nothing in flight there is nothing to wait for, even without a limit."""
    with Queue(name, 1) as queue:
        assert queue.reap() == []
        queue.flush()


def test_errors_are_results(name: str, opened: Callable[..., int]) -> None:
    """EBADF of a read-only descriptor is the io's result; submit and reap raise nothing."""
    fd = opened(b"x", os.O_RDONLY)
    with Queue(name, 2) as queue:
        queue.attach(fd)
        io = Io(7, Op.WRITE, fd, 0, b"y")
        queue.submit([io])
        assert queue.reap(timeout=20) == [Completion(io, -errno.EBADF)]


def test_misuse_of_ids_and_descriptors_is_refused_whole(name: str, opened: Callable[..., int]) -> None:
    """An id used twice and a descriptor not attached: OSError, and not one io of the batch was accepted."""
    fd, other = opened(b"x" * 9), opened(b"x")
    with Queue(name, 8) as queue:
        queue.attach(fd)
        good = Io(1, Op.READ, fd, 0, bytearray(1))
        for bad, number in (
            (Io(1, Op.READ, fd, 0, bytearray(1)), errno.EEXIST),
            (Io(2, Op.READ, other, 0, bytearray(1)), errno.EBADF),
        ):
            with pytest.raises(OSError) as caught:
                queue.submit([good, bad])
            assert caught.value.errno == number
            assert queue.in_flight == 0
        assert queue.submit([good]) == 1
        assert finish(queue) == {1: 1}


def test_attach_and_detach_check_their_descriptor(name: str, opened: Callable[..., int]) -> None:
    """EEXIST for a second attach, EBADF for a detach of nothing, EBUSY while ios are in flight."""
    fd = opened(b"x")
    with Queue(name, 2) as queue:
        queue.attach(fd)
        with pytest.raises(FileExistsError):
            queue.attach(fd)
        queue.submit([Io(1, Op.READ, fd, 0, bytearray(1))])
        with pytest.raises(OSError) as busy:
            queue.detach(fd)
        assert busy.value.errno == errno.EBUSY
        finish(queue)
        queue.detach(fd)
        with pytest.raises(OSError) as bad:
            queue.detach(fd)
        assert bad.value.errno == errno.EBADF


def test_cancel_takes_back_or_says_it_cannot(name: str, opened: Callable[..., int]) -> None:
    """Each io is taken back or reaped; what is cancelled is not counted; an id that is gone is ENOENT."""
    fd = opened(b"x" * BLOCK)
    with Queue(name, 500) as queue:
        queue.attach(fd)
        queue.submit([Io(i, Op.FSYNC, fd) for i in range(500)])
        cancelled = {i for i in range(499, -1, -1) if queue.cancel(i)}
        assert queue.in_flight == 500 - len(cancelled)
        assert set(finish(queue)) == set(range(500)) - cancelled
        with pytest.raises(FileNotFoundError):
            queue.cancel(0)


def test_a_finished_io_cannot_be_cancelled(name: str, opened: Callable[..., int]) -> None:
    """After flush it waits to be reaped: False, and reap returns it."""
    fd = opened(b"x")
    with Queue(name, 2) as queue:
        queue.attach(fd)
        queue.submit([Io(1, Op.READ, fd, 0, bytearray(1))])
        queue.flush(20)
        assert not queue.cancel(1)
        assert [done.io.id for done in queue.reap()] == [1]


def test_buffers_live_until_their_io_is_reaped(name: str, opened: Callable[..., int]) -> None:
    """The caller may drop its reference: the queue keeps the buffer, and hands it back with the result."""
    fd = opened(b"z" * 64 * BLOCK)
    with Queue(name, 64) as queue:
        queue.attach(fd)
        queue.submit([Io(i, Op.READ, fd, i * BLOCK, bytearray(BLOCK)) for i in range(64)])
        gc.collect()
        queue.flush(20)
        done = queue.reap()
        assert len(done) == 64
        assert all(completion.io.buffer == b"z" * BLOCK for completion in done)


def test_a_read_into_bytes_is_refused(name: str, opened: Callable[..., int]) -> None:
    """bytes do not change: a READ needs a writable buffer."""
    fd = opened(b"x")
    with Queue(name, 2) as queue:
        queue.attach(fd)
        with pytest.raises((BufferError, ValueError, TypeError)):
            queue.submit([Io(1, Op.READ, fd, 0, b"no")])
        assert queue.in_flight == 0


def test_random_work_ends_in_the_file_a_model_predicts(name: str, opened: Callable[..., int]) -> None:
    """2,000 writes and reads of 64 blocks, one in flight per block, against a list of blocks in memory."""
    rng = random.Random(name)
    fd = opened(bytes(64 * BLOCK))
    model = [bytes(BLOCK)] * 64
    busy: dict[int, bytes] = {}
    with Queue(name, 16) as queue:
        queue.attach(fd)
        for _ in range(2000):
            block = rng.randrange(64)
            if block not in busy and len(busy) < 16:
                if rng.random() < 0.5:
                    model[block] = bytes([rng.randrange(256)]) * BLOCK
                    io = Io(block, Op.WRITE, fd, block * BLOCK, model[block])
                else:
                    io = Io(block, Op.READ, fd, block * BLOCK, bytearray(BLOCK))
                busy[block] = model[block]
                assert queue.submit([io]) == 1
            for done in queue.reap(timeout=20 if len(busy) == 16 else 0):
                assert done.result == BLOCK
                assert done.io.buffer == busy.pop(done.io.id)
        queue.flush(20)
    assert os.pread(fd, 64 * BLOCK, 0) == b"".join(model)


def test_reap_without_limit_sleeps_until_something_finishes(name: str, opened: Callable[..., int]) -> None:
    """1,000 single ios, each waited for on the event alone: no edge is lost."""
    fd = opened(b"x" * BLOCK)
    with Queue(name, 4) as queue:
        queue.attach(fd)
        for i in range(1000):
            op = Op.FSYNC if i % 50 == 0 else Op.READ
            queue.submit([Io(i, op, fd, 0, bytearray(8) if op == Op.READ else None)])
            assert [done.io.id for done in queue.reap(timeout=20)] == [i]


def test_close_refuses_while_ios_are_in_flight(name: str, opened: Callable[..., int]) -> None:
    """EBUSY, and the queue goes on working; after the reap it closes, and closing again does nothing."""
    fd = opened(b"x")
    queue = Queue(name, 2)
    queue.attach(fd)
    queue.submit([Io(1, Op.READ, fd, 0, bytearray(1))])
    with pytest.raises(OSError) as busy:
        queue.close()
    assert busy.value.errno == errno.EBUSY
    assert finish(queue) == {1: 1}
    queue.close()
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        queue.reap()


def test_closing_frees_every_descriptor(name: str, opened: Callable[..., int]) -> None:
    """Twenty queues later the process has the descriptors it had before."""
    fd = opened(b"x")
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        with Queue(name, 8) as queue:
            queue.attach(fd)
            queue.submit([Io(1, Op.READ, fd, 0, bytearray(1)), Io(2, Op.FSYNC, fd)])
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_two_queues_in_two_threads_do_not_meet(name: str, opened: Callable[..., int]) -> None:
    """Each with its own instance on the same file: both finish all they accepted."""
    fd = opened(b"x" * BLOCK)
    counts: list[int] = []

    def work() -> None:
        done = 0
        with Queue(name, 16) as queue:
            queue.attach(fd)
            for _ in range(50):
                queue.submit([Io(i, Op.READ, fd, i, bytearray(1)) for i in range(16)])
                done += len(finish(queue))
        counts.append(done)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [800, 800]


def test_an_unknown_driver_is_named_with_the_known_ones() -> None:
    """The message says what was asked for and what there is."""
    with pytest.raises(ValueError, match=r"'nvme'.*io_uring, linux, threads, posix, sync"):
        Queue("nvme", 8)


@pytest.mark.parametrize("depth", [0, -1, 4097, 5000])
def test_a_depth_out_of_range_is_named(name: str, depth: int) -> None:
    """The message says the depth and the range."""
    with pytest.raises(ValueError, match=rf"{depth} .*1\.\.4096"):
        Queue(name, depth)
