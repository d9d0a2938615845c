"""aiofs bench on block devices and on file systems of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from loops import Loops, run
from mounting import run_aiofs

from aiofs.locks import lock_for_writing

SHORT = ("--rounds", "1", "--runtime", "0.01", "--depths", "1,4", "--drivers", "sync,linux")
MIB = 1 << 20


@pytest.fixture
def device(loops: Loops, tmp_path: Path) -> Path:
    """A loop device of 8 MiB."""
    image = tmp_path / "device.img"
    image.write_bytes(os.urandom(8 * MIB))
    return loops.attach(image)


def test_a_block_device_is_read_and_not_written(device: Path) -> None:
    """Without --destructive the writes are left out, and the reason is told."""
    before = device.read_bytes()
    done = run_aiofs("bench", device, *SHORT)
    assert done.returncode == 0, done.stderr
    assert f"writes were not measured: {device} is a block device; --destructive writes on it" in done.stdout
    assert "random read" in done.stdout
    assert device.read_bytes() == before


def test_a_locked_device_is_not_measured(device: Path) -> None:
    """A mount that writes on it has locked it."""
    with device.open("r+b") as other:
        lock_for_writing(other.fileno())
        done = run_aiofs("bench", device, *SHORT)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{device} is locked by " in done.stderr


def test_destructive_writes_on_a_block_device(device: Path) -> None:
    """All of it, but for the order, which needs a file."""
    done = run_aiofs("bench", device, *SHORT, "--destructive")
    assert done.returncode == 0, done.stderr
    assert f"writing on {device}: its content is lost" in done.stderr
    assert "sequential write" in done.stdout
    assert "a device cannot be appended to" in done.stdout


def test_a_mounted_device_is_not_written(loops: Loops, tmp_path: Path) -> None:
    """The kernel refuses it (O_EXCL); reading goes on."""
    loops.ext4("fs", 16 * MIB)
    device = Path(
        run("losetup", "--associated", tmp_path / "fs.ext4", "--noheadings", "--output", "NAME").strip()
    )
    done = run_aiofs("bench", device, *SHORT, "--destructive")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{device} is in use: mounted, or part of another device" in done.stderr
    assert run_aiofs("bench", device, *SHORT).returncode == 0


def test_a_full_disk_leaves_reads(loops: Loops) -> None:
    """A file system with no room for the temporary file: reads are measured, and what is missing is told."""
    there = loops.ext4("fs", 16 * MIB)
    image = there / "disk.img"
    image.write_bytes(os.urandom(8 * MIB))
    done = run_aiofs("bench", image, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "MiB free, and 16 MiB are needed; free some space" in done.stdout
    assert sorted(path.name for path in there.iterdir()) == ["disk.img", "lost+found"]


def test_a_read_only_file_system_leaves_reads(loops: Loops) -> None:
    """The reason is that of the file system."""
    there = loops.ext4("fs", 64 * MIB)
    (there / "disk.img").write_bytes(os.urandom(MIB))
    run("mount", "-o", "remount,ro", there)
    done = run_aiofs("bench", there / "disk.img", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Read-only file system" in done.stdout
