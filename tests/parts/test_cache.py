"""Cache modes: how the backing is opened; and whether the kernel may keep its cached pages."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from planes import FakePlane, handle_of, make_table, node_of, run

from aiofs import directio
from aiofs.config import CacheMode
from aiofs.dataplane import system
from aiofs.directio import DirectRefused, DirectUnsupported, check_direct
from aiofs.images import ImageTable
from aiofs.nodes import Node

SHM = Path("/dev/shm")


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A file on tmpfs, which has no O_DIRECT to speak of."""
    path = SHM / f"aiofs-test-{os.getpid()}.img"
    if not SHM.is_dir():
        pytest.skip("no tmpfs on /dev/shm")
    path.write_bytes(bytes(4096))
    yield path
    path.unlink()


@pytest.mark.parametrize("cache", list(CacheMode))
def test_each_cache_mode_opens_the_image_with_its_flags(
    images: Path, plane: FakePlane, cache: CacheMode
) -> None:
    """O_DIRECT, O_DSYNC, the block size and whether fsync counts follow the mode."""
    table = make_table(images, plane, cache=cache)

    async def scenario() -> None:
        await table.open(node_of(table), os.O_RDWR)
        (spec,) = plane.seen
        flags = Path(f"/proc/self/fdinfo/{spec.fd}").read_text().split("flags:")[1].split()[0]
        assert bool(int(flags, 8) & os.O_DIRECT) == cache.direct == spec.direct
        assert bool(int(flags, 8) & os.O_DSYNC) == cache.dsync
        assert not int(flags, 8) & os.O_NONBLOCK
        assert (spec.block_size > 1) == cache.direct == (spec.tail_fd >= 0)
        assert spec.no_fsync == (cache is CacheMode.UNSAFE)
        await table.close_all()

    try:
        check_direct(table.source)
    except DirectUnsupported as error:
        pytest.skip(str(error))
    run(scenario)
    table.source.close()


def test_the_default_falls_back_to_writeback_and_says_so_once(
    tmpfs: Path, plane: FakePlane, caplog: pytest.LogCaptureFixture
) -> None:
    """On tmpfs the default cache mode is writeback; the log holds one line of it."""
    table = make_table(tmpfs, plane)
    image = node_of(table, os.fsencode(tmpfs.name))

    async def scenario() -> None:
        for _ in range(2):
            await table.open(image, os.O_RDWR)
            assert table.info()[0].cache is CacheMode.WRITEBACK
            await table.release(handle_of(table, image.ino))

    with caplog.at_level(logging.INFO):
        run(scenario)
    table.source.close()
    assert [record.getMessage() for record in caplog.records if record.name == "aiofs.backing"] == [
        f"{tmpfs}: no O_DIRECT, using --cache writeback (tmpfs does not support it)"
    ]


def test_direct_io_by_name_is_refused_where_it_does_not_work(tmpfs: Path, plane: FakePlane) -> None:
    """`--cache none` on tmpfs is an error that names the way out, before mounting and at open."""
    table = make_table(tmpfs, plane, cache=CacheMode.NONE)
    message = f"cannot open {tmpfs} with O_DIRECT: tmpfs does not support it; use --cache writeback"
    with pytest.raises(DirectUnsupported) as before:
        check_direct(table.source)
    assert str(before.value) == message

    async def scenario() -> None:
        with pytest.raises(DirectUnsupported) as caught:
            await table.open(node_of(table, os.fsencode(tmpfs.name)), os.O_RDWR)
        assert str(caught.value) == message

    run(scenario)
    table.source.close()


def test_blocks_larger_than_a_page_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alignment that the data plane does not pad to counts as not working, with the reason."""
    huge = system.Statx(0, dio_known=True, dio_mem_align=512, dio_offset_align=16384)
    monkeypatch.setattr(system, "statx", lambda _: huge)
    with pytest.raises(DirectRefused, match="16384 bytes"):
        directio.alignment(0, "zonefs")


def test_the_block_size_is_found_by_trial_where_the_kernel_does_not_say(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest read that is not refused with EINVAL is the block size."""
    monkeypatch.setattr(system, "statx", lambda _: system.Statx(0, False, 0, 0))

    def preadv(_fd: int, buffers: list[memoryview], _offset: int) -> int:
        if len(buffers[0]) < 2048:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", preadv)
    with (images / "a.img").open("rb") as file:
        assert directio.alignment(file.fileno(), "ext4") == directio.Alignment(2048, "trial reads")


# -- the kernel's cached pages --


def settle(path: Path) -> None:
    """Date the file back, as if nobody had touched it for an hour."""
    hour_ago = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))


async def reopen(table: ImageTable, image: Node) -> bool:
    _, unchanged = await table.open(image, os.O_RDONLY)
    await table.release(handle_of(table, image.ino))
    return unchanged


@pytest.fixture
def quiet_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock far ahead of every file time: no stamp is racy."""
    monkeypatch.setattr("aiofs.pagecache.time.time_ns", lambda: 2**62)


@pytest.mark.usefixtures("quiet_clock")
def test_cached_pages_of_an_unchanged_image_are_kept(table: ImageTable) -> None:
    """The first open drops the kernel's pages, the ones after it keep them."""
    image = node_of(table)

    async def scenario() -> None:
        assert [await reopen(table, image) for _ in range(3)] == [False, True, True]

    run(scenario)


@pytest.mark.usefixtures("quiet_clock")
@pytest.mark.parametrize("change", ["content", "size", "replaced"])
def test_cached_pages_of_a_changed_image_are_dropped_once(
    table: ImageTable, images: Path, change: str
) -> None:
    """A change made underneath is noticed at the next open."""
    image = node_of(table)
    path = images / "a.img"

    async def scenario() -> None:
        await reopen(table, image)
        if change == "content":
            with path.open("r+b") as file:
                file.write(b"x")
            settle(path)
        elif change == "size":
            os.truncate(path, 100)
        else:
            path.unlink()
            path.write_bytes(bytes(8192))
        again = node_of(table)
        assert [await reopen(table, again) for _ in range(2)] == [False, True]

    run(scenario)


def test_pages_of_an_image_changed_just_before_the_open_are_not_trusted(
    table: ImageTable, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change right after could bear the same times, so the next open drops the pages once more."""
    image = node_of(table)
    changed = (images / "a.img").stat().st_ctime_ns

    async def scenario() -> None:
        monkeypatch.setattr("aiofs.pagecache.time.time_ns", lambda: changed + 1_000_000)
        assert not await reopen(table, image)
        monkeypatch.setattr("aiofs.pagecache.time.time_ns", lambda: changed + 10**10)
        assert [await reopen(table, image) for _ in range(2)] == [False, True]

    run(scenario)
