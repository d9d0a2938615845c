"""Images as disks: under loop devices with file systems on them, on full disks, on block devices.

These need loop devices, and so root; without it they are skipped, and say so.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loops import Loops, run
from mounting import MountedFs
from trees import assert_same_tree

import aiofs

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
PACKAGE = Path(aiofs.__file__).parent


def sparse(path: Path, size: int) -> Path:
    """A file of that size without blocks."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def use_as_disk(loops: Loops, image: Path, *mkfs: str) -> None:
    """A file system on a loop device on an image of a mount: a real tree is copied and comes back."""
    device = loops.attach(image, "--direct-io=on")
    run("mkfs.ext4", "-q", *mkfs, device)
    disk = loops.mount(device, "disk")
    shutil.copytree(PACKAGE, disk / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    os.sync()
    loops.umount(disk)
    disk = loops.mount(device, "disk")  # nothing is cached any more
    assert_same_tree(PACKAGE, disk / "tree")
    loops.umount(disk)
    run("e2fsck", "-f", "-n", device)
    loops.detach(device)


# -- a disk on an image --


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_a_file_system_lives_on_an_image(
    mounted: Mounting, loops: Loops, image_dir: Path, need_direct: Callable[[str], str], cache: str
) -> None:
    """mkfs, mount, copy, unmount, fsck; then the image is mounted underneath, with the same tree on it."""
    image = sparse(image_dir / "disk.img", 64 * MIB)
    fs = mounted(image_dir, "--cache", need_direct(cache))
    use_as_disk(loops, fs.path / "disk.img")
    assert fs.umount() == 0
    under = loops.mount(loops.attach(image, "--read-only"), "under", "-o", "ro")
    assert_same_tree(PACKAGE, under / "tree")


def test_a_disk_is_trusted_to_sync(mounted: Mounting, loops: Loops, image_dir: Path) -> None:
    """fsync of a file in the file system on an image reaches the image as an FSYNC."""
    sparse(image_dir / "disk.img", 32 * MIB)
    fs = mounted(image_dir)
    device = loops.attach(fs.path / "disk.img", "--direct-io=on")
    run("mkfs.ext4", "-q", device)
    disk = loops.mount(device, "disk")
    before = fs.info()["images"][0]["counters"]["requests_fsync"]
    with (disk / "file").open("wb") as file:
        file.write(b"durable")
        file.flush()
        os.fsync(file.fileno())
    counters = fs.info()["images"][0]["counters"]
    assert counters["requests_fsync"] > before
    assert counters["errors"] == 0


# -- a full disk --


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_a_full_disk_is_enospc_and_the_server_goes_on(
    below: Loops, mounted: Mounting, cache: str, flags: int
) -> None:
    """Rule 5: ENOSPC for the image that needs room; another one is written; with room, both are."""
    small = below.ext4("small", 24 * MIB, "-m", "0")
    (small / "filler").write_bytes(bytes(4 * MIB))
    (small / "whole.img").write_bytes(bytes(2 * MIB))
    sparse(small / "sparse.img", 64 * MIB)
    fs = mounted(small, "--cache", cache)
    whole = os.open(fs.path / "whole.img", os.O_RDWR | flags)
    growing = os.open(fs.path / "sparse.img", os.O_RDWR | flags)
    block = os.urandom(256 << 10)
    try:
        written = 0
        with pytest.raises(OSError) as caught:
            for offset in range(0, 64 * MIB, len(block)):
                assert os.pwrite(growing, block, offset) == len(block)
                written = offset + len(block)
        assert caught.value.errno == errno.ENOSPC
        assert os.pwrite(whole, block, MIB) == len(block)
        os.fsync(whole)
        assert os.pread(whole, len(block), MIB) == block
        (fs.path / "filler").unlink()
        os.sync()
        assert os.pwrite(growing, block, written) == len(block)
        os.fsync(growing)
        for offset in range(0, written + len(block), len(block)):
            assert os.pread(growing, len(block), offset) == block
    finally:
        os.close(whole)
        os.close(growing)
    assert (small / "sparse.img").stat().st_size == 64 * MIB


# -- block devices --


def test_a_block_device_is_served(below: Loops, mounted: Mounting, tmp_path: Path) -> None:
    """Under its own name, with its size, which it keeps: no truncation, and ENOSPC behind its end."""
    backing = sparse(tmp_path / "backing", 8 * MIB)
    device = below.attach(backing)
    fs = mounted(device)
    path = fs.path / device.name
    assert [entry.name for entry in fs.path.iterdir()] == [device.name]
    assert path.stat().st_size == 8 * MIB
    assert fs.info()["source_kind"] == "block device"
    data = os.urandom(MIB)
    for flags in (0, os.O_DIRECT):
        fd = os.open(path, os.O_RDWR | flags)
        try:
            assert os.pwrite(fd, data, 3 * MIB + 17) == MIB
            os.fsync(fd)
            assert os.pread(fd, MIB, 3 * MIB + 17) == data
            assert os.pread(fd, 100, 8 * MIB) == b""
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"x" * 512, 8 * MIB)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError):
                os.ftruncate(fd, MIB)
        finally:
            os.close(fd)
    assert fs.umount() == 0
    assert backing.read_bytes()[3 * MIB + 17 : 4 * MIB + 17] == data
    assert backing.stat().st_size == 8 * MIB


