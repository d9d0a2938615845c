"""`aiofs attach`: a loop device on an image of a mount, set up for what the mount can do.

Direct I/O, so that nothing is cached twice; sectors as large as the blocks that the image needs, so that
nothing has to be read before it is written; requests no larger than FUSE takes in one piece. What fails on
the way leaves no device attached.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from . import info, loopdevices, losetup, mounttable
from .errors import AiofsError, BadInput, reason
from .loopdevices import LoopDevice
from .mounttable import Mount

MIN_SECTOR_BYTES = 512
MAX_SECTOR_BYTES = 4096
"""The loop driver takes no more than a page. The server pads what is smaller than the image's blocks."""


def attach(path: Path, *, read_only: bool = False, partitions: bool = False) -> int:
    """Attach an image and print the device, and its partitions if asked for; the exit status.

    `path`: absolute. BadInput, AiofsError: nothing is attached.
    """
    losetup.need_root("attach")
    losetup.find()
    mount, max_write = _mount_of(path)
    fd = _open(path, read_only)
    try:
        # Two at once: the second one waits, and sees the device of the first.
        fcntl.flock(fd, fcntl.LOCK_EX)
        st = os.fstat(fd)
        others = _others(path, (st.st_dev, st.st_ino), read_only)
        sector_bytes = _sector_bytes(path, mount)
        _check_size(path, st.st_size, sector_bytes)
        try:
            name = losetup.attach(path, sector_bytes, read_only=read_only, partitions=partitions)
            device = _finish(name, path, (st.st_dev, st.st_ino), max_write)
        except BaseException:
            _undo((st.st_dev, st.st_ino), others)
            raise
    finally:
        os.close(fd)
    print(device.node)
    if partitions:
        _print_partitions(path, device)
    return 0


def _print_partitions(path: Path, device: LoopDevice) -> None:
    names = loopdevices.partitions(device)
    for node in (Path("/dev", name) for name in names):
        if node.exists():
            print(node)
    if not names:
        print(f"aiofs: the kernel sees no partitions on {path}", file=sys.stderr)


def _mount_of(path: Path) -> tuple[Mount, int]:
    """The live aiofs mount that `path` is on, and the most bytes that it takes in one write."""
    mount = mount_of_image(path)
    try:
        told = info.read(mount.mountpoint)
    except info.Unreadable as error:
        if isinstance(error.__cause__, PermissionError):
            raise BadInput(
                f"{mount.mountpoint} was mounted by another user without --allow-other, so root may not use "
                f"its images; mount it again with --allow-other, or as root"
            ) from None
        raise
    return mount, int(told["fuse"]["max_write"])


def mount_of_image(path: Path) -> Mount:
    """The aiofs mount that holds `path`. BadInput."""
    mount = mounttable.mount_over(path)
    if mount is None or not mount.is_aiofs:
        # Only now: asking a mount whose server hangs where its links lead would hang as well.
        mount = mounttable.mount_over(Path(os.path.realpath(path)))
    if mount is not None and mount.is_aiofs:
        return mount
    if not path.exists():
        raise BadInput(f"{path} does not exist; 'aiofs info' lists the aiofs mounts")
    raise BadInput(
        f"{path} is not on an aiofs mount; mount its directory: aiofs mount {path.parent} MOUNTPOINT, "
        f"or attach it without aiofs: losetup --find --show --direct-io=on {path}"
    )


def _open(path: Path, read_only: bool) -> int:
    """Open the image for as long as the device is being made: its lock is taken, its block size is known."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path} is a directory; give one of the images in it")
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"cannot attach {path}: {reason(error)}{_way_out(path, error)}") from None


def _way_out(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"; make it: truncate -s 10G {path}"
        case errno.EROFS:
            return " (the mount is read-only); use --read-only"
        case errno.EACCES | errno.EPERM:
            return "; use --read-only, or let the mount's user write to it"
        case errno.EBUSY:
            return " (another process has locked the image; the log of the mount names it)"
    return ""


def _others(path: Path, file: tuple[int, int], read_only: bool) -> list[LoopDevice]:
    """The devices on the image already: readers, when this is to be one more. BadInput."""
    others = loopdevices.image_devices(loopdevices.identified(), path, file)
    for other in others:
        if not other.read_only or not read_only:
            how = "read-only" if other.read_only else "read-write"
            raise BadInput(
                f"{path} is attached already, {how}, as {other.node}: two that do not know of each other "
                f"corrupt it; use that one, or: aiofs detach {other.node}"
            )
    return others


def _sector_bytes(path: Path, mount: Mount) -> int:
    """The image's block size as the server knows it, in the bounds of the loop driver."""
    inside = path.resolve()
    images = info.read(mount.mountpoint)["images"]
    named = (image["block_size"] for image in images if mount.mountpoint / image["path"] == inside)
    return min(max(next(named, MIN_SECTOR_BYTES), MIN_SECTOR_BYTES), MAX_SECTOR_BYTES)


def _check_size(path: Path, size: int, sector_bytes: int) -> None:
    if size == 0:
        raise BadInput(f"{path} is empty; give it a size: truncate -s 10G {path}")
    if size % sector_bytes:
        raise BadInput(
            f"{path} has {size} bytes, no multiple of its sectors of {sector_bytes}, so its end could not be "
            f"used; make it one: truncate -s %{sector_bytes} {path}"
        )


def _finish(name: str, path: Path, file: tuple[int, int], max_write: int) -> LoopDevice:
    """Check that the device is what was asked for, and keep its requests to `max_write` bytes."""
    device = loopdevices.identify(name)
    if device is None or (device.file != file and device.path != path):
        raise AiofsError(f"cannot attach {path}: somebody else has taken /dev/{name} in the same moment")
    if not device.direct:
        raise AiofsError(f"cannot attach {path}: {device.node} does no direct I/O on it")
    limit = loopdevices.BLOCK_DEVICES / name / "queue/max_sectors_kb"
    try:
        if int(limit.read_text()) * 1024 > max_write:
            limit.write_text(str(max_write // 1024))
    except OSError as error:
        raise AiofsError(f"cannot attach {path}: {limit}: {reason(error)}") from None
    return device


def _undo(file: tuple[int, int], others: list[LoopDevice]) -> None:
    """Detach what has come to be on the image, also when losetup was interrupted before it named it."""
    known = {(other.name, other.sequence) for other in others}
    for device in loopdevices.identified():
        if device.file == file and (device.name, device.sequence) not in known:
            losetup.detach(device.node)
