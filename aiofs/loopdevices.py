"""The loop devices of this machine, by what they are attached to.

sysfs tells everybody which path a device is on, but a path can lie: a mount may have been replaced by
another one on the same mountpoint, or be seen through a bind mount. The numbers of the file system and of the
inode do not; the device tells them to those who may open it. It asks the file system for them
(LOOP_GET_STATUS64), so that is done aside and given up where a server does not answer.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .mounttable import Mount

BLOCK_DEVICES = Path("/sys/block")
DELETED = " (deleted)"
"""What the kernel puts behind the path of a file that has been removed."""
ANSWER_TIMEOUT_S = 2.0
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_BYTES = 232  # struct loop_info64 of linux/loop.h, which begins with lo_device and lo_inode


@dataclass(frozen=True)
class LoopDevice:
    """One device that is attached to a file."""

    name: str
    """`loop0`."""
    backing: str
    """The path of the file as the kernel shows it."""
    read_only: bool
    direct: bool
    """It does direct I/O."""
    sector_bytes: int
    size_bytes: int
    sequence: int
    """Of its attachments (diskseq; 0 before Linux 5.15): tells this one from a later one of the same name."""
    file: tuple[int, int] | None = None
    """st_dev and st_ino of the file; None: not told to us."""

    @property
    def node(self) -> Path:
        """`/dev/loop0`."""
        return Path("/dev", self.name)

    @property
    def path(self) -> Path:
        """The path of the file; of a removed one, where it was."""
        return Path(self.backing.removesuffix(DELETED))

    def is_on(self, mount: Mount) -> bool:
        """The file is on that mount."""
        if self.file is not None:
            return self.file[0] == mount.device
        return self.path.is_relative_to(mount.mountpoint)

    def image(self, mount: Mount) -> str:
        """The file's path in the mount, or the whole path where it is seen some other way."""
        if self.path.is_relative_to(mount.mountpoint):
            return str(self.path.relative_to(mount.mountpoint))
        return str(self.path)


def attached() -> list[LoopDevice]:
    """All that are attached to something, from sysfs alone: nothing that is mounted is asked."""
    names = [backing.parent.parent.name for backing in BLOCK_DEVICES.glob("loop*/loop/backing_file")]
    found = (find(name) for name in sorted(names, key=lambda name: (len(name), name)))
    return [device for device in found if device is not None]


def identified() -> list[LoopDevice]:
    """The same, with the numbers of their files where they can be learnt within ANSWER_TIMEOUT_S."""
    devices = attached()
    known: dict[str, tuple[int, int]] = {}

    def ask() -> None:
        for device in devices:
            with suppress(OSError):  # not ours to open, or its file system is dead
                known[device.name] = _file_of(device.node)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(ANSWER_TIMEOUT_S)
    told = dict(known)
    return [replace(device, file=told.get(device.name)) for device in devices]


def on_mount(mount: Mount, *, answers: bool = True) -> list[LoopDevice]:
    """Those on files of a mount; by their paths when its server is known not to answer.

    Asking it all the same would keep the devices open for as long as it does not.
    """
    return [device for device in (identified() if answers else attached()) if device.is_on(mount)]


def identify(name: str) -> LoopDevice | None:
    """One device by its name, with the numbers of its file; None when it is attached to nothing."""
    return next((device for device in identified() if device.name == name), None)


def find(name: str) -> LoopDevice | None:
    """The device of that name (`loop0`), or None when it is attached to nothing."""
    device = BLOCK_DEVICES / name
    try:
        return LoopDevice(
            name=name,
            backing=(device / "loop/backing_file").read_text(errors="surrogateescape").rstrip("\n"),
            read_only=_number(device / "ro") != 0,
            direct=_number(device / "loop/dio") != 0,
            sector_bytes=_number(device / "queue/logical_block_size"),
            size_bytes=_number(device / "size") * 512,
            sequence=_number(device / "diskseq"),
        )
    except OSError:
        return None


def partitions(device: LoopDevice) -> list[str]:
    """The names of its partitions (`loop0p1`), in order."""
    found = [path.parent.name for path in (BLOCK_DEVICES / device.name).glob("*/partition")]
    return sorted(found, key=lambda name: int(re.sub(r".*p", "", name)))


def image_devices(
    devices: Iterable[LoopDevice], path: Path, file: tuple[int, int] | None
) -> list[LoopDevice]:
    """Those of `devices` that are on one file: by its numbers where both are known, else by its path."""
    return [
        device
        for device in devices
        if (device.file == file if None not in (device.file, file) else device.path == path)
    ]


def _number(attribute: Path) -> int:
    """0 where this kernel has no such attribute."""
    try:
        return int(attribute.read_text())
    except FileNotFoundError:
        return 0


def _file_of(node: Path) -> tuple[int, int]:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
    finally:
        os.close(fd)
    device, inode = struct.unpack_from("=QQ", status)
    return device, inode
