"""Images that are made, grown and shrunk while they are in use."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest
from loops import Loops, run
from mounting import MountedFs
from test_fio import SIZE, fio, job, kept_open
from working import require_driver

from aiofs.dataplane import Io, Op, Queue

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
GIB = 1 << 30


# -- making them --


def test_large_images_are_made_in_no_time(mounted: Mounting, image_dir: Path) -> None:
    """truncate and qemu-img create: 10 GiB without a block, there at once and from both sides."""
    fs = mounted(image_dir)
    run("truncate", "-s", "10G", fs.path / "new.img")
    names = ["new.img"]
    if shutil.which("qemu-img"):
        run("qemu-img", "create", "-q", "-f", "raw", fs.path / "qemu.img", "10G")
        told = json.loads(run("qemu-img", "info", "-f", "raw", "--output=json", fs.path / "qemu.img"))
        assert told["virtual-size"] == 10 * GIB
        names.append("qemu.img")
    for name in names:
        for path in (fs.path / name, image_dir / name):
            assert path.stat().st_size == 10 * GIB
            assert path.stat().st_blocks * 512 < MIB
    with (fs.path / "new.img").open("r+b", buffering=0) as image:
        assert os.pwrite(image.fileno(), b"end", 10 * GIB - 3) == 3
        assert os.pread(image.fileno(), 10, 10 * GIB - 10) == bytes(7) + b"end"


# -- as disks --


def device_size(device: Path) -> int:
    """Bytes of a block device."""
    with device.open("rb") as opened:
        return opened.seek(0, os.SEEK_END)


def test_a_disk_follows_its_image(mounted: Mounting, loops: Loops, image_dir: Path) -> None:
    """`losetup -c` after growing and shrinking; the file system on it grows too."""
    with (image_dir / "disk.img").open("wb") as file:
        file.truncate(64 * MIB)
    fs = mounted(image_dir)
    image = fs.path / "disk.img"
    device = loops.attach(image, "--direct-io=on")
    run("mkfs.ext4", "-q", device)
    disk = loops.mount(device, "disk")
    data = os.urandom(8 * MIB)
    (disk / "file").write_bytes(data)
    before = os.statvfs(disk).f_blocks
    run("truncate", "-s", str(256 * MIB), image)
    run("losetup", "-c", device)
    assert device_size(device) == 256 * MIB
    loops.umount(disk)
    run("e2fsck", "-f", "-n", device)
    run("resize2fs", "-f", device)
    disk = loops.mount(device, "disk")
    assert os.statvfs(disk).f_blocks > 3 * before
    (disk / "more").write_bytes(data * 10)  # more than there was room for
    loops.umount(disk)
    run("e2fsck", "-f", "-n", device)
    disk = loops.mount(device, "disk")
    assert (disk / "file").read_bytes() == data
    loops.umount(disk)
    run("truncate", "-s", str(16 * MIB), image)
    run("losetup", "-c", device)
    assert device_size(device) == 16 * MIB
    assert (image_dir / "disk.img").stat().st_size == 16 * MIB


# -- under load --


@contextmanager
def resized_meanwhile(path: Path, *sizes: int) -> Iterator[list[int]]:
    """Set the size of a file to these in turn, over and over, during the block; every size that was set."""
    done = threading.Event()
    seen: list[int] = []

    def resize() -> None:
        for size in cycle(sizes):
            os.truncate(path, size)
            seen.append(size)
            if done.is_set() and len(seen) >= len(sizes):
                return

    with ThreadPoolExecutor(1) as pool:
        resizing = pool.submit(resize)
        try:
            yield seen
        finally:
            done.set()
            resizing.result()


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed (apt-get install fio)")
def test_an_image_grows_and_shrinks_under_load(mounted: Mounting, image_dir: Path, driver: str) -> None:
    """fio verifies what it writes at depth 32, direct and buffered, while the image's end comes and goes
    behind it."""
    names = ("random.img", "sequential.img")
    for name in names:
        (image_dir / name).write_bytes(bytes(SIZE))
    fs = mounted(image_dir, "--aio", driver)
    random, sequential = (fs.path / name for name in names)
    sizes = (64 * MIB, SIZE, 13 * MIB + 5, 256 * MIB, SIZE + 1)
    with (
        kept_open(random, sequential),
        resized_meanwhile(random, *sizes) as seen,
        resized_meanwhile(sequential, *sizes),
    ):
        fio(*job(random, "randwrite", True, "libaio"), *job(sequential, "write", False, "io_uring"))
        counters = [image["counters"] for image in fs.info()["images"]]
    assert [of["errors"] for of in counters] == [0, 0]
    assert len(seen) >= len(sizes)
    for name in names:
        os.truncate(fs.path / name, SIZE)
        assert (fs.path / name).read_bytes() == (image_dir / name).read_bytes()


WRITES, EACH = 8, 65536
LARGE, SMALL = 2 * MIB, MIB + 4096
"""The first of the writes begins at 1 MiB, and is cut by the new end."""
STARTS = [MIB + EACH * i for i in range(WRITES)]


def patterns(number: int) -> list[bytes]:
    """What is written in a round: other bytes than in the rounds before and after."""
    return [bytes([1 + (number * WRITES + i) % 255]) * EACH for i in range(WRITES)]


def test_writes_in_flight_do_not_land_past_the_new_end(
    mounted: Mounting, image_dir: Path, driver: str
) -> None:
    """Asynchronous writes are on their way when the image is shrunk: its end is the new one, for good."""
    require_driver("linux")
    backing = image_dir / "disk.img"
    backing.write_bytes(b"")
    fs = mounted(image_dir, "--aio", driver)
    fd = os.open(fs.path / "disk.img", os.O_RDWR | os.O_DIRECT)
    try:
        with Queue("linux", WRITES) as queue:
            queue.attach(fd)
            for number in range(100):
                os.ftruncate(fd, LARGE)
                data = patterns(number)
                writes = [Io(i, Op.WRITE, fd, start, data[i]) for i, start in enumerate(STARTS)]
                assert queue.submit(writes) == WRITES
                os.ftruncate(fd, SMALL)
                queue.flush()
                assert [done.result for done in queue.reap()] == [EACH] * WRITES
                assert os.fstat(fd).st_size == backing.stat().st_size == SMALL
                assert backing.read_bytes()[MIB:] == data[0][: SMALL - MIB]
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_a_write_beside_a_shrinking_is_before_or_after_it(
    mounted: Mounting, image_dir: Path, driver: str, flags: int
) -> None:
    """Writers and the shrinking in threads: each write is cut by it, or there whole; none of an earlier
    round comes back."""
    backing = image_dir / "disk.img"
    backing.write_bytes(b"")
    fs = mounted(image_dir, "--aio", driver)
    fd = os.open(fs.path / "disk.img", os.O_RDWR | flags)
    together = threading.Barrier(WRITES + 1)

    def write(data: bytes, start: int) -> None:
        together.wait()
        assert os.pwrite(fd, data, start) == EACH

    def shrink() -> None:
        together.wait()
        os.ftruncate(fd, SMALL)

    try:
        with ThreadPoolExecutor(WRITES + 1) as pool:
            for number in range(40):
                os.ftruncate(fd, LARGE)
                data = patterns(number)
                work = [pool.submit(shrink)]
                work += [pool.submit(write, *where) for where in zip(data, STARTS, strict=True)]
                for future in work:
                    future.result()
                os.fsync(fd)
                check_round(backing.read_bytes(), data)
                assert os.fstat(fd).st_size == backing.stat().st_size
    finally:
        os.close(fd)


def check_round(content: bytes, data: list[bytes]) -> None:
    """The image after writes beside a shrinking."""
    assert len(content) in {SMALL, *(start + EACH for start in STARTS)}
    assert content[MIB:SMALL] == data[0][: SMALL - MIB]
    for start, written in zip(STARTS, data, strict=True):
        there = content[max(start, SMALL) : start + EACH]
        assert there in (bytes(len(there)), written[: len(there)]), f"a part of what was written at {start}"


def test_a_closed_or_open_image_is_shrunk_below_what_is_cached(mounted: Mounting, image_dir: Path) -> None:
    """What is cut off is zeros when the image grows again, for those who had read it as well."""
    (image_dir / "disk.img").write_bytes(b"old!" * MIB)
    fs = mounted(image_dir)
    path = fs.path / "disk.img"
    with path.open("r+b", buffering=0) as image:
        fd = image.fileno()
        assert os.pread(fd, MIB, MIB) == b"old!" * (MIB // 4)
        os.truncate(path, MIB + 3)
        assert os.pread(fd, MIB, MIB) == b"old"
        os.truncate(path, 4 * MIB)
        assert os.pread(fd, 2 * MIB, MIB) == b"old" + bytes(2 * MIB - 3)
    assert path.read_bytes() == b"old!" * (MIB // 4) + b"old" + bytes(3 * MIB - 3)
