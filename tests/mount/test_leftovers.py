"""A run of the tests that was killed is cleared away by the next one, and one that goes on is not touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from loops import run
from mounting import is_mounted, kill_all, run_aiofs

from aiofs.loopdevices import attached

# mkfs.btrfs asks about every loop device, and fails when one is on a dead mount.
pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("fuse", "loops")]


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """The directory of a run: a mount whose server was killed, and a loop device on it."""
    directory = tmp_path / "pytest-7"
    (directory / "images").mkdir(parents=True)
    with (directory / "images/disk.img").open("wb") as image:
        image.truncate(1 << 20)
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    mounted = run_aiofs("mount", directory / "images", mountpoint)
    assert mounted.returncode == 0, mounted.stderr
    device = run("losetup", "--find", "--show", mountpoint / "disk.img").strip()
    kill_all(mountpoint)
    yield directory
    if is_mounted(mountpoint):
        subprocess.run(["losetup", "--detach", device], check=False)
        subprocess.run(["umount", "--lazy", mountpoint], check=False)


def _devices(directory: Path) -> list[str]:
    return [device.name for device in attached() if device.path.is_relative_to(directory)]


@pytest.mark.parametrize("locked", [False, True])
def test_what_a_killed_run_left_is_cleared(killed: Path, locked: bool) -> None:
    """The process that its lock names has gone, or the lock has."""
    if locked:
        ended = run(sys.executable, "-c", "import os; print(os.getpid())")
        (killed / ".lock").write_text(ended)
    [device] = _devices(killed)
    left = leftovers.clear(killed.parent)
    assert left == [f"fuse.aiofs on {killed / 'mnt'}", f"/dev/{device} on {killed / 'mnt/disk.img'}"]
    assert not is_mounted(killed / "mnt")
    assert device not in [other.name for other in attached()]


def test_a_run_that_goes_on_is_left_alone(killed: Path) -> None:
    """Its lock names a process that is there."""
    (killed / ".lock").write_text(str(os.getpid()))
    assert leftovers.clear(killed.parent) == []
    assert is_mounted(killed / "mnt")
    assert len(_devices(killed)) == 1
