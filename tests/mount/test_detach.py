"""aiofs detach, umount --detach and info: loop devices on images, how they are shown and taken away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from attaching import Attaching, devices, refused
from loops import Loops, run
from mounting import MountedFs, is_mounted, kill_all, run_aiofs, unmount

from aiofs import attachments, loopdevices

Mounting = Callable[..., MountedFs]
MIB = 1 << 20


def test_detach_returns_when_the_device_is_gone(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """By image and by device, many times: never is it still there."""
    fs = mounted(disk.parent)
    for turn in range(10):
        node = attach(fs.path / "disk.img")
        node.write_bytes(bytes(MIB))
        done = run_aiofs("detach", fs.path / "disk.img" if turn % 2 else node)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert devices(fs.path) == []
    assert fs.umount() == 0


def test_a_device_in_use_is_not_detached(
    mounted: Mounting, attach: Attaching, loops: Loops, disk: Path
) -> None:
    """A file system, a process: each is named, and the device is not left to vanish some day."""
    fs = mounted(disk.parent)
    node = attach(fs.path / "disk.img")
    with node.open("rb"):
        line = refused("detach", node, status=1)
        assert f"{node}: pid {os.getpid()} (" in line
        assert "has it open" in line
    run("mkfs.ext4", "-q", node)
    there = loops.mount(node, "disk")
    assert f"{node}: mount {there}: ext4" in refused("detach", fs.path / "disk.img", status=1)
    assert (loopdevices.BLOCK_DEVICES / node.name / "loop/autoclear").read_text() == "0\n"
    loops.umount(there)
    assert run_aiofs("detach", node).returncode == 0


MOUNTED_ELSEWHERE = 'mount "$1" "$2" && echo mounted && read -r _; umount "$2"'


@pytest.mark.alone
def test_a_claim_that_cannot_be_seen_keeps_a_device(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Mounted in another mount namespace only."""
    fs = mounted(disk.parent)
    node = attach(fs.path / "disk.img")
    run("mkfs.ext4", "-q", node)
    other = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            MOUNTED_ELSEWHERE,
            "sh",
            node,
            fs.source,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "mounted\n"
    line = refused("detach", node, status=1)
    assert f"{node} is in use by somebody who cannot be seen from here" in line
    assert (loopdevices.BLOCK_DEVICES / node.name / "loop/autoclear").read_text() == "0\n"
    other.communicate("\n")
    assert run_aiofs("detach", node).returncode == 0


@pytest.mark.usefixtures("attach")
def test_what_cannot_be_detached_says_why(
    mounted: Mounting, loops: Loops, disk: Path, tmp_path: Path
) -> None:
    """Devices that are none of ours are left alone."""
    fs = mounted(disk.parent)
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(MIB))
    other = loops.attach(plain)
    free = run("losetup", "--find").strip()
    cases = {
        fs.path / "disk.img": f"is not attached; 'aiofs info {fs.path}' lists what is",
        fs.path: f"is a directory; to detach and unmount: aiofs umount --detach {fs.path}",
        other: f"{other} is on {plain}, which is on no aiofs mount; detach it: losetup --detach {other}",
        Path(free): f"{free} is not attached to anything",
        plain: f"{plain} is not on an aiofs mount",
    }
    for word, says in cases.items():
        assert says in refused("detach", word)


# -- the mount above --


