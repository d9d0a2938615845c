"""The cache modes on real mounts, as the kernel sees them, and what the kernel itself caches of images."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import MountedFs
from tracing import traced
from waiting import wait_until

Mounting = Callable[..., MountedFs]
CONTENT = bytes(range(256)) * 256

DIRECT, DSYNC, TAIL = os.O_DIRECT, os.O_DSYNC, os.O_DSYNC
FLAGS = {
    "none": {DIRECT, TAIL},
    "writeback": {0},
    "writethrough": {DSYNC},
    "directsync": {DIRECT | DSYNC, TAIL},
    "unsafe": {0},
}
"""How each mode opens an image; O_DIRECT ones have a second descriptor for their tail."""


@pytest.fixture
def image(image_dir: Path) -> Path:
    """An image that is older than the finest step in which times of files are told."""
    path = image_dir / "a.img"
    path.write_bytes(CONTENT)
    settle(path)
    return path


def settle(path: Path) -> None:
    """Wait until a change of the file could no longer bear the times that it has now."""
    wait_until(lambda: time.time_ns() - path.stat().st_ctime_ns > 50_000_000)


@pytest.fixture
def tmpfs_dir() -> Iterator[Path]:
    """A directory on a file system without O_DIRECT, with two images."""
    path = Path("/dev/shm") / f"aiofs-cache-{os.getpid()}"
    if not path.parent.is_dir():
        pytest.skip("/dev/shm is not here")
    path.mkdir()
    for name in ("a.img", "b.img"):
        (path / name).write_bytes(CONTENT)
    yield path
    for image in path.iterdir():
        image.unlink()
    path.rmdir()


def open_flags(pid: int, path: Path) -> set[int]:
    """O_DIRECT and O_DSYNC of each descriptor that a process has of a file (proc(5), fdinfo)."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if link.readlink() == path:
                fdinfo = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                [flags] = [line.split()[1] for line in fdinfo.splitlines() if line.startswith("flags:")]
                found.add(int(flags, 8) & (DIRECT | DSYNC))
    return found


def reads(fs: MountedFs) -> int:
    """READ requests of the only open image."""
    [image] = fs.info()["images"]
    return int(image["counters"]["requests_read"])


# -- the image --


@pytest.mark.parametrize("cache", FLAGS)
def test_an_image_is_opened_as_its_cache_mode_says(
    mounted: Mounting, image: Path, need_direct: Callable[[str], str], cache: str
) -> None:
    """O_DIRECT and O_DSYNC of the server's descriptors, which /proc shows; and the content is right."""
    fs = mounted(image.parent, "--cache", need_direct(cache))
    fs.allow("unsafe")
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        assert open_flags(fs.server_pid, image) == FLAGS[cache]
        assert fs.info()["images"][0]["cache"] == cache
        held.write(b"through")
        os.fsync(held.fileno())
        assert image.read_bytes() == b"through" + CONTENT[7:]
    assert any("unsafe" in line for line in fs.log) == (cache == "unsafe")


@pytest.mark.parametrize("cache", FLAGS)
def test_fsync_is_an_fdatasync_of_the_image(
    mounted: Mounting, image: Path, need_direct: Callable[[str], str], tmp_path: Path, cache: str
) -> None:
    """One for each fsync and fdatasync of the caller, in every mode but `unsafe`: there, none."""
    fs = mounted(image.parent, "--cache", need_direct(cache), "--aio", "threads")
    fs.allow("unsafe")
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        with traced(fs.server_pid, "fdatasync,fsync,sync_file_range", tmp_path / "strace.log") as calls:
            held.write(b"now")
            os.fsync(held.fileno())
            os.fdatasync(held.fileno())
        [told] = fs.info()["images"]
    done = calls.matching(rf"fdatasync\(\d+<{image}>\) += 0|fdatasync resumed.*= 0")
    assert len(done) == (0 if cache == "unsafe" else 2), calls.lines
    assert told["counters"]["requests_fsync"] == 2


