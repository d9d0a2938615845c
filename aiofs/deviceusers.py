"""Who uses a loop device or its partitions: file systems, swap, devices on top of it, processes.

From /proc and /sys alone. The kernel lets a device that is in use be detached, and does it when the last user
has gone; whoever wants to know when that is has to look first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import loopdevices, mounttable
from .holders import PROC, Holder, command
from .loopdevices import BLOCK_DEVICES, LoopDevice

_MOMENTARY = ("systemd-udevd", "(udev-worker)")
"""They look into each new device, and are gone in a moment."""


def claims(device: LoopDevice) -> list[Holder]:
    """Who has claimed it: file systems, swap, and devices on top of it."""
    names = _names(device)
    nodes = {f"/dev/{name}" for name in names}
    numbers = {number for name in names if (number := _number(device, name)) is not None}
    return [*_file_systems(nodes, numbers), *_swap(nodes), *_devices_above(device, names, nodes)]


def users(device: LoopDevice) -> list[Holder]:
    """The same, and the processes that have it open, as far as they may be looked into."""
    return [*claims(device), *_processes({f"/dev/{name}" for name in _names(device)})]


def _names(device: LoopDevice) -> list[str]:
    return [device.name, *loopdevices.partitions(device)]


def _number(device: LoopDevice, name: str) -> int | None:
    directory = BLOCK_DEVICES / device.name
    try:
        text = ((directory if name == device.name else directory / name) / "dev").read_text()
    except OSError:  # detached meanwhile
        return None
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


def _file_systems(nodes: set[str], numbers: set[int]) -> Iterator[Holder]:
    for mount in mounttable.mounts():
        # btrfs has a number of its own: it can be on several devices.
        if mount.device in numbers or mount.source in nodes:
            yield Holder(f"mount {mount.mountpoint}", mount.fstype)


def _swap(nodes: set[str]) -> Iterator[Holder]:
    with suppress(OSError):  # a kernel without swap
        for line in (PROC / "swaps").read_text(errors="surrogateescape").splitlines()[1:]:
            node = mounttable.unescape(line.split()[0])
            if node in nodes:
                yield Holder("swap", f"swap area {node}")


def _devices_above(device: LoopDevice, names: list[str], nodes: set[str]) -> Iterator[Holder]:
    directory = BLOCK_DEVICES / device.name
    for name in names:
        above = (directory if name == device.name else directory / name) / "holders"
        with suppress(OSError):
            for holder in sorted(above.iterdir()):
                yield Holder(f"/dev/{holder.name}", "device on top of it")
    for other in loopdevices.attached():
        if other.backing in nodes:
            yield Holder(str(other.node), "loop device on top of it")


def _processes(nodes: set[str]) -> Iterator[Holder]:
    for process in sorted((p for p in PROC.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or may not be looked into
            if any(_link(fd) in nodes for fd in (process / "fd").iterdir()):
                name = command(process)
                if name not in _MOMENTARY:
                    yield Holder(f"pid {process.name} ({name})", "has it open")


def _link(fd: Path) -> str:
    with suppress(OSError):  # closed meanwhile
        return os.readlink(fd)  # noqa: PTH115
    return ""
