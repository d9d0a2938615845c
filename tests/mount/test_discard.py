"""Holes and allocation through a mount: what programs ask for, and what becomes of the backing's blocks."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from allocation import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH,
    ZERO_RANGE,
    data_ranges,
    fallocate,
)
from loops import Loops, run
from mounting import MountedFs

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
# Blocks that a file system may take for the list of an image's extents: a hole more makes that list longer.
TREE = 64 << 10


def need(*tools: str) -> None:
    """Skip where one of the programs is not there."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install util-linux qemu-utils)")


def need_zeroing(directory: Path) -> None:
    """Skip where the file system makes holes but zeroes no ranges."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        fallocate(fd, ZERO_RANGE, 0, 4096)
    except OSError as error:
        pytest.skip(f"{directory} is on a file system that zeroes no ranges: {error.strerror}")
    finally:
        os.close(fd)


def allocated(path: Path) -> int:
    """Bytes of blocks that a file has, when all that was written to it is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # blocks of buffered writes are chosen when they are written back
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of a file."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """What is done inside fails with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number


def full(path: Path, size: int = 8 * MIB) -> bytearray:
    """A file of that many random bytes; its content."""
    content = bytearray(os.urandom(size))
    path.write_bytes(content)
    return content


# -- programs on the file itself --


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_fallocate_allocates_punches_zeroes_and_digs(
    mounted: Mounting, image_dir: Path, driver: str, cache: str, need_direct: Callable[[str], str]
) -> None:
    """util-linux's fallocate, on every driver: sizes, blocks and bytes, also of odd ranges."""
    need("fallocate")
    need_zeroing(image_dir)
    backing = image_dir / "disk.img"
    fs = mounted(image_dir, "--aio", driver, "--cache", need_direct(cache))
    image = fs.path / "disk.img"
    run("fallocate", "-l", str(8 * MIB), image)
    assert (image.stat().st_size, backing.stat().st_size) == (8 * MIB, 8 * MIB)
    assert allocated(backing) >= 8 * MIB
    model = full(image)
    before = allocated(backing)
    run("fallocate", "-p", "-o", str(MIB), "-l", str(2 * MIB), image)
    model[MIB : 3 * MIB] = bytes(2 * MIB)
    assert allocated(backing) <= before - 2 * MIB + TREE
    run("fallocate", "-p", "-o", "5000001", "-l", "12345", image)
    model[5000001:5012346] = bytes(12345)
    run("fallocate", "-z", "-o", str(6 * MIB), "-l", "70001", image)
    model[6 * MIB : 6 * MIB + 70001] = bytes(70001)
    assert image.read_bytes() == model
    assert backing.read_bytes() == model
    with opened(image) as fd:
        os.pwrite(fd, bytes(MIB), 4 * MIB)
    model[4 * MIB : 5 * MIB] = bytes(MIB)
    before = allocated(backing)
    run("fallocate", "-d", image)
    assert allocated(backing) <= before - MIB + TREE
    run("fallocate", "-n", "-l", str(10 * MIB), image)
    assert image.stat().st_size == backing.stat().st_size == 8 * MIB
    assert backing.read_bytes() == model
    told = fs.info()
    [counters] = [image["counters"] for image in (*told["images"], *told["closed"])]
    assert counters["requests_fallocate"] >= 6
    assert counters["errors"] == 0


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE, PUNCH | ZERO_RANGE])
def test_ranges_do_not_move(mounted: Mounting, image_dir: Path, mode: int) -> None:
    """EOPNOTSUPP, and not a byte is changed; holes go on to work."""
    model = full(image_dir / "disk.img", MIB)
    fs = mounted(image_dir)
    with opened(fs.path / "disk.img") as fd:
        with refused(errno.EOPNOTSUPP):
            fallocate(fd, mode, 4096, 4096)
        assert os.pread(fd, MIB, 0) == model
        fallocate(fd, PUNCH, 4096, 4096)
        assert os.pread(fd, 3 * 4096, 0) == model[:4096] + bytes(4096) + model[8192:12288]


