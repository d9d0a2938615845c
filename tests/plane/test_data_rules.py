"""The rules that keep data safe (DESIGN: nine of them), each broken on purpose by the fault driver."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from fakekernel import FakeKernel, entries, fault, hold, overlaps, release, submitted
from tasks import is_asleep, tasks_named
from waiting import wait_until

from aiofs.dataplane import add_fault
from aiofs.faults import Fault, Kind

K = 4096
STALL_NS = 300_000_000


def test_a_read_and_a_write_reach_the_image(kernel: FakeKernel, image: Path) -> None:
    """A READ returns the image's bytes and a WRITE changes them."""
    kernel.register(image)
    assert kernel.read(256, 512) == image.read_bytes()[256:768]
    assert kernel.write(300, b"hello") == 5
    assert image.read_bytes()[300:305] == b"hello"


# -- rule 1: whole answers --


def test_a_short_write_goes_on_until_it_is_whole(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: a driver's short write is continued, and the answer has the full length."""
    kernel.register(image)
    fault("write", 1000, times=1)
    fault("write", 7, times=1)
    data = bytes(reversed(range(256))) * 16
    assert kernel.write(8192, data) == K
    assert image.read_bytes()[8192 : 8192 + K] == data
    assert [length for _, _, length in submitted()] == [K, K - 1000, K - 1007]


def test_a_write_that_cannot_go_on_is_enospc(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: a write that comes back with 0 bytes is ENOSPC, never a short answer."""
    kernel.register(image)
    fault("write", 100, times=1)
    fault("write", 0, times=1)
    with pytest.raises(OSError, match="No space left"):
        kernel.write(0, b"x" * K)


def test_a_short_read_goes_on_until_it_is_whole(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: a short read inside the image is continued."""
    kernel.register(image)
    fault("read", 10, times=3)
    assert kernel.read(0, K) == image.read_bytes()[:K]
    assert len(submitted()) == 4


def test_a_read_of_nothing_inside_the_image_is_no_end(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: it is done again, and an error in the end: the kernel fills up a short answer with zeros."""
    kernel.register(image)
    fault("read", 0, times=2)
    assert kernel.read(K, K) == image.read_bytes()[K : 2 * K]
    fault("read", 0, times=-1)
    with pytest.raises(OSError) as caught:
        kernel.read(K, K)
    assert caught.value.errno == errno.EIO


def test_a_read_across_the_end_is_short(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: a READ is full up to the end of the image, and empty behind it."""
    kernel.register(image)
    size = image.stat().st_size
    assert kernel.read(size - 100, K) == image.read_bytes()[-100:]
    assert kernel.read(size, K) == b""
    assert kernel.read(size + K, K) == b""


def test_a_read_that_stops_inside_the_image_is_an_error(kernel: FakeKernel, image: Path) -> None:
    """Rule 1: a read error after a part was read is an error, not a short answer."""
    kernel.register(image)
    fault("read", 10, times=1)
    fault("read", -errno.EIO, times=1)
    with pytest.raises(OSError) as caught:
        kernel.read(0, K)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_a_driver_that_was_interrupted_is_asked_again(kernel: FakeKernel, image: Path, error: int) -> None:
    """EINTR and EAGAIN of a driver are no answers: the io is done again."""
    kernel.register(image)
    for op in ("read", "write", "fsync"):
        fault(op, -error, times=3)
    assert kernel.reply(kernel.send_write(0, b"abc"))[0] == 0
    assert kernel.reply(kernel.send_read(0, 3)) == (0, b"abc")
    assert kernel.reply(kernel.send_fsync())[0] == 0


def test_a_driver_that_refuses_for_ever_loses_the_io_to_threads(kernel: FakeKernel, image: Path) -> None:
    """After some EAGAINs an io goes to the thread pool, which does it."""
    kernel.register(image)
    fault("write", -errno.EAGAIN, times=-1, spares_threads=True)
    assert kernel.write(0, b"abc") == 3
    assert image.read_bytes()[:3] == b"abc"


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_who_keeps_being_interrupted_gets_eio(kernel: FakeKernel, image: Path, error: int) -> None:
    """After 64 tries, by `threads` too: a caller told EINTR or EAGAIN would ask again, for ever."""
    kernel.register(image)
    sends: dict[str, Callable[[], int]] = {
        "read": lambda: kernel.send_read(0, K),
        "write": lambda: kernel.send_write(0, b"x" * K),
        "fsync": kernel.send_fsync,
    }
    for op, send in sends.items():
        fault(op, -error, times=-1)
        assert kernel.reply(send())[0] == -errno.EIO
    assert [op for op, _, _ in submitted()] == ["read"] * 64 + ["write"] * 64 + ["fsync"] * 64
    assert kernel.unregister() == errno.EIO


def test_writes_by_threads_leave_the_driver_to_the_reads(kernel: FakeKernel, image: Path) -> None:
    """A copy-on-write image: the driver gets reads and fsyncs, threads write, and the bytes are right."""
    kernel.register(image, writes_by_threads=True)
    data = bytes(reversed(range(256))) * 16
    assert kernel.write(8192, data) == K
    assert kernel.read(8192, K) == data
    kernel.fsync()
    assert [(entry.op, entry.blocks) for entry in entries()] == [
        ("write", True),
        ("read", False),
        ("fsync", False),
    ]
    assert image.read_bytes()[8192 : 8192 + K] == data


def test_wide_reads_go_to_a_driver_of_their_own(kernel: FakeKernel, image: Path) -> None:
    """It gets reads of more than one block; the first driver gets the others, and writes."""
    kernel.register(image, direct=True, block_size=K, driver="sync", wide_driver="fault:sync")
    before = image.read_bytes()
    assert kernel.read(0, K) == before[:K]
    assert kernel.read(K, 2 * K) == before[K : 3 * K]
    assert kernel.read(100, K) == before[100 : 100 + K]  # two blocks
    data = bytes(reversed(range(256))) * 32
    assert kernel.write(0, data) == 2 * K
    assert kernel.write(5 * K + 1, b"x" * K) == K  # reads a block at each edge
    assert submitted() == [("read", K, 2 * K), ("read", 0, 2 * K)]
    assert kernel.unregister() == 0
    expected = bytearray(before)
    expected[: 2 * K] = data
    expected[5 * K + 1 : 6 * K + 1] = b"x" * K
    assert image.read_bytes() == expected


def test_reads_that_are_merged_are_wide(kernel: FakeKernel, image: Path) -> None:
    """Of a batch, the first driver gets what remains by itself."""
    kernel.register(image, direct=True, block_size=K, driver="fault:sync", wide_driver="sync")
    blocks = (0, 5, 1, 2, 3, 7)
    reads, ios = kernel.together(lambda: [kernel.send_read(i * K, K) for i in blocks])
    assert sorted(ios) == [("read", 5 * K, K), ("read", 7 * K, K)]
    data = image.read_bytes()
    for unique, i in zip(reads, blocks, strict=True):
        assert kernel.reply(unique) == (0, data[i * K : (i + 1) * K])


def test_a_wide_driver_that_is_not_there_refuses_the_image(kernel: FakeKernel, image: Path) -> None:
    """Nothing is registered, and the same image can be served otherwise."""
    with pytest.raises(ValueError, match="nonsense"):
        kernel.register(image, wide_driver="nonsense")
    kernel.register(image)
    assert kernel.read(0, K) == image.read_bytes()[:K]


# -- rules 2 and 3: fsync --


def test_fsync_waits_for_the_writes_before_it(kernel: FakeKernel, image: Path) -> None:
    """Rule 2: fdatasync is not issued while a WRITE that came before is in flight."""
    kernel.register(image)
    hold()
    write = kernel.send_write(0, b"x" * K)
    fsync = kernel.send_fsync()
    kernel.settle()
    assert submitted() == [("write", 0, K)]
    release()
    assert kernel.reply(write)[0] == 0
    assert kernel.reply(fsync)[0] == 0
    assert [op for op, _, _ in submitted()] == ["write", "fsync"]


def test_fsync_is_answered_only_after_fdatasync(kernel: FakeKernel, image: Path) -> None:
    """Rule 2: no answer while the image's own fdatasync is in flight."""
    kernel.register(image)
    hold()
    fsync = kernel.send_fsync()
    kernel.settle()
    assert submitted() == [("fsync", 0, 0)]
    assert not kernel.has_reply(fsync)
    release()
    assert kernel.reply(fsync) == (0, b"")


def test_reads_and_later_writes_do_not_wait_for_an_fsync(kernel: FakeKernel, image: Path) -> None:
    """An FSYNC holds back nothing that comes after it."""
    kernel.register(image)
    hold()
    kernel.send_fsync()
    kernel.send_read(0, K)
    kernel.send_write(K, b"x" * K)
    kernel.settle()
    assert [op for op, _, _ in submitted()] == ["fsync", "read", "write"]
    release()


def test_a_failed_fsync_is_reported_by_every_later_one(kernel: FakeKernel, image: Path) -> None:
    """Rule 3: after one EIO of fdatasync no fsync of that image succeeds again, others do."""
    other = image.with_name("other.img")
    other.write_bytes(b"y" * K)
    kernel.register(image)
    kernel.register(other, node=11)
    fault("fsync", -errno.EIO, times=1)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            kernel.fsync()
        assert caught.value.errno == errno.EIO
    kernel.fsync(node=11)
    assert kernel.write(0, b"x") == 1


def test_the_sticky_error_outlives_the_registration(kernel: FakeKernel, image: Path) -> None:
    """Rule 3: unregister hands the error out, and a new registration brings it back."""
    kernel.register(image)
    fault("fsync", -errno.EIO, times=1)
    with pytest.raises(OSError):
        kernel.fsync()
    assert kernel.unregister() == errno.EIO
    kernel.register(image, sticky_error=errno.EIO)
    with pytest.raises(OSError) as caught:
        kernel.fsync()
    assert caught.value.errno == errno.EIO


def test_fsyncs_in_flight_together_fail_together(kernel: FakeKernel, image: Path) -> None:
    """Rule 3: an fsync that succeeds after one that failed is answered with the error."""
    kernel.register(image)
    fault("fsync", -errno.EIO, times=1)
    hold()
    first, second = kernel.send_fsync(), kernel.send_fsync()
    kernel.settle()
    release()
    assert kernel.reply(first)[0] == -errno.EIO
    assert kernel.reply(second)[0] == -errno.EIO


def test_unsafe_answers_fsync_without_doing_it(kernel: FakeKernel, image: Path) -> None:
    """Cache mode unsafe: fsync is a lie, and a fast one."""
    kernel.register(image, no_fsync=True)
    kernel.fsync()
    assert submitted() == []


# -- rule 5: errors --


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_errors_of_the_image_come_through_as_they_are(kernel: FakeKernel, image: Path, error: int) -> None:
    """Rule 5: the caller gets the image's errno; the next request goes on."""
    kernel.register(image)
    fault("write", -error, times=1)
    fault("read", -error, times=1)
    with pytest.raises(OSError) as caught:
        kernel.write(0, b"x" * K)
    assert caught.value.errno == error
    with pytest.raises(OSError) as caught:
        kernel.read(0, K)
    assert caught.value.errno == error
    assert kernel.write(0, b"x" * K) == K
    assert kernel.read(0, K) == b"x" * K


def test_only_the_request_that_fails_gets_the_error(kernel: FakeKernel, image: Path) -> None:
    """A merged io that fails is done again one by one: its other requests succeed."""
    kernel.register(image)
    fault("write", -errno.EIO, first=2 * K, end=3 * K, times=-1)
    writes, ios = kernel.together(lambda: [kernel.send_write(i * K, bytes([65 + i]) * K) for i in range(4)])
    assert ios[0] == ("write", 0, 4 * K)
    assert [kernel.reply(unique)[0] for unique in writes] == [0, 0, -errno.EIO, 0]
    data = image.read_bytes()
    assert data[: 2 * K] == b"A" * K + b"B" * K
    assert data[3 * K : 4 * K] == b"D" * K


# -- order: rule 7's neighbours, F9 --


def test_overlapping_requests_take_effect_in_order(kernel: FakeKernel, image: Path) -> None:
    """A request that overlaps an earlier WRITE waits for it; the last WRITE wins."""
    kernel.register(image)
    hold()
    first = kernel.send_write(0, b"1" * K)
    second = kernel.send_write(2048, b"2" * K)
    read = kernel.send_read(0, 2 * K)
    apart = kernel.send_write(1 << 19, b"3" * K)
    kernel.settle()
    assert sorted(submitted()) == [("write", 0, K), ("write", 1 << 19, K)]
    release()
    assert [kernel.reply(u)[0] for u in (first, second, apart)] == [0, 0, 0]
    assert kernel.reply(read)[1] == (b"1" * 2048 + b"2" * K + image.read_bytes()[6144:8192])
    assert overlaps() == 0


def test_a_write_waits_for_a_read_that_it_overlaps(kernel: FakeKernel, image: Path) -> None:
    """A WRITE does not overtake an earlier READ of the same bytes."""
    kernel.register(image)
    before = image.read_bytes()[:K]
    hold()
    read = kernel.send_read(0, K)
    write = kernel.send_write(0, b"n" * K)
    kernel.settle()
    assert submitted() == [("read", 0, K)]
    release()
    assert kernel.reply(read)[1] == before
    assert kernel.reply(write)[0] == 0
    assert overlaps() == 0


def test_one_that_waits_holds_back_those_that_overlap_it(kernel: FakeKernel, image: Path) -> None:
    """Order holds along a chain: C overlaps B, which waits for A; C does not overtake B."""
    kernel.register(image)
    hold()
    chain = [kernel.send_write(i * 2048, bytes([97 + i]) * K) for i in range(5)]
    kernel.settle()
    assert len(submitted()) == 1
    release()
    assert [kernel.reply(u)[0] for u in chain] == [0] * 5
    assert image.read_bytes()[: 6 * 2048] == b"".join(bytes([97 + i]) * 2048 for i in range(5)) + b"e" * 2048
    assert overlaps() == 0


def test_a_resize_waits_for_all_before_it_and_holds_back_all_after_it(
    kernel: FakeKernel, image: Path
) -> None:
    """A WRITE on its way does not land past the new end, and one that comes later does."""
    kernel.register(image)
    uniques, started = kernel.resize_between(
        K,
        before=lambda: [kernel.send_write(2 * K, b"b" * K), kernel.send_read(0, K)],
        after=lambda: [kernel.send_write(8 * K, b"a" * K), kernel.send_read(0, 2 * K)],
    )
    assert sorted(started) == ["read", "write"]
    assert [kernel.reply(unique)[0] for unique in uniques] == [0] * 4
    assert image.read_bytes()[K:] == bytes(7 * K) + b"a" * K


# -- merging --


def test_adjacent_requests_become_one_io(kernel: FakeKernel, image: Path) -> None:
    """Requests that come together and touch end to end are one io, and each gets its own bytes."""
    kernel.register(image)
    order = (3, 0, 1, 2)
    reads, ios = kernel.together(lambda: [kernel.send_read(i * K, K) for i in order])
    assert ios == [("read", 0, 4 * K)]
    data = image.read_bytes()
    for unique, i in zip(reads, order, strict=True):
        assert kernel.reply(unique) == (0, data[i * K : (i + 1) * K])
    assert kernel.counters()["merged"] == 3


def test_a_request_that_used_to_come_alone_waits_for_no_other(kernel: FakeKernel, image: Path) -> None:
    """After two that came one by one, the next is submitted before the loop asks for more."""

    def has_asked() -> bool:
        # A thread that the loop starts has its name at first, too. Asleep: it has found no more.
        return all(is_asleep(task.name) for task in tasks_named("aiofs-loop"))

    kernel.register(image)
    pairs = 20
    for _ in range(pairs):
        for _ in range(2):
            kernel.read(0, K)
            wait_until(has_asked)
        for unique in [kernel.send_read(0, K), kernel.send_read(K, K)]:
            kernel.reply(unique)
    assert kernel.counters()["ios_read"] == pairs * 4
    kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
    assert entries()[-1].length == 4 * K, "those that come together are one batch again"


def test_merged_reads_are_one_piece_of_memory(kernel: FakeKernel, image: Path) -> None:
    """They are read into one buffer, end to end; WRITEs are written from where their data are."""
    kernel.register(image)
    kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
    assert [(io.length, io.segments) for io in entries() if io.op == "read"][-1] == (4 * K, 1)
    kernel.together(lambda: [kernel.send_write(i * K, b"x" * K) for i in range(4)])
    assert [(io.length, io.segments) for io in entries() if io.op == "write"] == [(4 * K, 4)]


def test_nothing_is_merged_across_an_fsync(kernel: FakeKernel, image: Path) -> None:
    """Two adjacent WRITEs with an FSYNC between them are two ios."""
    kernel.register(image)
    _, ios = kernel.together(
        lambda: [kernel.send_write(0, b"a" * K), kernel.send_fsync(), kernel.send_write(K, b"b" * K)]
    )
    assert sorted(ios) == [("fsync", 0, 0), ("write", 0, K), ("write", K, K)]
    assert ios.index(("write", 0, K)) < ios.index(("fsync", 0, 0))


def test_reads_and_writes_are_not_merged_with_each_other(kernel: FakeKernel, image: Path) -> None:
    """Only requests of one direction share an io."""
    kernel.register(image)
    _, ios = kernel.together(lambda: [kernel.send_write(0, b"a" * K), kernel.send_read(K, K)])
    assert ios == [("write", 0, K), ("read", K, K)]


def test_two_images_are_not_merged_with_each_other(kernel: FakeKernel, image: Path) -> None:
    """Only requests of one image share an io."""
    other = image.with_name("other.img")
    other.write_bytes(image.read_bytes())
    kernel.register(image)
    kernel.register(other, node=11)
    _, ios = kernel.together(lambda: [kernel.send_read(0, K), kernel.send_read(K, K, node=11)])
    assert ios == [("read", 0, K), ("read", K, K)]


def test_no_merge_means_one_io_for_each_request(image: Path) -> None:
    """With merging off, adjacent requests stay ios of their own, in order."""
    kernel = FakeKernel(merge=False)
    try:
        kernel.register(image)
        _, ios = kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
        assert ios == [("read", i * K, K) for i in range(4)]
    finally:
        kernel.close()


def test_a_short_merged_read_is_completed_one_by_one(kernel: FakeKernel, image: Path) -> None:
    """What a short merged io covers whole is answered, the rest is read again."""
    kernel.register(image)
    fault("read", K // 2, first=0, end=4 * K, times=1)
    reads, ios = kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
    assert ios == [("read", 0, 4 * K)] + [("read", i * K, K) for i in range(4)]
    data = image.read_bytes()
    for i, unique in enumerate(reads):
        assert kernel.reply(unique) == (0, data[i * K : (i + 1) * K])


def test_a_read_done_again_leaves_the_buffer_that_was_shared(kernel: FakeKernel, image: Path) -> None:
    """The first of a merged io is answered and its buffer used anew while the others are still read."""
    kernel.register(image)
    length = 32 * K
    fault("read", K, first=0, end=4 * K, times=1)
    add_fault(Fault(Kind.STALL, STALL_NS, ("read",), K, 2 * K, 2, 2))
    reads: list[int] = []

    def first_of_four() -> list[int]:
        reads.extend(kernel.send_read(i * K, K) for i in range(4))
        return reads[:1]

    kernel.together(first_of_four)
    large = kernel.send_read(8 * K, length)
    data = image.read_bytes()
    for i, unique in enumerate(reads):
        assert kernel.reply(unique) == (0, data[i * K : (i + 1) * K])
    assert kernel.reply(large) == (0, data[8 * K : 8 * K + length])
