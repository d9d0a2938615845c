"""storage.py: the stack of block devices, from a sysfs that is made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiofs import storage
from aiofs.mounttable import mounts


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys: devices/, and dev/block/ with a link for each of them."""
    (tmp_path / "devices").mkdir()
    (tmp_path / "dev/block").mkdir(parents=True)
    monkeypatch.setattr(storage, "SYSFS", tmp_path / "dev/block")
    return tmp_path


def add(
    sysfs: Path, path: str, number: str, *, rotational: str = "0", uuid: str = "", below: tuple[str, ...] = ()
) -> None:
    """A block device at devices/PATH, made of the devices `below`."""
    folder = sysfs / "devices" / path
    (folder / "queue").mkdir(parents=True)
    (folder / "queue/rotational").write_text(rotational + "\n")
    if uuid:
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(uuid + "\n")
    (folder / "slaves").mkdir()
    for other in below:
        (folder / "slaves" / Path(other).name).symlink_to(sysfs / "devices" / other)
    (sysfs / "dev/block" / number).symlink_to(folder)


def test_a_partition_is_its_disk(sysfs: Path) -> None:
    """The queue and the kind are those of the whole disk."""
    add(sysfs, "sda", "8:0", rotational="1")
    part = sysfs / "devices/sda/sda1"
    part.mkdir()
    (part / "partition").write_text("1\n")
    (sysfs / "dev/block/8:1").symlink_to(part)
    found = storage.of_block_device(os.makedev(8, 1))
    assert str(found) == "block device on sda (scsi, disk)"
    assert found.is_known


def test_a_stack_is_followed_to_its_end(sysfs: Path) -> None:
    """LVM on md on two disks: each device once, the uppermost first."""
    add(sysfs, "nvme0n1", "259:0")
    add(sysfs, "nvme1n1", "259:1")
    add(sysfs, "md0", "9:0", below=("nvme0n1", "nvme1n1"))
    add(sysfs, "dm-0", "253:0", uuid="LVM-abc", below=("md0",))
    found = storage.of_block_device(os.makedev(253, 0))
    assert [device.kind for device in found.devices] == ["LVM", "md", "nvme", "nvme"]
    assert found.holds("md")
    assert not found.holds("loop")
    assert found.kinds == "block device, LVM, md, nvme"


@pytest.mark.parametrize(
    ("uuid", "kind"), [("CRYPT-LUKS2-x", "dm-crypt"), ("mpath-x", "multipath"), ("x", "device mapper")]
)
def test_device_mapper_says_what_it_is(sysfs: Path, uuid: str, kind: str) -> None:
    """By the prefix of its uuid."""
    add(sysfs, "dm-1", "253:1", uuid=uuid)
    assert storage.of_block_device(os.makedev(253, 1)).devices[0].kind == kind


def test_a_file_system_with_a_device_number_of_its_own_is_found_by_its_source(sysfs: Path) -> None:
    """btrfs files have an anonymous st_dev; /dev/null stands for a source that is no block device."""
    [mount] = mounts("40 1 0:50 / /srv rw - btrfs /dev/null rw")
    assert storage.of_filesystem(mount, os.makedev(0, 50)) == storage.Storage("btrfs")
    assert sysfs.exists()


def test_a_file_system_in_memory_has_no_devices() -> None:
    """tmpfs: known, in memory."""
    [mount] = mounts("40 1 0:50 / /tmp rw - tmpfs tmpfs rw")
    found = storage.of_filesystem(mount, os.makedev(0, 50))
    assert found.in_memory
    assert str(found) == "tmpfs"


def test_what_is_not_in_the_table_is_unknown() -> None:
    """The careful choice follows from it."""
    assert not storage.of_filesystem(None, 0).is_known


def test_this_machine_has_storage(tmp_path: Path) -> None:
    """The real sysfs: whatever holds the temporary directory has a name, and devices have kinds."""
    device = tmp_path.stat().st_dev
    found = storage.of_filesystem(next(m for m in mounts() if m.device == device), device)
    assert found.filesystem != "unknown"
    assert all(device.kind for device in found.devices)