@pytest.mark.parametrize("mode", [PUNCH, ZERO_RANGE])
@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_who_has_read_it_before_sees_the_hole(
    mounted: Mounting, image_dir: Path, mode: int, flags: int
) -> None:
    """Pages that the kernel keeps for other openers and mappings are right, to the byte, at once."""
    if mode == ZERO_RANGE:
        need_zeroing(image_dir)
    model = full(image_dir / "disk.img", MIB)
    fs = mounted(image_dir)
    image = fs.path / "disk.img"
    with (
        opened(image) as reader,
        opened(image, os.O_RDWR | flags) as changer,
        mmap.mmap(reader, MIB, prot=mmap.PROT_READ) as view,
    ):
        for offset, length in ((10_000, 30_000), (4096 * 20, 4096), (500_001, 3)):
            assert os.pread(reader, MIB, 0) == view[:] == model
            fallocate(changer, mode, offset, length)
            model[offset : offset + length] = bytes(length)
            assert view[:] == model
            assert os.pread(reader, MIB, 0) == model


def test_an_image_that_is_allocated_past_its_end_has_its_new_size_at_once(
    mounted: Mounting, image_dir: Path
) -> None:
    """fstat and reads of who has it open, and not with KEEP_SIZE."""
    full(image_dir / "disk.img", 5000)
    fs = mounted(image_dir)
    with opened(fs.path / "disk.img") as fd, opened(fs.path / "disk.img", os.O_RDONLY) as other:
        fallocate(fd, KEEP_SIZE, 0, 30_000)
        assert os.fstat(other).st_size == 5000
        assert os.pread(other, 10_000, 4999)[1:] == b""
        fallocate(fd, 0, 20_000, 1)
        assert os.fstat(other).st_size == 20_001
        assert os.pread(other, 30_000, 5000) == bytes(15_001)


def test_copies_and_conversions_see_the_holes(mounted: Mounting, image_dir: Path, tmp_path: Path) -> None:
    """cp into and out of the mount, qemu-img map and convert: data where data is, and nowhere else."""
    need("qemu-img")
    original = tmp_path / "original"
    with original.open("wb") as file:
        file.truncate(64 * MIB)
    with opened(original) as fd:
        for offset in (0, 10 * MIB, 63 * MIB):
            os.pwrite(fd, os.urandom(MIB), offset)
    fs = mounted(image_dir)
    image, backing = fs.path / "disk.img", image_dir / "disk.img"
    run("cp", "--sparse=always", original, image)
    assert allocated(backing) <= 16 * MIB
    with opened(image, os.O_RDONLY) as fd:
        data = [(0, MIB), (10 * MIB, 11 * MIB), (63 * MIB, 64 * MIB)]
        assert list(data_ranges(fd)) == data
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (64 * MIB, 65 * MIB, -1):
                with refused(errno.ENXIO):
                    os.lseek(fd, offset, whence)
        assert os.lseek(fd, 64 * MIB - 1, os.SEEK_HOLE) == 64 * MIB
    maps = [
        json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", path)) for path in (image, backing)
    ]
    assert maps[0] == maps[1]
    assert [(part["start"], part["start"] + part["length"]) for part in maps[0] if part["data"]] == data
    for number, command in enumerate(
        (["cp", "--sparse=auto"], ["qemu-img", "convert", "-f", "raw", "-O", "raw"])
    ):
        copy = tmp_path / f"copy{number}"
        run(*command, image, copy)
        assert allocated(copy) <= 16 * MIB
        assert copy.read_bytes() == original.read_bytes()
        back = fs.path / f"back{number}.img"
        run(*command, copy, back)
        assert allocated(image_dir / back.name) <= 16 * MIB
        assert back.read_bytes() == original.read_bytes()


