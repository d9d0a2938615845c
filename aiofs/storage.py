"""What holds an image: the file system, and the stack of block devices below it, by mountinfo and sysfs.

Reads text files of the kernel only; no file system is asked anything that could take time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .mounttable import Mount

SYSFS = Path("/sys/dev/block")

_KNOWN = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "nfs", "nfs4")
_IN_MEMORY = ("tmpfs", "ramfs")
_COPIES_ON_WRITE = ("btrfs", "bcachefs", "zfs")

_DM_KINDS = {"LVM-": "LVM", "CRYPT-": "dm-crypt", "mpath-": "multipath"}
"""The subsystem that made a device mapper target, by the prefix of its uuid (sysfs: dm/uuid)."""

_KINDS = {
    "bcache": "bcache",
    "dm-": "device mapper",
    "drbd": "drbd",
    "loop": "loop",
    "md": "md",
    "mmcblk": "mmc",
    "nbd": "nbd",
    "nvme": "nvme",
    "ram": "ram",
    "rbd": "rbd",
    "sd": "scsi",
    "sr": "scsi",
    "vd": "virtio",
    "xvd": "xen",
    "zram": "zram",
}
"""Block drivers by the beginning of their devices' names; none of them begins another one."""


@dataclass(frozen=True)
class BlockDevice:
    """One block device of the stack."""

    name: str
    """As sysfs has it: `vda`, `dm-0`."""
    kind: str
    """The driver: md, LVM, dm-crypt, loop, nbd, rbd, nvme, scsi, virtio, ..."""
    rotational: bool


@dataclass(frozen=True)
class Storage:
    """A file system (or a block device used as an image) and the devices below it, the uppermost first."""

    filesystem: str
    """As mount(8) names it; "block device" for an image that is one."""
    devices: tuple[BlockDevice, ...] = ()
    is_block_device: bool = False

    @property
    def is_known(self) -> bool:
        """aiofs has been tried on it."""
        return self.is_block_device or self.filesystem in _KNOWN

    @property
    def in_memory(self) -> bool:
        """The page cache is the store: there is no device."""
        return self.filesystem in _IN_MEMORY

    @property
    def copies_on_write(self) -> bool:
        """Each write takes new blocks, also where the file has some, unless the file says otherwise."""
        return self.filesystem in _COPIES_ON_WRITE

    def holds(self, kind: str) -> bool:
        """A device of this kind is somewhere in the stack."""
        return any(device.kind == kind for device in self.devices)

    @property
    def kinds(self) -> str:
        """The file system and the kinds of devices in short: `ext4, LVM, nvme`."""
        return ", ".join(dict.fromkeys([self.filesystem, *(device.kind for device in self.devices)]))

    def __str__(self) -> str:
        if not self.devices:
            return self.filesystem
        stack = " over ".join(
            f"{device.name} ({device.kind}, {'disk' if device.rotational else 'solid state'})"
            for device in self.devices
        )
        return f"{self.filesystem} on {stack}"


def of_filesystem(mount: Mount | None, device: int) -> Storage:
    """The storage of files whose st_dev is `device`, in `mount` (None: not in the table).

    btrfs and others have a device number of their own; there the mount's source names the block device.
    """
    if mount is None:
        return Storage("unknown")
    number = device if os.major(device) else _source_device(mount.source)
    return Storage(mount.fstype, tuple(_stack(number)) if number else ())


def of_block_device(number: int) -> Storage:
    """The storage that an image is which is a block device itself; `number` as in st_rdev."""
    return Storage("block device", tuple(_stack(number)), is_block_device=True)


def _source_device(source: str) -> int:
    try:
        st = Path(source).stat()
    except OSError:  # `tmpfs`, `server:/export`, or a device that is hidden from this process
        return 0
    return st.st_rdev if stat.S_ISBLK(st.st_mode) else 0


def _stack(number: int) -> Iterator[BlockDevice]:
    """A device and what it is made of, each once."""
    waiting, seen = [SYSFS / f"{os.major(number)}:{os.minor(number)}"], set()
    while waiting:
        folder = waiting.pop(0).resolve()
        if (folder / "partition").exists():
            folder = folder.parent
        if folder.name in seen or not folder.is_dir():
            continue
        seen.add(folder.name)
        yield BlockDevice(folder.name, _kind(folder), _text(folder / "queue/rotational") == "1")
        slaves = folder / "slaves"
        if slaves.is_dir():
            waiting += sorted(slaves.iterdir())


def _kind(folder: Path) -> str:
    uuid = _text(folder / "dm/uuid")
    for prefix, kind in _DM_KINDS.items():
        if uuid.startswith(prefix):
            return kind
    return next((kind for begin, kind in _KINDS.items() if folder.name.startswith(begin)), "unknown kind")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
