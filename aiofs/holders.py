"""Who keeps a mount busy: processes, loop devices, swap files, and mounts inside it.

Everything is read from /proc and /sys without asking the mounted file system anything: a descriptor
belongs to a mount when its `mnt_id` says so, never because a stat() of it succeeded. So this works, and
does not block, when the server of the mount is stopping or dead. Processes of other users cannot be
looked into without privilege; they are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import loopdevices, mounttable
from .loopdevices import DELETED
from .mounttable import Mount

PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """One thing that uses the mount."""

    who: str
    """`pid 123 (bash)`, `/dev/loop0`, `swap`, `mount /mnt/x/inner`."""
    how: str
    """What it holds: `working directory`, `open file disk.img`."""

    def __str__(self) -> str:
        return f"{self.who}: {self.how}" if self.how else self.who


@dataclass(frozen=True)
class Holders:
    """All that was found."""

    found: list[Holder] = field(default_factory=list)
    hidden: int = 0
    """Processes that could not be looked into."""

    def lines(self) -> list[str]:
        """For people: one line per holder; when none was found, whether some may be hidden."""
        if not self.found and self.hidden and os.geteuid() != 0:
            return ["a process of another user, perhaps (root can look into them)"]
        return [str(holder) for holder in self.found]


def holders_of(mount: Mount) -> Holders:
    """Everything of this machine that keeps `mount` from being unmounted."""
    found = [*_inner_mounts(mount), *_loop_devices(mount), *_swap_files(mount)]
    hidden = 0
    for process in sorted((p for p in PROC.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        if int(process.name) == os.getpid():
            continue
        try:
            how = list(_uses(process, mount))
        except PermissionError:
            hidden += 1
            continue
        except OSError:  # it has ended
            continue
        if how:
            found.append(Holder(f"pid {process.name} ({command(process)})", ", ".join(how)))
    return Holders(found, hidden)


def _uses(process: Path, mount: Mount) -> Iterator[str]:
    for link, name in (("cwd", "working directory"), ("root", "root directory")):
        if _mount_id_of_link(process / link) == mount.mount_id:
            yield name
    for info in (process / "fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if _mount_id(info.read_text()) == mount.mount_id:
                yield f"open file {_inside(os.readlink(process / 'fd' / info.name), mount)}"  # noqa: PTH115
    yield from _mapped(process, mount)


def _mount_id_of_link(link: Path) -> int | None:
    """The mount that a /proc/PID/cwd leads to; O_PATH on it sends no FUSE request."""
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):  # a kernel thread has none
        return None
    try:
        return _mount_id((PROC / "self" / "fdinfo" / str(fd)).read_text())
    finally:
        os.close(fd)


def _mount_id(fdinfo: str) -> int | None:
    for line in fdinfo.splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    return None


def _mapped(process: Path, mount: Mount) -> Iterator[str]:
    """Files mapped into its memory; a mapping outlives the descriptor it was made from."""
    device = f"{os.major(mount.device):02x}:{os.minor(mount.device):02x}"
    seen = set()
    for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[3] == device and fields[5] not in seen:
            seen.add(fields[5])
            yield f"memory map of {_inside(fields[5], mount)}"


def _inner_mounts(mount: Mount) -> Iterator[Holder]:
    for other in mounttable.mounts():
        if other.parent_id == mount.mount_id:
            yield Holder(f"mount {other.mountpoint}", f"{other.fstype} inside it")


def _loop_devices(mount: Mount) -> Iterator[Holder]:
    for device in loopdevices.attached():  # without asking for its file's numbers, which asks the server
        if device.is_on(mount):
            yield Holder(str(device.node), f"loop device on {device.image(mount)}")


def _swap_files(mount: Mount) -> Iterator[Holder]:
    with suppress(OSError):  # a kernel without swap
        for line in (PROC / "swaps").read_text(errors="surrogateescape").splitlines()[1:]:
            path = mounttable.unescape(line.split()[0])
            if _is_inside(path, mount):
                yield Holder("swap", f"swap file {_inside(path, mount)}")


def _is_inside(path: str, mount: Mount) -> bool:
    return Path(path.removesuffix(DELETED)).is_relative_to(mount.mountpoint)


def _inside(path: str, mount: Mount) -> str:
    """The path as seen from the mountpoint, or as it is when it does not show it."""
    text = path.removesuffix(DELETED)
    if Path(text).is_relative_to(mount.mountpoint):
        return str(Path(text).relative_to(mount.mountpoint))
    return text


def command(process: Path) -> str:
    """The name of a process, by its directory in /proc."""
    with suppress(OSError):
        return (process / "comm").read_text(errors="replace").strip()
    return "?"