def test_umount_names_what_is_attached(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """And how to end both; --detach does."""
    fs = mounted(disk.parent)
    node = attach(fs.path / "disk.img")
    line = refused("umount", fs.path, status=1)
    assert f"{node}: loop device on disk.img" in line
    assert f"aiofs umount --detach {fs.path}" in line
    assert is_mounted(fs.path)
    node.write_bytes(b"written")
    done = run_aiofs("umount", "--detach", fs.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(fs.path)
    assert fs.wait() == 0
    assert disk.read_bytes()[:7] == b"written"


def test_umount_detaches_all_or_none(mounted: Mounting, attach: Attaching, loops: Loops, disk: Path) -> None:
    """A file system on one of two devices keeps both, and the mount, and is named."""
    shutil.copyfile(disk, disk.parent / "other.img")
    fs = mounted(disk.parent)
    node, other = attach(fs.path / "disk.img"), attach(fs.path / "other.img")
    run("mkfs.ext4", "-q", other)
    there = loops.mount(other, "disk")
    assert f"{other}: mount {there}: ext4" in refused("umount", "--detach", fs.path, status=1)
    assert {device.node for device in devices(fs.path)} == {node, other}
    assert is_mounted(fs.path)
    loops.umount(there)
    assert run_aiofs("umount", "--detach", fs.path).returncode == 0
    assert devices(fs.path) == []
    assert fs.wait() == 0


def test_umount_detaches_only_its_own(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Devices on other mounts stay; a mount without devices needs no root for --detach."""
    shutil.copyfile(disk, disk.parent / "other.img")
    one, two = mounted(disk.parent), mounted(disk.parent)
    node = attach(one.path / "disk.img")
    assert run_aiofs("umount", "--detach", two.path).returncode == 0
    assert two.wait() == 0
    assert [device.node for device in devices(one.path)] == [node]


@pytest.mark.alone  # mkfs.btrfs asks about every loop device, and fails while one is on a dead mount
def test_a_dead_mount_is_cleared_of_devices(disk: Path, mountpoint: Path, attach: Attaching) -> None:
    """Its server was killed: attach says so, detach works by image; umount --detach frees the mountpoint."""
    shutil.copyfile(disk, disk.parent / "other.img")
    assert run_aiofs("mount", disk.parent, mountpoint).returncode == 0
    attach(mountpoint / "disk.img")
    attach(mountpoint / "other.img")
    kill_all(mountpoint)
    line = refused("attach", mountpoint / "disk.img", status=1)
    assert f"the server of {mountpoint} has died; clear it:" in line
    assert run_aiofs("detach", mountpoint / "disk.img").returncode == 0
    assert len(devices(mountpoint)) == 1
    done = run_aiofs("umount", "--detach", mountpoint)
    assert done.returncode == 1
    assert "whether everything is on disk is not known" in done.stderr
    assert done.stderr.endswith(f"the server of {mountpoint} has died\n"), (
        "there is nothing left to be cleared"
    )
    assert devices(mountpoint) == []
    assert not is_mounted(mountpoint)


def test_a_server_that_hangs_keeps_no_device(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Nothing is asked of it: the device goes at once."""
    fs = mounted(disk.parent)
    node = attach(fs.path / "disk.img")
    os.kill(fs.server_pid, signal.SIGSTOP)
    try:
        done = run_aiofs("detach", node)
    finally:
        os.kill(fs.server_pid, signal.SIGCONT)
    assert (done.returncode, done.stderr) == (0, "")
    assert devices(fs.path) == []


def test_a_bind_mount_hides_no_device(
    mounted: Mounting, attach: Attaching, loops: Loops, disk: Path, tmp_path: Path
) -> None:
    """Attached through it, the image is the same one: listed, refused twice, detached with the mount."""
    fs = mounted(disk.parent)
    bound = loops.mount(fs.path, "bound", "--bind")
    node = attach(bound / "disk.img")
    try:
        [entry] = json.loads(run_aiofs("info", "--json", fs.path).stdout)["attached"]
        assert entry["device"] == str(node)
        assert f"attached already, read-write, as {node}" in refused("attach", fs.path / "disk.img")
    finally:
        assert run_aiofs("detach", node).returncode == 0
    assert devices(tmp_path) == []


def test_info_lists_what_is_attached(mounted: Mounting, attach: Attaching, loops: Loops, disk: Path) -> None:
    """Device, image, mode, and what is mounted from it; --json adds them to what info.json holds."""
    fs = mounted(disk.parent)
    assert json.loads(run_aiofs("info", "--json", fs.path).stdout)["attached"] == []
    assert "ATTACHED" not in run_aiofs("info", fs.path).stdout
    node = attach(fs.path / "disk.img")
    run("mkfs.ext4", "-q", node)
    there = loops.mount(node, "disk")
    [entry] = json.loads(run_aiofs("info", "--json", fs.path).stdout)["attached"]
    assert set(entry) == set(attachments.FIELDS)
    assert (entry["device"], entry["image"], entry["size"]) == (str(node), "disk.img", 32 * MIB)
    assert entry["used_by"] == [f"mount {there}: ext4"]
    lines = run_aiofs("info", fs.path).stdout.splitlines()
    [header] = [line for line in lines if line.startswith("  ATTACHED")]
    assert lines[lines.index(header) + 1].split()[:5] == ["disk.img", str(node), "rw", "32", "MiB"]
    assert "attached" not in fs.info()


def test_a_mount_in_the_place_of_another_has_none_of_its_devices(
    mounted: Mounting, attach: Attaching, disk: Path, tmp_path: Path
) -> None:
    """The path of a device on a lazily detached mount is that of an image of the new one: numbers decide."""
    first = mounted(disk.parent)
    node = attach(first.path / "disk.img")
    assert unmount(first.path, lazy=True).returncode == 0
    source = tmp_path / "second"
    source.mkdir()
    shutil.copyfile(disk, source / "disk.img")
    second = mounted(source, path=first.path)
    assert json.loads(run_aiofs("info", "--json", second.path).stdout)["attached"] == []
    new = attach(second.path / "disk.img")
    assert new != node
    assert run_aiofs("umount", "--detach", second.path).returncode == 0
    assert second.wait() == 0
    run("losetup", "--detach", node)
    assert first.wait() == 0
