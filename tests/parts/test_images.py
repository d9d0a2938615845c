"""The open images: sharing, locking, sizes, what outlives a close. A fake data plane, real files."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest
import trio
import trio.testing
from planes import FakePlane, handle_of, make_table, node_of, run

from aiofs import locks
from aiofs.backing import ImageLocked
from aiofs.images import ImageTable


def descriptors() -> int:
    """This process has open; not those of earlier tests' ledgers, which go with the garbage."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


# -- one image, many opens --


def test_opens_share_one_registration_until_the_last_release(table: ImageTable, plane: FakePlane) -> None:
    """The image is registered at the first open and unregistered at the last release."""

    async def scenario() -> None:
        image = node_of(table)
        await table.open(image, os.O_RDONLY)
        await table.open(image, os.O_RDWR)
        await table.release(handle_of(table, image.ino))
        assert image.ino in plane.images
        await table.release(handle_of(table, image.ino))
        assert plane.images == {}
        assert not table.is_open(image.ino)

    run(scenario)
    assert len(plane.seen) == 1


def test_no_descriptor_is_left_after_the_last_release(images: Path, plane: FakePlane) -> None:
    """Opening and closing leaves as many descriptors as before, in the direct mode as well."""
    table = make_table(images, plane)
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        await table.release(handle_of(table, image.ino))
        before = descriptors()
        for _ in range(3):
            await table.open(image, os.O_RDWR)
            await table.release(handle_of(table, image.ino))
        assert descriptors() == before

    run(scenario)
    table.source.close()


def test_a_failed_registration_leaves_nothing_open(table: ImageTable, plane: FakePlane) -> None:
    """The errno of the data plane reaches the opener; descriptor and lock are given back."""
    image = node_of(table)
    plane.refuse = errno.ENOSPC

    async def scenario() -> None:
        before = descriptors()
        with pytest.raises(OSError, match="No space") as caught:
            await table.open(image, os.O_RDWR)
        assert caught.value.errno == errno.ENOSPC
        assert descriptors() == before
        plane.refuse = 0
        await table.open(image, os.O_RDWR)

    run(scenario)


def test_an_open_during_the_last_release_finds_the_image_open_again(
    table: ImageTable, plane: FakePlane
) -> None:
    """While unregister waits for what is in flight a new open waits too, and registers anew."""
    image = node_of(table)

    async def scenario() -> None:
        handle, _ = await table.open(image, os.O_RDWR)
        plane.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.release, handle)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(table.open, image, os.O_RDWR)
            await trio.testing.wait_all_tasks_blocked()
            assert len(plane.seen) == 1
            plane.hold.set()
        assert image.ino in plane.images
        assert len(plane.seen) == 2

    run(scenario)


def test_an_fsync_error_ends_with_the_last_close(table: ImageTable, plane: FakePlane) -> None:
    """Who opens the image after all have closed it begins anew, as with any file."""
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        plane.seen[0].counters.memory.sticky_error = -errno.EIO
        [told] = table.info()
        assert told.sticky_error == errno.EIO
        await table.release(handle_of(table, image.ino))
        await table.open(image, os.O_RDWR)

    run(scenario)
    assert [spec.sticky_error for spec in plane.seen] == [0, 0]


def test_an_fsync_error_is_told_at_the_end(table: ImageTable, plane: FakePlane) -> None:
    """Closed or open, though the last sync succeeds: what could not be written then is not on disk."""
    image = node_of(table)

    async def closed() -> None:
        await table.open(image, os.O_RDWR)
        plane.seen[-1].counters.memory.sticky_error = -errno.EIO
        await table.release(handle_of(table, image.ino))

    async def still_open() -> None:
        await table.open(image, os.O_RDWR)
        plane.seen[-1].counters.memory.sticky_error = -errno.ENOSPC

    for scenario, expected in ((closed, errno.EIO), (still_open, errno.ENOSPC)):
        run(scenario)
        failures = trio.run(table.close_all)
        assert [(failure.errno, Path(failure.filename).name) for failure in failures] == [(expected, "a.img")]


