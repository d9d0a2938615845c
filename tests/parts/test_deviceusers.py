"""deviceusers.py and loopdevices.py on a made-up /sys and /proc: what cannot be had on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiofs import deviceusers, holders, loopdevices, mounttable
from aiofs.loopdevices import LoopDevice

MOUNTINFO = """\
30 1 8:1 / / rw - ext4 /dev/sda1 rw
31 30 7:0 / /mnt/plain rw - ext4 /dev/loop0 rw
32 30 259:3 / /mnt/part rw - xfs /dev/loop0p2 rw
33 30 0:40 / /mnt/btrfs rw - btrfs /dev/loop0p1 rw
34 30 7:1 / /mnt/other rw - ext4 /dev/loop1 rw
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """loop0 with two partitions, loop2 on top of it, loop1 on another file; the fake /sys/block."""
    block, proc = tmp_path / "block", tmp_path / "proc"
    proc.mkdir()
    for name, backing, number in (
        ("loop0", "/mnt/vdisk/disk.img (deleted)", "7:0"),
        ("loop1", "/mnt/vdisk2/disk.img", "7:1"),
        ("loop2", "/dev/loop0p1", "7:2"),
        ("loop10", "/elsewhere", "7:10"),
    ):
        for inner in ("loop", "queue", "holders"):
            (block / name / inner).mkdir(parents=True)
        (block / name / "dev").write_text(number + "\n")
        (block / name / "loop/backing_file").write_text(backing + "\n")
        (block / name / "loop/dio").write_text("1\n")
        (block / name / "queue/logical_block_size").write_text("4096\n")
        (block / name / "size").write_text("2048\n")
        (block / name / "ro").write_text("0\n")
    for part, number in ((1, "259:2"), (2, "259:3"), (10, "259:4")):
        inside = block / "loop0" / f"loop0p{part}"
        (inside / "holders").mkdir(parents=True)
        (inside / "partition").write_text(f"{part}\n")
        (inside / "dev").write_text(number + "\n")
    (block / "loop0/loop0p2/holders/dm-3").touch()
    (proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/loop0p10 partition 8 0 -2\n")
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(loopdevices, "BLOCK_DEVICES", block)
    monkeypatch.setattr(deviceusers, "BLOCK_DEVICES", block)
    monkeypatch.setattr(deviceusers, "PROC", proc)
    monkeypatch.setattr(holders, "PROC", proc)
    monkeypatch.setattr(mounttable, "MOUNTINFO", tmp_path / "mountinfo")
    return block


def named(name: str) -> LoopDevice:
    """One of the machine's devices."""
    device = loopdevices.find(name)
    assert device is not None
    return device


def test_devices_are_read_in_their_order(machine: Path) -> None:
    """With what sysfs says; a free device is none, and a kernel without diskseq gives 0."""
    (machine / "loop5").mkdir()
    assert [device.name for device in loopdevices.attached()] == ["loop0", "loop1", "loop2", "loop10"]
    device = named("loop0")
    assert (device.sector_bytes, device.size_bytes, device.direct) == (4096, 1 << 20, True)
    assert device.path == Path("/mnt/vdisk/disk.img")
    assert device.sequence == 0
    assert loopdevices.find("loop5") is None


@pytest.mark.usefixtures("machine")
def test_partitions_are_in_their_order() -> None:
    """By number, not by letters."""
    assert loopdevices.partitions(named("loop0")) == ["loop0p1", "loop0p2", "loop0p10"]


@pytest.mark.usefixtures("machine")
def test_all_claims_on_a_device_are_found() -> None:
    """File systems by number, btrfs by name, swap, device mapper, a loop device on a partition."""
    assert [str(claim) for claim in deviceusers.claims(named("loop0"))] == [
        "mount /mnt/plain: ext4",
        "mount /mnt/part: xfs",
        "mount /mnt/btrfs: btrfs",
        "swap: swap area /dev/loop0p10",
        "/dev/dm-3: device on top of it",
        "/dev/loop2: loop device on top of it",
    ]
    assert deviceusers.claims(named("loop10")) == []


@pytest.mark.usefixtures("machine")
def test_a_name_that_begins_alike_is_another_device() -> None:
    """/mnt/vdisk2 is not in /mnt/vdisk; loop1 is not loop10."""
    mount = mounttable.Mount(1, 0, 77, Path("/mnt/vdisk"), frozenset(), mounttable.FSTYPE, "/srv")
    assert [device.name for device in loopdevices.attached() if device.is_on(mount)] == ["loop0"]
    assert named("loop0").image(mount) == "disk.img"
    assert [str(claim) for claim in deviceusers.claims(named("loop1"))] == ["mount /mnt/other: ext4"]