def test_without_o_direct_the_default_is_writeback_said_once(mounted: Mounting, tmpfs_dir: Path) -> None:
    """On tmpfs: one warning, and no more for the images than for the first; all of them work."""
    fs = mounted(tmpfs_dir)
    fs.allow("using --cache writeback")
    for name in ("a.img", "b.img"):
        with (fs.path / name).open("r+b", buffering=0) as held:
            assert open_flags(fs.server_pid, tmpfs_dir / name) == {0}
            assert fs.info()["images"][0]["cache"] == "writeback"
            assert held.read() == CONTENT
    said = [line for line in fs.log if "writeback" in line and "O_DIRECT" in line]
    assert len([line for line in said if "warning: " in line]) == 1, fs.log
    assert not [line for line in said if "b.img" in line], fs.log


# -- the kernel's page cache --


def test_what_the_kernel_has_read_it_does_not_ask_for_again(mounted: Mounting, image: Path) -> None:
    """Re-opened and read again, ten times: not one READ more reaches the server."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    assert path.read_bytes() == CONTENT
    with path.open("rb", buffering=0) as held:
        assert held.read() == CONTENT
        before = reads(fs)
        for _ in range(10):
            assert path.read_bytes() == CONTENT
        assert reads(fs) == before


def test_o_direct_readers_get_the_image_s_own_bytes(mounted: Mounting, image: Path) -> None:
    """Each read of theirs is a request, whatever the kernel has cached."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    assert path.read_bytes() == CONTENT
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        before = reads(fs)
        for _ in range(3):
            assert os.pread(fd, 4096, 0) == CONTENT[:4096]
        assert reads(fs) == before + 3
        with image.open("r+b") as underneath:
            underneath.write(b"other")
        assert os.pread(fd, 5, 0) == b"other"
    finally:
        os.close(fd)


def test_a_change_underneath_is_noticed_at_the_next_open(mounted: Mounting, image: Path) -> None:
    """Same size, other bytes: the kernel's pages of the image are dropped; so again the next time."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    for change in (b"first", b"again"):
        assert path.read_bytes()[5:] == CONTENT[5:]
        with image.open("r+b") as underneath:
            underneath.write(change)
        assert path.read_bytes() == change + CONTENT[5:]
        settle(image)


def test_a_change_underneath_is_noticed_when_another_has_it_open(mounted: Mounting, image: Path) -> None:
    """A reader that stays does not keep old pages alive for those who open after it."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    with path.open("rb", buffering=0) as held:
        assert held.read() == CONTENT
        with image.open("r+b") as underneath:
            underneath.write(b"other")
        assert path.read_bytes() == b"other" + CONTENT[5:]


def test_growth_underneath_is_noticed_at_the_next_open(mounted: Mounting, image: Path) -> None:
    """The new size and the new bytes, without waiting for the kernel's attribute timeout."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    assert path.read_bytes() == CONTENT
    with image.open("ab") as underneath:
        underneath.write(b"grown")
    assert path.read_bytes() == CONTENT + b"grown"
    with path.open("rb") as held:
        assert held.seek(0, os.SEEK_END) == len(CONTENT) + 5


def test_a_direct_write_shows_in_cached_reads(mounted: Mounting, image: Path) -> None:
    """One opener writes with O_DIRECT, another has the pages cached and mapped: it sees the write."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    with path.open("rb", buffering=0) as cached:
        assert cached.read() == CONTENT
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            for offset in (0, 4096, 5000):
                assert os.pwrite(fd, b"direct", offset) == 6
                assert os.pread(cached.fileno(), 6, offset) == b"direct"
        finally:
            os.close(fd)
    assert image.read_bytes()[5000:5006] == b"direct"


def test_a_reader_that_races_with_direct_writes_keeps_no_old_page(mounted: Mounting, image: Path) -> None:
    """While another thread fills the cache all the time, each O_DIRECT write shows as soon as it is done."""
    fs = mounted(image.parent)
    path = fs.path / "a.img"
    done = threading.Event()
    with path.open("rb", buffering=0) as cached, mmap.mmap(-1, 4096) as page:

        def read_all_the_time() -> None:
            while not done.is_set():
                os.pread(cached.fileno(), 4096, 0)

        reader = threading.Thread(target=read_all_the_time)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        reader.start()
        try:
            for number in range(2000):
                page[:8] = number.to_bytes(8, "little")
                assert os.pwrite(fd, page, 0) == 4096
                assert os.pread(cached.fileno(), 8, 0) == number.to_bytes(8, "little")
        finally:
            done.set()
            reader.join()
            os.close(fd)
