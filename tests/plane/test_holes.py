"""FALLOCATE and LSEEK: what they do to an image, their order among other requests, and their errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fakekernel import (
    COLLAPSE_RANGE,
    FALLOCATE,
    FALLOCATE_IN,
    INSERT_RANGE,
    KEEP_SIZE,
    LSEEK,
    NO_HIDE_STALE,
    PUNCH,
    PUNCH_HOLE,
    UNSHARE_RANGE,
    ZERO_RANGE,
    FakeKernel,
    fault,
    hold,
    overlaps,
    release,
    submitted,
)

from aiofs.dataplane import driver_names

K = 4096
SIZE = 1 << 20
"""Of `image`."""

DONE = {0, -errno.EOPNOTSUPP}
"""Answers where only the order matters: tmpfs zeroes no ranges."""

Send = Callable[[FakeKernel], int]


def write(offset: int, length: int = K) -> Send:
    return lambda kernel: kernel.send_write(offset, b"w" * length)


def read(offset: int, length: int = K) -> Send:
    return lambda kernel: kernel.send_read(offset, length)


def punch(offset: int, length: int = K) -> Send:
    return lambda kernel: kernel.send_fallocate(PUNCH, offset, length)


def zero(offset: int, length: int = K) -> Send:
    return lambda kernel: kernel.send_fallocate(ZERO_RANGE, offset, length)


def allocate(offset: int, length: int = K, mode: int = 0) -> Send:
    return lambda kernel: kernel.send_fallocate(mode, offset, length)


def seek(offset: int) -> Send:
    return lambda kernel: kernel.send_lseek(offset, os.SEEK_DATA)


def start_together(kernel: FakeKernel, *sends: Send) -> int:
    """Send all while nothing finishes; how many of their ios were submitted. Then let them finish."""
    before = len(submitted())
    hold()
    uniques = [send(kernel) for send in sends]
    kernel.settle()
    started = len(submitted()) - before
    release()
    assert {kernel.reply(unique)[0] for unique in uniques} <= DONE
    assert overlaps() == 0
    return started


def both_orders(kernel: FakeKernel, one: Send, other: Send) -> list[int]:
    """How many of two start together, whichever comes first."""
    return [start_together(kernel, one, other), start_together(kernel, other, one)]


# -- what they do --


@pytest.mark.parametrize("driver", [*driver_names(), "fault:sync"])
def test_fallocate_and_lseek_work_on_every_driver(kernel: FakeKernel, image: Path, driver: str) -> None:
    """Holes have no blocks and read as zeros, allocation makes the image longer, and seeks see all that."""
    model = bytearray(image.read_bytes())
    os.sync()
    blocks = image.stat().st_blocks
    kernel.register(image, driver=driver)
    kernel.fallocate(PUNCH, 64 << 10, 128 << 10)
    model[64 << 10 : 192 << 10] = bytes(128 << 10)
    assert image.stat().st_blocks == blocks - 256
    kernel.fallocate(PUNCH, 1000, 10)
    model[1000:1010] = bytes(10)
    kernel.fallocate(0, SIZE, 5000)
    assert image.read_bytes() == model + bytes(5000)
    kernel.fallocate(KEEP_SIZE, SIZE, 64 << 10)
    assert image.stat().st_size == SIZE + 5000
    assert kernel.lseek(0, os.SEEK_HOLE) == 64 << 10
    assert kernel.lseek(64 << 10, os.SEEK_DATA) == 192 << 10
    assert kernel.lseek(100_000, os.SEEK_HOLE) == 100_000
    with pytest.raises(OSError) as caught:
        kernel.lseek(SIZE + 5000, os.SEEK_HOLE)
    assert caught.value.errno == errno.ENXIO
    counted = kernel.counters()
    assert (counted["requests_fallocate"], counted["ios_fallocate"]) == (4, 4)
    assert (counted["requests_lseek"], counted["ios_lseek"], counted["errors"]) == (4, 4, 0)


@pytest.mark.parametrize("mode", [ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_zeroing_makes_an_image_longer_unless_it_keeps_its_size(
    kernel: FakeKernel, image: Path, mode: int
) -> None:
    """As fallocate(2) of the image itself; where its file system has none of it, so it says."""
    kernel.register(image)
    error, body = kernel.reply(kernel.send_fallocate(mode, SIZE - 10, 20))
    if error == -errno.EOPNOTSUPP:
        pytest.skip(f"{image.parent} is on a file system that zeroes no ranges")
    assert (error, body) == (0, b"")
    assert image.stat().st_size == (SIZE if mode & KEEP_SIZE else SIZE + 10)
    assert image.read_bytes()[SIZE - 11 :] == image.read_bytes()[SIZE - 11 : SIZE - 10] + bytes(
        image.stat().st_size - SIZE + 10
    )


def test_a_hole_in_a_direct_image_is_exact_to_the_byte(kernel: FakeKernel, image: Path) -> None:
    """No padding is needed: the file system zeroes the parts of blocks."""
    try:
        kernel.register(image, direct=True, block_size=K)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on {image.parent}: {error.strerror}")
    model = bytearray(image.read_bytes())
    for offset, length in ((5000, 100), (10_000, 20_000), (3 * K, K)):
        kernel.fallocate(PUNCH, offset, length)
        model[offset : offset + length] = bytes(length)
        assert kernel.read(offset - 1000, length + 2000) == model[offset - 1000 : offset + length + 1000]
    assert image.read_bytes() == model


def test_whole_pages_are_locked(kernel: FakeKernel, image: Path) -> None:
    """A hole may end in the middle of a page, which the file system zeroes through the page cache."""
    kernel.register(image)
    assert both_orders(kernel, punch(K, 100), write(2 * K - 512, 512)) == [1, 1]
    assert both_orders(kernel, punch(2 * K - 100, 100), write(2 * K, 512)) == [2, 2]


# -- order --


@pytest.mark.parametrize("change", [punch, zero, allocate])
@pytest.mark.parametrize("other", [write, read, punch])
def test_a_fallocate_and_what_it_overlaps_wait_for_each_other(
    kernel: FakeKernel, image: Path, change: Callable[[int, int], Send], other: Callable[[int, int], Send]
) -> None:
    """Whichever comes first; what it does not overlap goes beside it."""
    kernel.register(image)
    assert both_orders(kernel, change(4 * K, 4 * K), other(7 * K, 2 * K)) == [1, 1]
    assert both_orders(kernel, change(4 * K, 4 * K), other(8 * K, 2 * K)) == [2, 2]


def test_the_last_of_overlapping_changes_wins(kernel: FakeKernel, image: Path) -> None:
    """WRITE, hole, WRITE, and a READ of all of it, sent at once."""
    kernel.register(image)
    hold()
    uniques = [write(0, 3 * K)(kernel), punch(K, 2 * K)(kernel), write(2 * K)(kernel), read(0, 3 * K)(kernel)]
    kernel.settle()
    assert submitted() == [("write", 0, 3 * K)]
    release()
    replies = [kernel.reply(unique) for unique in uniques]
    assert [error for error, _ in replies] == [0] * 4
    assert replies[3][1] == b"w" * K + bytes(K) + b"w" * K
    assert overlaps() == 0


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, ZERO_RANGE, PUNCH])
@pytest.mark.parametrize(
    "other", [write(0), read(0), write(2 * SIZE), punch(0)], ids=["write", "read", "write_past", "punch"]
)
def test_a_fallocate_past_the_end_has_the_image_for_itself(
    kernel: FakeKernel, image: Path, mode: int, other: Send
) -> None:
    """F21: nothing else is in flight meanwhile, wherever it is."""
    kernel.register(image)
    change = allocate(SIZE + 64 * K, K, mode)
    for order in ((change, other), (other, change)):
        os.truncate(image, SIZE)
        assert start_together(kernel, *order) == 1


def test_a_fallocate_behind_a_resize_has_the_image_for_itself(kernel: FakeKernel, image: Path) -> None:
    """What is inside the image when it comes may be past the end when its turn comes."""
    kernel.register(image)
    uniques, _ = kernel.resize_between(
        K,
        before=lambda: [read(0)(kernel)],
        after=lambda: [send(kernel) for send in (allocate(8 * K), read(4 * K), write(96 * K))],
    )
    assert [kernel.reply(unique)[0] for unique in uniques] == [0] * 4
    assert [op for op, _, _ in submitted()] == ["read", "truncate", "fallocate", "read", "write"]
    assert kernel.counters()["batches"] == 4  # the last two together, the others each by itself


def test_an_fsync_waits_for_the_fallocates_before_it(kernel: FakeKernel, image: Path) -> None:
    """Rule 2: no fdatasync is issued while a FALLOCATE that came before is in flight; later ones go on."""
    kernel.register(image)
    for change in (punch(0), zero(0), allocate(0)):
        before = len(submitted())
        hold()
        first = change(kernel)
        fsync = kernel.send_fsync()
        later = punch(8 * K)(kernel)
        kernel.settle()
        assert [op for op, _, _ in submitted()[before:]] == ["fallocate", "fallocate"]
        release()
        assert {kernel.reply(unique)[0] for unique in (first, fsync, later)} <= DONE
        assert submitted()[-1] == ("fsync", 0, 0)


def test_nothing_is_merged_across_a_fallocate(kernel: FakeKernel, image: Path) -> None:
    """Two adjacent WRITEs with a hole made elsewhere between them are two ios."""
    kernel.register(image)
    _, ios = kernel.together(lambda: [send(kernel) for send in (write(0), punch(64 * K), write(K))])
    assert sorted(ios) == [("fallocate", 64 * K, K), ("write", 0, K), ("write", K, K)]


def test_fallocates_are_not_merged(kernel: FakeKernel, image: Path) -> None:
    """Adjacent holes are as many ios, and neither joins a WRITE beside it."""
    kernel.register(image)
    _, ios = kernel.together(lambda: [send(kernel) for send in (punch(0), punch(K), write(2 * K))])
    assert ios == [("fallocate", 0, K), ("fallocate", K, K), ("write", 2 * K, K)]


def test_an_lseek_keeps_the_order_of_a_read_to_the_end(kernel: FakeKernel, image: Path) -> None:
    """It waits for changes behind its offset and holds them back; not for those before it, nor for READs."""
    kernel.register(image)
    for other in (write(64 * K), punch(64 * K)):
        assert both_orders(kernel, seek(32 * K), other) == [1, 1]
        assert both_orders(kernel, seek(96 * K), other) == [2, 2]
    assert both_orders(kernel, seek(32 * K), read(64 * K)) == [2, 2]
    assert both_orders(kernel, seek(0), seek(0)) == [2, 2]


def test_adjacent_reads_are_merged_across_an_lseek(kernel: FakeKernel, image: Path) -> None:
    """It changes nothing."""
    kernel.register(image)
    _, ios = kernel.together(lambda: [send(kernel) for send in (read(0), seek(0), read(K))])
    assert ios == [("read", 0, 2 * K), ("lseek", 0, 0)]


# -- durability --


def test_under_dsync_a_fallocate_is_followed_by_an_fdatasync(kernel: FakeKernel, image: Path) -> None:
    """Cache modes writethrough and directsync: a range that reads as zeros still does after a crash."""
    kernel.register(image, dsync=True)
    hold()
    unique = punch(0)(kernel)
    kernel.settle()
    assert submitted() == [("fallocate", 0, K)]
    release()
    assert kernel.reply(unique) == (0, b"")
    assert submitted() == [("fallocate", 0, K), ("fsync", 0, 0)]


def test_an_fdatasync_that_fails_after_a_fallocate_is_remembered(kernel: FakeKernel, image: Path) -> None:
    """Rule 3 does not ask who wanted the fdatasync; EINTR is no failure."""
    kernel.register(image, dsync=True)
    fault("fsync", -errno.EINTR, times=2)
    kernel.fallocate(PUNCH, 0, K)
    fault("fsync", -errno.EIO)
    requests: list[Callable[[], None]] = [lambda: kernel.fallocate(PUNCH, 0, K), kernel.fsync]
    for request in requests:
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.EIO


# -- errors --


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
@pytest.mark.parametrize(
    ("op", "send"), [("fallocate", punch(0)), ("lseek", seek(0))], ids=["fallocate", "lseek"]
)
def test_one_that_was_interrupted_is_done_again(
    kernel: FakeKernel, image: Path, error: int, op: str, send: Send
) -> None:
    """A few times by its driver, then by `threads`."""
    kernel.register(image)
    fault(op, -error, times=2)
    assert kernel.reply(send(kernel))[0] == 0
    assert len(submitted()) == 3
    fault(op, -error, times=-1, spares_threads=True)
    assert kernel.reply(send(kernel))[0] == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EOPNOTSUPP, errno.EPERM])
def test_errors_of_the_image_come_through(kernel: FakeKernel, image: Path, error: int) -> None:
    """For this request; the next is tried again, nothing is zeroed, and nothing done in its place."""
    before = image.read_bytes()
    kernel.register(image)
    fault("fallocate", -error)
    assert kernel.reply(punch(0)(kernel))[0] == -error
    assert submitted() == [("fallocate", 0, K)]
    assert image.read_bytes() == before
    assert kernel.reply(punch(0)(kernel))[0] == 0


@pytest.mark.parametrize(
    ("op", "send"),
    [("fallocate", punch(0)), ("lseek", seek(0)), ("fsync", FakeKernel.send_fsync)],
    ids=["fallocate", "lseek", "fsync"],
)
def test_enosys_is_never_answered(kernel: FakeKernel, image: Path, op: str, send: Send) -> None:
    """The kernel would send no such request any more, for no image of the mount."""
    kernel.register(image)
    fault(op, -errno.ENOSYS)
    assert kernel.reply(send(kernel))[0] == -errno.EOPNOTSUPP


@pytest.mark.parametrize(
    "mode",
    [
        PUNCH_HOLE,
        PUNCH | ZERO_RANGE,
        COLLAPSE_RANGE,
        INSERT_RANGE,
        UNSHARE_RANGE,
        PUNCH | NO_HIDE_STALE,
        1 << 31,
        0x80 | ZERO_RANGE,
    ],
)
def test_what_is_not_known_is_not_supported(kernel: FakeKernel, image: Path, mode: int) -> None:
    """EOPNOTSUPP without asking the image: ranges that move, modes to come, a hole that changes the size."""
    kernel.register(image)
    assert kernel.reply(allocate(0, K, mode)(kernel)) == (-errno.EOPNOTSUPP, b"")
    assert submitted() == []
    assert kernel.counters()["errors"] == 1


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (1 << 63, 1), (0, 1 << 63), ((1 << 63) - 1, 1), ((1 << 64) - 1, 2)]
)
def test_a_range_that_is_none_is_refused(kernel: FakeKernel, image: Path, offset: int, length: int) -> None:
    """Nothing, negative, or past the largest offset: EINVAL, as a malformed message."""
    kernel.register(image)
    assert kernel.reply(punch(offset, length)(kernel)) == (-errno.EINVAL, b"")
    assert kernel.plane.counters()["refused"] == 1
    assert submitted() == []


def test_messages_cut_short_are_refused(kernel: FakeKernel, image: Path) -> None:
    """Without all their fields."""
    kernel.register(image)
    for opcode, size in ((FALLOCATE, FALLOCATE_IN.size - 8), (LSEEK, 16)):
        assert kernel.reply(kernel.send(opcode, bytes(size)))[0] == -errno.EINVAL


@pytest.mark.parametrize("whence", [os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 5, (1 << 32) - 1])
def test_an_lseek_looks_for_data_or_holes_only(kernel: FakeKernel, image: Path, whence: int) -> None:
    """The kernel does the others itself; EINVAL, as lseek(2)."""
    kernel.register(image)
    assert kernel.reply(kernel.send_lseek(0, whence))[0] == -errno.EINVAL
    assert submitted() == []


@pytest.mark.parametrize("offset", [-1, -(1 << 63)])
def test_nothing_is_found_before_the_beginning(kernel: FakeKernel, image: Path, offset: int) -> None:
    """ENXIO, as ext4 and XFS say; btrfs is not asked, it would say something else."""
    kernel.register(image)
    assert kernel.reply(kernel.send_lseek(offset, os.SEEK_DATA))[0] == -errno.ENXIO
    assert submitted() == []


def test_images_that_are_not_served_do_not_end_it_for_all(kernel: FakeKernel) -> None:
    """Neither reaches the control plane, whose ENOSYS would."""
    assert kernel.reply(kernel.send_fallocate(PUNCH, 0, K, node=77))[0] == -errno.EBADF
    assert kernel.reply(kernel.send_lseek(0, os.SEEK_DATA, node=77))[0] == -errno.EINVAL
    assert kernel.plane.counters()["forwarded"] == 0
