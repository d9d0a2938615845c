"""Images of a mount as the disks of virtual machines, over virtio-blk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import killed_meanwhile
from machine import Guest, drive
from mounting import MountedFs

from aiofs import survival

MIB = 1 << 20
SIZE = 64 * MIB
Mounting = Callable[..., MountedFs]
Boot = Callable[..., Guest]

INSTALL = """
echo ',,L' | sfdisk -q /dev/vda
mkfs.ext4 -q /dev/vda1
mount -t ext4 /dev/vda1 /mnt
dd if=/dev/urandom of=/mnt/kept bs=64k count=64 2>/dev/null
dd if=/dev/urandom of=/mnt/removed bs=64k count=320 2>/dev/null
sync
sha256sum /mnt/kept /mnt/removed >/mnt/sums
cat /mnt/sums
"""
CHECK = """
e2fsck -f -n /dev/vda1
mount -t ext4 /dev/vda1 /mnt
(cd / && grep kept /mnt/sums | sha256sum -c)
"""
LEAVE = """
umount /mnt
e2fsck -f -n /dev/vda1
"""


def new_image(directory: Path, name: str) -> Path:
    """An empty, sparse image."""
    image = directory / name
    with image.open("wb") as file:
        file.truncate(SIZE)
    return image


def allocated(image: Path) -> int:
    """Bytes on the disk."""
    return image.stat().st_blocks * 512


@pytest.mark.parametrize("aio", ["native", "io_uring"])
def test_a_guest_installs_trims_and_reboots(mounted: Mounting, boot: Boot, image_dir: Path, aio: str) -> None:
    """Partition, mkfs, write, verify; what it trims is free on the host; a second boot finds all in order."""
    image = new_image(image_dir, "g.img")
    path = mounted(image_dir).path / "g.img"
    trim = "rm /mnt/removed; sync; echo full; fstrim /mnt"
    first = boot(f"{INSTALL}{CHECK_WRITTEN}{trim}\n{LEAVE}", drive(path, aio)).finish()
    assert "/mnt/removed: OK" in first
    assert allocated(image) < 20 * MIB  # 4 MiB of data and the journal; 20 MiB more were written
    assert "/mnt/kept: OK" in boot(f"{CHECK}{LEAVE}", drive(path, aio)).finish()


CHECK_WRITTEN = """
echo 3 >/proc/sys/vm/drop_caches
(cd / && sha256sum -c /mnt/sums)
"""


def test_two_guests_at_once(mounted: Mounting, boot: Boot, image_dir: Path) -> None:
    """Two images of one mount, each with a guest that writes and verifies."""
    for name in ("a.img", "b.img"):
        new_image(image_dir, name)
    fs = mounted(image_dir)
    guests = [boot(f"{INSTALL}{CHECK_WRITTEN}{LEAVE}", drive(fs.path / name)) for name in ("a.img", "b.img")]
    sums = [line for guest in guests for line in guest.finish() if line.endswith("  /mnt/kept")]
    assert len(sums) == 2
    assert sums[0] != sums[1]


def test_a_killed_guest_comes_back(mounted: Mounting, boot: Boot, image_dir: Path) -> None:
    """The plug is pulled while it writes: the journal replays, and what was synced is there."""
    new_image(image_dir, "g.img")
    path = mounted(image_dir).path / "g.img"
    endless = "while :; do dd if=/dev/zero of=/mnt/more bs=64k count=200 conv=fsync 2>/dev/null; done"
    guest = boot(f"{INSTALL}sync\necho guest: writing\n{endless}\n", drive(path))
    guest.wait_for("guest: writing")
    guest.kill()
    replay = "e2fsck -p /dev/vda1 || [ $? = 1 ]\n"
    assert "/mnt/kept: OK" in boot(f"{replay}{CHECK}{LEAVE}", drive(path)).finish()


VERIFIED = """
for round in 1 2 3 4 5; do
    dd if=/dev/urandom of=/mnt/r$round bs=64k count=40 2>/dev/null
    sha256sum /mnt/r$round >>/mnt/sums
    sync
    echo 3 >/proc/sys/vm/drop_caches
    (cd / && sha256sum -c /mnt/sums) || echo guest: LOST
    rm /mnt/removed 2>/dev/null && sed -i /removed/d /mnt/sums
done
dmesg | grep -i "error" && echo guest: ERRORS
"""


def test_a_guest_outlives_its_servers(mounted: Mounting, boot: Boot, image_dir: Path) -> None:
    """It writes and verifies while ten servers are killed: no I/O error, nothing lost, nothing to repair."""
    if survival.why_not(os.uname().release):
        pytest.skip(survival.why_not(os.uname().release))
    new_image(image_dir, "g.img")
    fs = mounted(image_dir)
    guest = boot(f"{INSTALL}echo guest: writing\n{VERIFIED}{LEAVE}", drive(fs.path / "g.img"))
    guest.wait_for("guest: writing")
    with killed_meanwhile(fs, at_least=10):
        console = guest.finish()
    assert console.count("/mnt/r1: OK") == 5
    assert not [line for line in console if "guest: LOST" in line or "guest: ERRORS" in line], console


def test_a_disk_of_a_guest_is_locked(mounted: Mounting, boot: Boot, image_dir: Path) -> None:
    """While it runs, neither qemu-img nor another QEMU may have its image, by the mount or directly."""
    image = new_image(image_dir, "g.img")
    path = mounted(image_dir).path / "g.img"
    guest = boot("echo guest: up\nsleep 600", drive(path))
    guest.wait_for("guest: up")
    for where in (image, path):
        done = subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "raw", where, os.devnull],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1, where
        assert "lock" in done.stderr
    other = subprocess.run(
        ["qemu-system-x86_64", "-nodefaults", "-nographic", "-S", "-drive", f"if=virtio,{drive(image)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 1
    assert "lock" in other.stderr
    guest.kill()