def test_closing_all_syncs_and_closes_what_is_still_open(table: ImageTable, plane: FakePlane) -> None:
    """At the end every image is closed, and its lock is free."""
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        assert await table.close_all() == []
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(plane.images[image.ino].fd)

    run(scenario)


def test_an_image_that_cannot_be_synced_at_the_end_is_named(
    table: ImageTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed fdatasync of the end is returned with the image's name, and logged."""
    image = node_of(table)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        monkeypatch.setattr(os, "fdatasync", fail)
        failures = await table.close_all()
        assert [(failure.errno, Path(failure.filename).name) for failure in failures] == [
            (errno.EIO, "a.img")
        ]

    run(scenario)
    assert "a.img: cannot write to disk" in caplog.text


def test_a_last_release_during_the_end_closes_nothing_twice(
    table: ImageTable, plane: FakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last RELEASE before an unmount may still be on its way while everything is synced and closed."""
    image = node_of(table)
    plane.hold = trio.Event()

    def released_meanwhile(_fd: int) -> None:
        assert plane.hold is not None
        trio.from_thread.run_sync(plane.hold.set)
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)

    async def scenario() -> None:
        handle, _ = await table.open(image, os.O_RDWR)
        monkeypatch.setattr(os, "fdatasync", released_meanwhile)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.release, handle)
            await trio.testing.wait_all_tasks_blocked()
            assert await table.close_all() == []

    before = descriptors()
    run(scenario)
    assert descriptors() == before


# -- locks --


def test_an_image_locked_elsewhere_is_busy_and_the_holder_is_named(
    table: ImageTable, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """EBUSY for the opener; the log says who holds the image."""
    other = os.open(images / "a.img", os.O_RDWR)
    locks.lock_for_writing(other)

    async def scenario() -> None:
        with pytest.raises(ImageLocked) as caught:
            await table.open(node_of(table), os.O_RDONLY)
        assert caught.value.errno == errno.EBUSY

    run(scenario)
    os.close(other)
    assert (
        f"a.img is locked by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})" in caplog.text
    )


def test_an_open_image_is_locked_and_free_after_its_release(table: ImageTable, images: Path) -> None:
    """The lock lasts from the first open to the last release."""
    other = os.open(images / "a.img", os.O_RDWR)
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        with pytest.raises(locks.LockConflict):
            locks.lock_for_writing(other)
        await table.release(handle_of(table, image.ino))
        locks.lock_for_writing(other)

    run(scenario)
    os.close(other)


def test_an_image_open_for_reading_can_be_read_elsewhere_until_it_is_opened_for_writing(
    table: ImageTable, images: Path
) -> None:
    """The reader's lock is upgraded by the first open for writing."""
    other = os.open(images / "a.img", os.O_RDONLY)
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDONLY)
        locks.lock_for_reading(other)
        locks.unlock(other)
        await table.open(image, os.O_WRONLY)
        with pytest.raises(locks.LockConflict):
            locks.lock_for_reading(other)

    run(scenario)
    os.close(other)


def test_the_size_of_a_locked_image_cannot_be_changed(table: ImageTable, images: Path) -> None:
    """truncate of an image that another process uses is refused like an open."""
    other = os.open(images / "a.img", os.O_RDWR)
    locks.lock_for_reading(other)

    async def scenario() -> None:
        with pytest.raises(ImageLocked):
            await table.truncate(node_of(table), 0)

    run(scenario)
    os.close(other)
    assert (images / "a.img").stat().st_size == 8192


# -- size --


def test_a_registered_image_is_truncated_by_the_data_plane(table: ImageTable, plane: FakePlane) -> None:
    """The data plane orders it with the requests; O_TRUNC takes the same way."""
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDWR)
        await table.truncate(image, 512)
        await table.open(image, os.O_RDWR | os.O_TRUNC)

    run(scenario)
    assert plane.truncated == [(image.ino, 512), (image.ino, 0)]


def test_a_closed_image_is_truncated_directly(table: ImageTable, plane: FakePlane, images: Path) -> None:
    """No registration is made for a change of size alone."""

    async def scenario() -> None:
        await table.truncate(node_of(table), 100)

    run(scenario)
    assert plane.seen == []
    assert (images / "a.img").stat().st_size == 100
