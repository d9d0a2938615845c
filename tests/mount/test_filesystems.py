"""Attached images as people use them: file systems with real work on them, and swap."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from attaching import Attaching
from loops import Loops, run
from mounting import MountedFs, run_aiofs
from trees import contents, copy_python
from working import require_driver

Mounting = Callable[..., MountedFs]
MIB = 1 << 20


# -- file systems --


@dataclass(frozen=True)
class Kind:
    """A kind of file system, and how it is made and checked."""

    name: str
    make: tuple[str, ...]
    check: tuple[str, ...]


KINDS = (
    Kind("ext4", ("mkfs.ext4", "-q"), ("e2fsck", "-f", "-n")),
    Kind("xfs", ("mkfs.xfs", "-q"), ("xfs_repair", "-n")),
    Kind("btrfs", ("mkfs.btrfs", "-q"), ("btrfs", "check", "--readonly")),
)


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind that can be made, checked and mounted here."""
    found: Kind = request.param
    for tool in (found.make[0], found.check[0], "git"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install e2fsprogs xfsprogs btrfs-progs git)")
    known = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
    if found.name not in known and subprocess.run(["modprobe", found.name], check=False).returncode != 0:
        pytest.skip(f"this kernel has no {found.name}")
    return found


def test_a_disk_is_worked_on_and_moves_to_another_driver(
    mounted: Mounting, attach: Attaching, loops: Loops, image_dir: Path, kind: Kind
) -> None:
    """mkfs, a real tree, databases, a repository: whole, and the same bytes under another driver."""
    image = image_dir / "disk.img"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    fs = mounted(image_dir, "--aio", require_driver("io_uring"))
    device = attach(fs.path / "disk.img")
    run(*kind.make, device)
    disk = loops.mount(device, "disk")
    copy_python(disk / "python", 30 * MIB)
    for journal in ("wal", "delete"):
        fill_database(disk / f"{journal}.db", journal)
    commit(disk / "python")
    check_work(disk)
    left = contents(disk)
    put_away(fs, loops, kind, disk, device)

    fs = mounted(image_dir, "--aio", "threads")
    device = attach(fs.path / "disk.img")
    disk = loops.mount(device, "disk")
    assert contents(disk) == left
    check_work(disk)
    put_away(fs, loops, kind, disk, device)


def put_away(fs: MountedFs, loops: Loops, kind: Kind, disk: Path, device: Path) -> None:
    """Unmount, check, detach, unmount."""
    loops.umount(disk)
    run(*kind.check, device)
    assert run_aiofs("detach", device).returncode == 0
    assert fs.umount() == 0


ROWS, TRANSACTIONS = 40, 30


def fill_database(path: Path, journal: str) -> None:
    """A SQLite database, in transactions that are synced one by one; every third is rolled back."""
    data = random.Random(journal)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE rows (turn INTEGER, bytes BLOB)")
        for turn in range(TRANSACTIONS):
            database.execute("BEGIN")
            rows = [(turn, data.randbytes(data.randrange(8192))) for _ in range(ROWS)]
            database.executemany("INSERT INTO rows VALUES (?, ?)", rows)
            database.execute("ROLLBACK" if turn % 3 == 2 else "COMMIT")


def commit(tree: Path) -> None:
    """Make a git repository of a tree."""
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "all of it")


def git(tree: Path, *words: str) -> str:
    """What git prints, as nobody in particular and without anybody's settings."""
    who = ["-c", "user.name=aiofs", "-c", "user.email=aiofs@localhost", "-c", "gc.auto=0"]
    alone = ["env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null"]
    return run(*alone, "git", "-C", tree, *who, *words)


def check_work(disk: Path) -> None:
    """Databases and repository are whole, by their own means."""
    for journal in ("wal", "delete"):
        with closing(sqlite3.connect(disk / f"{journal}.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            [rows] = database.execute("SELECT count(*) FROM rows").fetchone()
            assert rows == ROWS * TRANSACTIONS * 2 // 3
    git(disk / "python", "fsck", "--full", "--strict")
    assert git(disk / "python", "status", "--porcelain") == ""


# -- swap --


@pytest.fixture
def swap(mounted: Mounting, attach: Attaching, disk: Path) -> Iterator[Path]:
    """An attached image of 64 MiB that is swapped to before anything else."""
    for tool in ("mkswap", "swapon", "swapoff"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install util-linux mount)")
    os.truncate(disk, 64 * MIB)
    device = attach(mounted(disk.parent).path / "disk.img")
    run("mkswap", device)
    done = subprocess.run(
        ["swapon", "--priority", "32767", device], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no swap to be had here: {done.stderr.strip()}")
    yield device
    if used_kib(device) is not None:
        run("swapoff", device)


def used_kib(device: Path) -> int | None:
    """How much is swapped to a device; None: it is no swap."""
    rows = [line.split() for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    return next((int(row[3]) for row in rows if row[0] == str(device)), None)


def test_memory_is_swapped_to_an_image_and_back(swap: Path) -> None:
    """Pages that are taken from us come back as they were: some when looked at, the rest with swapoff."""
    size = 32 * MIB
    expected = random.Random(5).randbytes(size)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = expected
        try:
            memory.madvise(21)  # MADV_PAGEOUT, which Python has no name for
        except OSError as error:
            pytest.skip(f"MADV_PAGEOUT needs Linux 5.4: {error.strerror}")
        assert (used_kib(swap) or 0) >= 16 * 1024
        assert memory[: size // 2] == expected[: size // 2]
        run("swapoff", swap)
        assert used_kib(swap) is None
        assert memory[:] == expected
