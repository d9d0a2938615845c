"""Mounts that fail on purpose: what callers, `aiofs info` and `aiofs umount` are told."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import MountedFs, run_aiofs

from aiofs import mounttable, umount
from aiofs.errors import AiofsError

Mounting = Callable[..., MountedFs]
K = 4096
BLOCKS = 16


@pytest.fixture
def image(image_dir: Path) -> Path:
    """An image of 16 blocks, each filled with its number, and another beside it."""
    for name in ("a.img", "b.img"):
        (image_dir / name).write_bytes(b"".join(bytes([number]) * K for number in range(BLOCKS)))
    return image_dir / "a.img"


@pytest.fixture
def faulty(mounted: Mounting, image: Path) -> Callable[..., MountedFs]:
    """`faulty(words)` mounts the images behind these faults."""

    def mount(words: str, *flags: str) -> MountedFs:
        fs = mounted(image.parent, "--aio", f"fault:{words}", *flags)
        fs.allow("fail on purpose")
        return fs

    return mount


def refused(call: Callable[[], object]) -> int:
    """The errno of a call; 0 when it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_failed_fsync_is_told_to_every_later_one_and_to_umount(
    faulty: Callable[..., MountedFs], driver: str
) -> None:
    """Rule 3 through the kernel: while anybody has it open, and at the end; the image beside it is well."""
    fs = faulty(f"{driver},error=EIO,on=fsync,op=1")
    fs.allow("not on disk: .*a.img: Input/output error")
    fs.expected_status = 1
    with (fs.path / "a.img").open("rb"):
        for _ in range(2):
            with (fs.path / "a.img").open("r+b", buffering=0) as held:
                held.write(b"w" * K)
                assert [refused(lambda: os.fsync(held.fileno())) for _ in range(2)] == [errno.EIO] * 2
        [still_open] = [one for one in fs.info()["images"] if one["path"] == "a.img"]
        assert still_open["sticky_error"] == errno.EIO
    with (fs.path / "b.img").open("r+b", buffering=0) as held:
        held.write(b"w" * K)
        os.fsync(held.fileno())
    mount = mounttable.mount_at(fs.path)
    assert mount is not None
    with pytest.raises(AiofsError, match=r"not everything is on disk: .*a\.img: Input/output error"):
        umount.umount(fs.path, lazy=False, detach=False)


def test_info_tells_what_has_struck(faulty: Callable[..., MountedFs]) -> None:
    """In JSON and for people: each fault by its words, and that nothing overlapped."""
    fs = faulty("auto,short,on=write,op=1,error=EIO,on=fallocate,op=2-,seed=7")
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        assert held.write(b"w" * K) == K
        os.posix_fallocate(held.fileno(), 0, K)
        told = fs.info()
        [open_now] = told["images"]
    assert open_now["driver"].startswith("fault:")
    assert told["driver"] == "fault:auto"
    assert told["faults"]["overlaps"] == 0
    assert told["faults"]["seed"] == 7
    first, second = told["faults"]["faults"]
    assert (first["words"], second["words"]) == ("short,on=write,op=1", "error=EIO,on=fallocate,op=2-")
    assert (first["struck"], second["struck"]) == (1, 0)
    shown = run_aiofs("info", fs.path).stdout
    assert "short,on=write,op=1: struck 1" in shown
    assert "0 overlaps, seed 7" in shown


@pytest.mark.parametrize("flags", [(), ("--no-merge",)], ids=["merged", "not merged"])
def test_a_slow_disk_in_any_order_loses_nothing(faulty: Callable[..., MountedFs], flags: tuple[str]) -> None:
    """Delays by chance, any order and short results under 64 writes and reads: every byte is right."""
    fs = faulty(
        "auto,delay=2ms,probability=0.3,short,on=read+write,probability=0.3,error=EAGAIN,probability=0.1,reorder",
        *flags,
    )
    expected = bytearray((fs.source / "a.img").read_bytes())
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        for number in range(64):
            offset, data = number * 997 % (BLOCKS * K - 3000), bytes([number]) * 3000
            assert os.pwrite(held.fileno(), data, offset) == len(data)
            expected[offset : offset + len(data)] = data
        os.fsync(held.fileno())
        assert fs.info()["faults"]["overlaps"] == 0
    assert (fs.source / "a.img").read_bytes() == expected
    assert (fs.path / "a.img").read_bytes() == expected


def test_who_is_struck_is_told_and_nobody_else(faulty: Callable[..., MountedFs]) -> None:
    """As many callers get EIO as operations were struck, and what the others wrote is there."""
    fs = faulty("auto,error=EIO,on=read+write,probability=0.2,seed=3")
    path = fs.path / "a.img"
    expected = bytearray((fs.source / "a.img").read_bytes())
    failed: set[int] = set()
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for number in range(BLOCKS * 4):
            offset, data = number % BLOCKS * K, bytes([100 + number]) * K
            error = refused(lambda offset=offset, data=data: os.pwrite(fd, data, offset))  # type: ignore[misc]
            assert error in (0, errno.EIO)
            if error:
                failed.add(number)
            else:
                expected[offset : offset + K] = data
    finally:
        os.close(fd)
    struck = fs.info()["faults"]["faults"][0]["struck"]
    assert 0 < len(failed) == struck < BLOCKS * 4
    assert (fs.source / "a.img").read_bytes() == expected


def test_a_stalled_disk_goes_on_by_itself(faulty: Callable[..., MountedFs]) -> None:
    """The caller waits for as long as it was said to last, and nobody has to wake the server."""
    fs = faulty("auto,stall=300ms,on=write,op=1")
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        start = time.monotonic()
        assert held.write(b"w" * K) == K
        assert time.monotonic() - start >= 0.3
    assert (fs.source / "a.img").read_bytes()[:K] == b"w" * K


def test_words_with_colons_stand_in_o(mounted: Mounting, image: Path) -> None:
    """As in fstab."""
    fs = mounted(image.parent, "-o", "aio=fault:sync:error=ENOSPC:on=write,cache=writeback")
    fs.allow("fail on purpose")
    with (fs.path / "a.img").open("r+b", buffering=0) as held, pytest.raises(OSError, match="No space left"):
        held.write(b"w" * K)
