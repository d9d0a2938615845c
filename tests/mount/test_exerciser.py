"""The exerciser on a real mount: every driver, direct and buffered images, and servers that are killed; and
on files that lie, to see that it would notice, and say how to see it again.

AIOFS_SEED=n chooses other operations, AIOFS_OPERATIONS=n another number of them for each mount. With kills,
every mount is for --long: 100,000 operations. Once a million, one kill in 4,000:

    AIOFS_OPERATIONS=1000000 scripts/test tests/mount/test_exerciser.py -k "killed and io_uring and none"

AIOFS_REPLAY=FILE does the operations that a failure printed instead.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import exerciser
import pytest
import workload
from exerciser import Mismatch, Target, exercise, replay
from hanging import never_hanging
from killing import Killer
from mounting import MountedFs
from shrinking import reduced
from working import DRIVERS, require_driver

from aiofs import survival

SEED = int(os.environ.get("AIOFS_SEED", "2008"))
REPLAYED = os.environ.get("AIOFS_REPLAY", "")
OPERATIONS_A_KILL = 4000
KILLS_MIN = 3
OPERATIONS_A_SECOND_MIN = 100
"""Fewer, on average, are taken for a mount that hangs; it does 1,000 and more."""
CACHES = ("none", "writeback")


def operations(usual: int) -> int:
    """For each mount."""
    return int(os.environ.get("AIOFS_OPERATIONS", usual))


def work(target: Target, count: int, kills: int = 0) -> str:
    """Random operations, or those of AIOFS_REPLAY; which they were."""
    if REPLAYED:
        lines = Path(REPLAYED).read_text().splitlines()
        replay(target, lines)
        return f"{len(lines)} operations of {REPLAYED}"
    exercise(target, SEED, count, kills=kills)
    return f"seed {SEED}, {count} operations"


@pytest.mark.parametrize("cache", CACHES)
def test_an_image_is_what_was_written_to_it(
    mounted: Callable[..., MountedFs],
    image_dir: Path,
    driver: str,
    cache: str,
    need_direct: Callable[[str], str],
) -> None:
    """After any order of reads, writes, mappings, truncations, bursts and re-opens, from both sides."""
    fs = mounted(image_dir, "--aio", driver, "--cache", need_direct(cache))
    work(Target(fs.path / "a.img", image_dir / "a.img"), operations(10_000))
    assert fs.info()["driver"] == driver


@pytest.mark.skipif(
    bool(survival.why_not(os.uname().release)), reason=survival.why_not(os.uname().release) or "it can"
)
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        pytest.param(name, cache, marks=[] if (name, cache) == ("io_uring", "none") else pytest.mark.long)
        for name in DRIVERS
        for cache in CACHES
    ],
)
def test_it_is_that_while_servers_are_killed(
    mounted: Callable[..., MountedFs],
    image_dir: Path,
    name: str,
    cache: str,
    need_direct: Callable[[str], str],
    long: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every few thousand operations, in the middle of one; no error, and nothing lost."""
    fs = mounted(image_dir, "--aio", require_driver(name), "--cache", need_direct(cache))
    killer = Killer(fs)
    count = operations(100_000 if long else 2000)
    kills = max(KILLS_MIN, count // OPERATIONS_A_KILL)
    start = time.monotonic()
    with never_hanging(fs.path, 60 + count / OPERATIONS_A_SECOND_MIN):
        which = work(Target(fs.path / "a.img", image_dir / "a.img", kill=killer), count, kills)
    killer.wait()
    assert fs.info()["restarts"] == killer.kills
    assert killer.kills >= kills or REPLAYED
    with capsys.disabled():
        print(
            f"\n{name}, {cache}: {which}, {killer.kills} kills, {time.monotonic() - start:.0f} s: no mismatch"
        )


def test_the_exerciser_finds_nothing_wrong_with_a_plain_file(plain: Target) -> None:
    """Without any mount: what it complains about elsewhere is not of its own making."""
    exercise(plain, SEED, 300)


@pytest.fixture
def plain(tmp_path: Path) -> Target:
    """A file without any mount."""
    return Target(tmp_path / "plain", tmp_path / "plain", direct=False)


@pytest.mark.parametrize("lie", ["pread", "pwrite", "ftruncate", "fallocate", "lseek"])
def test_the_exerciser_notices_one_wrong_byte(
    plain: Target, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """A read that returns it, a write that leaves it, a size, a hole, or what is said of a hole that is one
    byte off: the seed is printed."""
    module = exerciser if lie == "fallocate" else os
    honest = getattr(module, lie)

    def pread(fd: int, length: int, offset: int) -> bytes:
        data: bytes = honest(fd, length, offset)
        return data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 100_000 else data

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100_000:
            honest(fd, data[:-1] + bytes([data[-1] ^ 1]), offset)
            return len(data)
        written: int = honest(fd, data, offset)
        return written

    def ftruncate(fd: int, size: int) -> None:
        honest(fd, size + 1)

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        honest(fd, mode, offset, length + 1)

    def lseek(fd: int, offset: int, whence: int) -> int:
        found: int = honest(fd, offset, whence)
        return found + 1 if whence == os.SEEK_DATA else found

    lies = {"pread": pread, "pwrite": pwrite, "ftruncate": ftruncate, "fallocate": fallocate, "lseek": lseek}
    monkeypatch.setattr(module, lie, lies[lie])
    with pytest.raises(Mismatch, match=rf"with seed {SEED}(?s:.)*the newest at the end"):
        exercise(plain, SEED, 2000)


def printed(mismatch: pytest.ExceptionInfo[Mismatch]) -> list[str]:
    """The list of operations that a failure says to do again."""
    _, _, listed = str(mismatch.value).partition("FILE holds\n")
    return [line.strip() for line in listed.splitlines()]


def test_a_failure_is_made_short(plain: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that loses the first write after it was made shorter: two or three operations are left, which
    fail again, and none of them can be spared."""
    honest_write, honest_truncate, honest_open = os.pwrite, os.ftruncate, os.open
    shorter: set[int] = set()

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if fd in shorter:
            shorter.discard(fd)
            return len(data)
        return honest_write(fd, data, offset)

    def ftruncate(fd: int, size: int) -> None:
        if size < os.fstat(fd).st_size:
            shorter.add(fd)
        honest_truncate(fd, size)

    def opened(path: Path, flags: int, mode: int = 0o600) -> int:
        fd = honest_open(path, flags, mode)
        shorter.discard(fd)
        return fd

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "ftruncate", ftruncate)
    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(Mismatch, match=r"shortened from \d+ operations to \d, which failed 3 of 3") as caught:
        exercise(plain, SEED, 2000)
    lines = printed(caught)
    assert 2 <= len(lines) <= 4
    for number in range(len(lines)):
        replay(plain, lines[:number] + lines[number + 1 :])
    with pytest.raises(Mismatch):
        replay(plain, lines)


def test_one_of_several_at_once_is_found(plain: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done at once is taken apart, too."""
    honest = os.pwrite
    lengths: set[int] = set()

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        lengths.add(len(data))
        return honest(fd, data, offset) if len(data) != 5000 else len(data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    burst = "write 0 100 1 & write 100 5000 2 & write 5100 300 3"
    monkeypatch.setattr(
        workload.Workload, "next", lambda _, size: workload.parse(burst if size else "write 0 1 1")
    )
    with pytest.raises(Mismatch) as caught:
        exercise(plain, SEED, 3)
    assert printed(caught) == ["write 100 5000 2"]
    assert lengths == {1, 100, 5000, 300}


def test_a_failure_that_does_not_repeat_is_not_made_short(
    plain: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write is lost, and never another: that is said, and no list is invented."""
    honest = os.pwrite
    lost: list[int] = []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100_000 and not lost:
            lost.append(offset)
            return len(data)
        return honest(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(Mismatch, match=r"not shortened: it did not happen again") as caught:
        exercise(plain, SEED, 2000)
    assert printed(caught) == []


def test_a_file_that_is_broken_for_good_is_not_made_short(
    plain: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done fails: no operation is to blame."""
    honest = os.ftruncate

    def ftruncate(fd: int, size: int) -> None:
        monkeypatch.setattr(os, "open", refuse)
        honest(fd, size)

    def refuse(*_: object) -> int:
        raise OSError("no more files")

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    with pytest.raises(Mismatch, match=r"a new file fails without any operation: no more files"):
        exercise(plain, SEED, 2000)


def test_shortening_ends_in_time(plain: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none left, nothing is done again."""
    monkeypatch.setattr(exerciser, "fallocate", lambda *_: None)
    with pytest.raises(Mismatch, match=r"operations done once more: none of \d+"):
        exercise(plain, SEED, 2000, patience_s=0)


@pytest.mark.parametrize("needed", [{0}, {99}, {3, 50, 51}, set(range(0, 100, 7)), set()])
def test_only_what_is_needed_is_left(needed: set[int]) -> None:
    """Of a hundred items, those without which it does not fail, in their order."""
    assert reduced(range(100), lambda some: needed <= set(some)) == sorted(needed)


def test_every_operation_is_read_back_from_its_text() -> None:
    """Lines are what was done, whatever is chosen."""
    chosen = workload.Workload(SEED, direct=True, kill_every=10)
    steps = [chosen.next(size % workload.MAX_SIZE) for size in range(0, 1 << 28, 100_001)]
    assert {operation.name for step in steps for operation in step} == set(workload.NUMBERS)
    assert [workload.parse(workload.as_line(step)) for step in steps] == steps


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("wipe 3", "operation 'wipe' is not known"),
        ("read 3", "'read 3' does not read: read offset length"),
        ("read 3 -1", "does not read"),
        ("", "operation '' is not known"),
        ("read 0 1 & fsync", "only read and write can be done at once"),
    ],
)
def test_a_line_that_does_not_read_is_refused(line: str, says: str) -> None:
    """By name."""
    with pytest.raises(ValueError, match=re.escape(says)):
        workload.parse(line)
