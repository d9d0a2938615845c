"""Every operation under a real mount fails in turn, once and from then on for ever, until there is none left.

As tests/plane/test_fault_sweep.py, with the kernel, its page cache and the whole server: who calls is told
the truth, an image beside it is untouched, nobody waits for ever, and the mount ends. A fault can be given a
range of bytes, so one mount has a fault for each number, each for a caller of its own; only fsync, truncate
and lseek have no range, and take a mount for each number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import SLOT, Caller, pattern
from hanging import never_hanging
from mounting import MountedFs
from working import DRIVERS, require_driver

Mounting = Callable[..., MountedFs]

FAULTS = {
    "error=EIO": errno.EIO,
    "error=ENOSPC": errno.ENOSPC,
    "error=EAGAIN": 0,
    "error=EINTR": 0,
    "short": 0,
}
"""What goes wrong, and what of it a caller is told when it happens once; 0: nothing."""
IN_RANGE = {"error": "read+write+fallocate", "short": "read+write"}
CALLERS = 32
"""For each of once and for ever: aiofs takes 64 faults, and the script has fewer operations with a range."""
BESIDE = CALLERS * 2 * SLOT
HANG_S = 60
"""The script takes 20 to 100 ms."""

CI = ("io_uring", "none")
"""The others are for --long."""
MOUNTS = [
    pytest.param(
        driver, cache, marks=[] if (driver, cache) == CI else pytest.mark.long, id=f"{driver}-{cache}"
    )
    for driver in DRIVERS
    for cache in ("none", "writeback")
]


def judge(failed: list[tuple[str, int]], fault: str, forever: bool, *, at_least: int) -> None:
    """Was the right errno told, as often as it was due?"""
    told = {error for _, error in failed}
    if FAULTS[fault]:
        assert told <= {FAULTS[fault]}
        assert at_least <= len(failed) and (forever or len(failed) <= 1)
    else:
        # For ever: 64 times no progress, or half of a block of an O_DIRECT image again and again.
        assert told <= ({errno.EIO} if forever else set())


def work_beside(fs: MountedFs, number: int, *, fsync: bool) -> None:
    """An image that no fault is meant for is written and read as if nothing were wrong."""
    data = pattern(number, 4096)
    fd = os.open(fs.path / "beside.img", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        assert os.pwrite(fd, data, BESIDE) == len(data)
        if fsync:
            os.fsync(fd)
        assert os.pread(fd, len(data), BESIDE) == data
    finally:
        os.close(fd)
    with (fs.source / "beside.img").open("rb") as file:
        file.seek(BESIDE)
        assert file.read() == data


@pytest.fixture
def faulty(mounted: Mounting, image_dir: Path, need_direct: Callable[[str], str]) -> Callable[..., MountedFs]:
    """`faulty(driver, cache, words)` mounts the images behind these faults."""

    def mount(driver: str, cache: str, words: str) -> MountedFs:
        kind = f"fault:{require_driver(driver)},{words}"
        fs = mounted(image_dir, "--aio", kind, "--cache", need_direct(cache), "--no-merge")
        fs.allow("fail on purpose")
        return fs

    return mount


def struck(fs: MountedFs) -> list[int]:
    """How often each fault has struck; nothing of it was an overlap."""
    told = fs.info()["faults"]
    assert told["overlaps"] == 0
    return [fault["struck"] for fault in told["faults"]]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("driver", "cache"), MOUNTS)
def test_every_caller_is_told_the_truth(
    faulty: Callable[..., MountedFs], image_dir: Path, driver: str, cache: str, fault: str
) -> None:
    """Reads, writes and fallocates."""
    operations = IN_RANGE[fault.partition("=")[0]]
    plan = [
        f"{fault},on={operations},op={number}{'-' if forever else ''}"
        for forever in (False, True)
        for number in range(1, CALLERS + 1)
    ]
    ranges = [f"from={index * SLOT},to={(index + 1) * SLOT}" for index in range(len(plan))]
    fs = faulty(driver, cache, ",".join(f"{one},{where}" for one, where in zip(plan, ranges, strict=True)))
    with never_hanging(fs.path, HANG_S):
        for forever in (False, True):
            for index in range(forever * CALLERS, (1 + forever) * CALLERS):
                caller = Caller(fs.path / f"{index}.img", image_dir / f"{index}.img", index * SLOT)
                caller.play()
                work_beside(fs, index, fsync=True)
                if not struck(fs)[index]:
                    break
                # The page cache asks again when reading ahead has failed: then nobody is told.
                judge(caller.failed, fault, forever, at_least=0)
                assert caller.synced
            assert not struck(fs)[index], "the script has more operations than there are faults"
            assert caller.failed == []
            assert index > forever * CALLERS + 10
        assert sum(map(bool, struck(fs))) >= 20
    assert fs.umount() == 0


@pytest.mark.parametrize(
    "forever", [False, pytest.param(True, marks=pytest.mark.long)], ids=["once", "for ever"]
)
@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if name == "error=EIO" else pytest.mark.long) for name in list(FAULTS)[:-1]],
)
@pytest.mark.parametrize(("driver", "cache"), MOUNTS)
def test_so_is_who_syncs(
    faulty: Callable[..., MountedFs],
    image_dir: Path,
    driver: str,
    cache: str,
    fault: str,
    forever: bool,
) -> None:
    """And who resizes or looks for holes; umount tells of an fsync that failed once more."""
    for number in range(1, CALLERS):
        words = f"{fault},on=fsync+truncate+lseek,op={number}{'-' if forever else ''}"
        fs = faulty(driver, cache, words)
        with never_hanging(fs.path, HANG_S):
            caller = Caller(fs.path / "a.img", image_dir / "a.img", 0)
            caller.play()
            [strikes] = struck(fs)
            work_beside(fs, number, fsync=bool(strikes) and not forever)
            if not caller.synced:
                fs.allow(r"not on disk: .*a\.img")
                fs.expected_status = 1
            assert fs.umount() == fs.expected_status
        caller.check("the backing file after umount")
        if not strikes:
            break
        judge(caller.failed, fault, forever, at_least=1)
    assert caller.failed == []
    assert number > 4