def test_a_seek_in_the_info_file_ends_no_seeking(mounted: Mounting, image_dir: Path, tmp_path: Path) -> None:
    """Which is not served by the data plane: cp copies it, and images are still asked for their holes."""
    with (image_dir / "disk.img").open("wb") as file:
        file.truncate(MIB)
    fs = mounted(image_dir)
    with opened(fs.path / ".aiofs/info.json", os.O_RDONLY) as fd, refused(errno.EINVAL):
        os.lseek(fd, 0, os.SEEK_DATA)
    run("cp", "--sparse=auto", fs.path / ".aiofs/info.json", tmp_path / "told")
    assert json.loads((tmp_path / "told").read_bytes())["source"] == str(image_dir)
    with opened(fs.path / "disk.img", os.O_RDONLY) as fd:
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        assert fs.info()["images"][0]["counters"]["requests_lseek"] == 1


def test_a_read_only_mount_has_holes_and_makes_none(mounted: Mounting, image_dir: Path) -> None:
    """lseek finds them; fallocate needs a descriptor that can write, which there is none of."""
    with (image_dir / "disk.img").open("wb") as file:
        file.truncate(MIB)
    fs = mounted(image_dir, "--read-only")
    with refused(errno.EROFS), opened(fs.path / "disk.img"):
        pass
    with opened(fs.path / "disk.img", os.O_RDONLY) as fd:
        assert list(data_ranges(fd)) == []
        with refused(errno.EBADF):
            fallocate(fd, PUNCH, 0, 4096)


@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_under_writethrough_zeroed_ranges_are_durable(mounted: Mounting, image_dir: Path, cache: str) -> None:
    """An fdatasync before the answer, as for a write; in other modes there is none before the caller's."""
    full(image_dir / "disk.img", MIB)
    fs = mounted(image_dir, "--cache", cache)
    with opened(fs.path / "disk.img") as fd:
        fallocate(fd, PUNCH, 0, 4096)
        counters = fs.info()["images"][0]["counters"]
    assert counters["ios_fallocate"] == 1
    assert counters["ios_fsync"] == (1 if cache == "writethrough" else 0)


# -- as disks --


def test_a_disk_gives_back_what_its_file_system_frees(
    mounted: Mounting, loops: Loops, image_dir: Path, driver: str
) -> None:
    """mkfs, fstrim of a mounted ext4, and blkdiscard: the backing file's blocks go, on every driver."""
    need("fstrim", "blkdiscard")
    need_zeroing(image_dir)
    backing = image_dir / "disk.img"
    full(backing, 64 * MIB)
    fs = mounted(image_dir, "--aio", driver)
    device = loops.attach(fs.path / "disk.img", "--direct-io=on")
    assert allocated(backing) >= 64 * MIB
    run("mkfs.ext4", "-q", "-E", "discard", device)
    assert allocated(backing) < 16 * MIB
    disk = loops.mount(device, "disk")
    kept, gone = os.urandom(4 * MIB), os.urandom(32 * MIB)
    (disk / "kept").write_bytes(kept)
    (disk / "gone").write_bytes(gone)
    os.sync()
    held = allocated(backing)
    assert held >= 36 * MIB
    (disk / "gone").unlink()
    os.sync()
    run("fstrim", disk)
    assert allocated(backing) <= held - 31 * MIB
    loops.umount(disk)
    run("e2fsck", "-f", "-n", device)
    disk = loops.mount(device, "disk")
    assert (disk / "kept").read_bytes() == kept
    loops.umount(disk)
    run("blkdiscard", device)
    assert allocated(backing) <= MIB
    assert backing.read_bytes() == bytes(64 * MIB)
    counters = fs.info()["images"][0]["counters"]
    assert counters["requests_fallocate"] >= 3
    assert counters["errors"] == 0


def test_zeros_are_written_by_the_image_s_file_system(
    mounted: Mounting, loops: Loops, image_dir: Path
) -> None:
    """`blkdiscard --zeroout` of a loop device sends no zeros through the mount."""
    need("blkdiscard")
    need_zeroing(image_dir)
    full(image_dir / "disk.img", 8 * MIB)
    fs = mounted(image_dir)
    device = loops.attach(fs.path / "disk.img", "--direct-io=on")
    run("blkdiscard", "--zeroout", "--offset", str(MIB), "--length", str(4 * MIB), device)
    counters = fs.info()["images"][0]["counters"]
    assert counters["requests_fallocate"] >= 1
    assert counters["bytes_written"] == 0
    assert (image_dir / "disk.img").read_bytes()[MIB : 5 * MIB] == bytes(4 * MIB)


