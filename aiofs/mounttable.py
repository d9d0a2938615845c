"""The kernel's table of mounts, read from /proc/self/mountinfo. Asks no file system anything, so it
cannot block on a mount whose server does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOUNTINFO = Path("/proc/self/mountinfo")
FSTYPE = "fuse.aiofs"


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo (proc(5))."""

    mount_id: int
    parent_id: int
    device: int
    """st_dev of the files in it."""
    mountpoint: Path
    options: frozenset[str]
    fstype: str
    source: str

    @property
    def is_aiofs(self) -> bool:
        """It is a mount of aiofs."""
        return self.fstype == FSTYPE

    def is_same_as(self, other: Mount) -> bool:
        """Both are lines of one mount. The number alone does not tell: the kernel gives that of a mount that
        has gone to the next one, and that of its device, too (proc_pid_mountinfo(5))."""
        mine = (self.mount_id, self.device, self.mountpoint)
        return mine == (other.mount_id, other.device, other.mountpoint)


def kept(told: Mapping[str, Any]) -> Mount:
    """A mount as its keeper knows it, from when it was made: what tells it from others, and where it is."""
    return Mount(
        mount_id=told["mount_id"],
        parent_id=0,
        device=told["device"],
        mountpoint=Path(told["mountpoint"]),
        options=frozenset(),
        fstype=FSTYPE,
        source="",
    )


def mounts(text: str | None = None) -> list[Mount]:
    """All mounts, in mount order (of two on one mountpoint the later one is on top)."""
    lines = (MOUNTINFO.read_text(errors="surrogateescape") if text is None else text).splitlines()
    return [_parse(line) for line in lines]


def holds(mount: Mount) -> bool:
    """It is still mounted where it was."""
    return any(mount.is_same_as(other) for other in mounts())


def aiofs_mounts() -> list[Mount]:
    """The aiofs mounts that this process can see."""
    return [mount for mount in mounts() if mount.is_aiofs]


def mount_at(path: Path) -> Mount | None:
    """The topmost mount whose mountpoint is `path`, or None.

    Symbolic links on the way are followed, but for the last component only when nothing is mounted on
    it: a mount whose server has died, or does not answer, is found too.
    """
    table = mounts()
    for candidate in _spellings(path):
        for mount in reversed(table):
            if mount.mountpoint == candidate:
                return mount
    return None


def mount_over(path: Path) -> Mount | None:
    """The mount that holds `path`: the longest mountpoint that is a prefix of it, the topmost of those."""
    best: Mount | None = None
    for mount in mounts():
        if path.is_relative_to(mount.mountpoint) and (
            best is None or len(mount.mountpoint.parts) >= len(best.mountpoint.parts)
        ):
            best = mount
    return best


def _spellings(path: Path) -> Iterator[Path]:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 -- removes "..", which Path.absolute keeps
    yield absolute
    yield Path(os.path.realpath(absolute.parent)) / absolute.name
    yield Path(os.path.realpath(absolute))


def _parse(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    ident, parent, device, _root, mountpoint, options, *_ = left.split(" ")
    fstype, source, *_ = right.split(" ")
    major, minor = device.split(":")
    return Mount(
        mount_id=int(ident),
        parent_id=int(parent),
        device=os.makedev(int(major), int(minor)),
        mountpoint=Path(unescape(mountpoint)),
        options=frozenset(options.split(",")),
        fstype=fstype,
        source=unescape(source),
    )


def unescape(field: str) -> str:
    r"""Undo the kernel's octal escapes of space, tab, newline and backslash (`\040`)."""
    if "\\" not in field:
        return field
    raw = os.fsencode(field)
    out = bytearray()
    index = 0
    while index < len(raw):
        digits = raw[index + 1 : index + 4]
        if raw[index] == 0x5C and len(digits) == 3 and all(0x30 <= digit <= 0x37 for digit in digits):
            out.append(int(digits, 8) & 0xFF)
            index += 4
        else:
            out.append(raw[index])
            index += 1
    return os.fsdecode(bytes(out))