@pytest.fixture
def big_sectors(below: Loops, tmp_path: Path) -> tuple[Path, Path]:
    """A device with sectors of 4 KiB, and the file it is on, full of random bytes."""
    backing = tmp_path / "backing"
    backing.write_bytes(os.urandom(4 * MIB))
    device = below.attach(backing, "--sector-size", "4096")
    if run("blockdev", "--getss", device).strip() != "4096":
        pytest.skip("this kernel has no loop devices with sectors of 4 KiB")
    return device, backing


def test_small_requests_on_big_sectors_are_exact(big_sectors: tuple[Path, Path], mounted: Mounting) -> None:
    """Rule 4: 512-byte O_DIRECT and odd buffered writes, many at once in one sector, change no byte more."""
    device, backing = big_sectors
    model = bytearray(backing.read_bytes())
    fs = mounted(device, "--cache", "none")
    rng = random.Random(4096)
    fds = [os.open(fs.path / device.name, os.O_RDWR | flags) for flags in (os.O_DIRECT, 0)]
    try:
        assert fs.info()["images"][0]["block_size"] == 4096
        with ThreadPoolExecutor(8) as pool:
            for turn in range(150):
                fd, unit = fds[turn % 2], (512, 1)[turn % 2]
                start = rng.randrange(4 * MIB - 65536) // unit * unit
                work = []
                for _ in range(8):  # end to end: neighbours share sectors
                    length = rng.randrange(1, 8192) // unit * unit or unit
                    work.append((start, rng.randbytes(length)))
                    start += length
                done = pool.map(os.pwrite, [fd] * 8, [data for _, data in work], [at for at, _ in work])
                assert list(done) == [len(data) for _, data in work]
                for at, data in work:
                    model[at : at + len(data)] = data
                at = work[0][0]
                assert os.pread(fd, start - at, at) == model[at:start]
        [image] = fs.info()["images"]
        assert image["counters"]["unaligned"] > 0
    finally:
        for fd in fds:
            os.close(fd)
    assert fs.umount() == 0
    assert backing.read_bytes() == model


def test_a_disk_of_small_sectors_on_big_ones(
    big_sectors: tuple[Path, Path], mounted: Mounting, loops: Loops
) -> None:
    """A loop device on the image has sectors of 512 bytes, whatever the image needs: its blocks of 1 KiB
    are read, modified and written."""
    device, backing = big_sectors
    os.truncate(backing, 32 * MIB)
    run("losetup", "--set-capacity", device)
    fs = mounted(device, "--cache", "none")
    use_as_disk(loops, fs.path / device.name, "-b", "1024")