# -- where the file system below cannot --


def test_without_holes_below_nothing_is_zeroed(below: Loops, mounted: Mounting, loops: Loops) -> None:
    """ramfs has no fallocate at all: EOPNOTSUPP each time, the bytes stay, nothing is written instead."""
    ram = below.virtual("ramfs", "ram", "size=64m")
    model = full(ram / "disk.img", 8 * MIB)
    fs = mounted(ram, "--cache", "writeback")
    with opened(fs.path / "disk.img") as fd:
        for mode in (PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, 0, KEEP_SIZE, PUNCH):
            with refused(errno.EOPNOTSUPP):
                fallocate(fd, mode, MIB, MIB)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 8 * MIB
        counters = fs.info()["images"][0]["counters"]
        assert (counters["requests_fallocate"], counters["errors"]) == (6, 6)
    device = loops.attach(fs.path / "disk.img")
    # Fails or not: some kernels take a discard that is not supported for one that is done.
    subprocess.run(["blkdiscard", device], capture_output=True, timeout=60, check=False)
    assert fs.info()["images"][0]["counters"]["bytes_written"] == 0
    assert (ram / "disk.img").read_bytes() == model


def test_what_one_file_system_cannot_another_mode_may(below: Loops, mounted: Mounting) -> None:
    """ext2 punches holes, and neither allocates nor zeroes: each mode is asked for itself, every time."""
    old = below.filesystem("ext2", "old", 32 * MIB, "-F")
    model = full(old / "disk.img", MIB)
    fs = mounted(old)
    with opened(fs.path / "disk.img") as fd:
        with opened(old / "disk.img") as plain:
            try:
                fallocate(plain, ZERO_RANGE, 0, 4096)
                pytest.skip("this kernel's ext2 zeroes ranges")
            except OSError as error:
                assert error.errno == errno.EOPNOTSUPP
            try:
                fallocate(plain, PUNCH, 0, 4096)
            except OSError as error:
                pytest.skip(f"this kernel's ext2 makes no holes: {error.strerror}")
        model[:4096] = bytes(4096)
        for offset in (8192, 65536):
            for mode in (ZERO_RANGE, 0):
                with refused(errno.EOPNOTSUPP):
                    fallocate(fd, mode, offset, 4096)
            assert os.pread(fd, MIB, 0) == model
            fallocate(fd, PUNCH, offset, 4096)
            model[offset : offset + 4096] = bytes(4096)
        assert os.pread(fd, MIB, 0) == model


# -- block devices --


def test_a_block_device_is_discarded_and_zeroed(
    below: Loops, mounted: Mounting, tmp_path: Path, driver: str
) -> None:
    """A hole is a discard that reaches the device's own backing; parts of sectors, past the end and
    allocation are not supported, and change nothing."""
    backing = tmp_path / "backing"
    model = full(backing)
    device = below.attach(backing)
    fs = mounted(device, "--aio", driver)
    with opened(fs.path / device.name) as fd:
        fallocate(fd, PUNCH, MIB, 2 * MIB)
        fallocate(fd, ZERO_RANGE, 4 * MIB, MIB)
        model[MIB : 3 * MIB] = bytes(2 * MIB)
        model[4 * MIB : 5 * MIB] = bytes(MIB)
        assert os.pread(fd, 8 * MIB, 0) == model
        for mode, offset, length in (
            (PUNCH, 100, 100),
            (ZERO_RANGE, 7 * MIB, 2 * MIB),
            (0, 0, MIB),
            (KEEP_SIZE, 0, MIB),
        ):
            with refused(errno.EOPNOTSUPP):
                fallocate(fd, mode, offset, length)
        assert os.fstat(fd).st_size == 8 * MIB
        assert list(data_ranges(fd)) == [(0, 8 * MIB)]
    assert allocated(backing) <= 6 * MIB + TREE
    assert fs.umount() == 0
    assert backing.read_bytes() == model
