"""`aiofs detach`: take loop devices away from images, and return when they are gone.

The kernel would let a device be detached that is in use, and do it when its last user has gone, whenever that
is. So a device in use is refused, with who uses it, and one that is not is claimed until it is detached:
nobody can mount it in between.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from . import attach, deviceusers, info, loopdevices, losetup, mounttable
from .errors import AiofsError, BadInput, reason
from .loopdevices import LoopDevice

GONE_TIMEOUT_S = 5.0
"""For those who only look into a device (udev, blkid), and for requests in flight."""
_LOOK_EVERY_S = 0.01


def detach(path: Path) -> int:
    """Detach a device, or every device on an image; the exit status. `path`: absolute."""
    losetup.need_root("detach")
    detach_all(_named(path))
    return 0


def detach_all(devices: Iterable[LoopDevice]) -> None:
    """Detach all of them, or none when one is in use. AiofsError names the users."""
    devices = list(devices)
    used = [(device, users) for device in devices if (users := deviceusers.users(device))]
    if used:
        lines = [f"{device.node}: {user}" for device, users in used for user in users]
        raise AiofsError("\n  ".join(["cannot detach what is in use; first end", *lines]))
    for device in devices:
        _detach(device)


def _named(path: Path) -> list[LoopDevice]:
    """The devices that the word stands for, at least one. BadInput."""
    if re.fullmatch(r"loop\d+(p\d+)?", path.name) and path.parent == Path("/dev"):
        return [_device(path)]
    mount = attach.mount_of_image(path)
    file = _file_of(path, mount)
    devices = loopdevices.on_mount(mount, answers=file is not None)
    found = loopdevices.image_devices(devices, path, file)
    if not found:
        raise BadInput(f"{path} is not attached; 'aiofs info {mount.mountpoint}' lists what is")
    return found


def _file_of(path: Path, mount: mounttable.Mount) -> tuple[int, int] | None:
    """The file's numbers, or None when it has gone or its server does not answer: the path has to do."""
    try:
        info.read(mount.mountpoint)
        st = path.stat()
    except (info.Unreadable, OSError):
        return None
    if stat.S_ISDIR(st.st_mode):
        raise BadInput(f"{path} is a directory; to detach and unmount: aiofs umount --detach {path}")
    return st.st_dev, st.st_ino


def _device(node: Path) -> LoopDevice:
    whole = re.sub(r"(?<=\d)p\d+$", "", node.name)
    if whole != node.name:
        raise BadInput(f"{node} is a partition; detach the whole device: aiofs detach /dev/{whole}")
    device = loopdevices.find(whole)
    if device is None:
        raise BadInput(f"{node} is not attached to anything; 'aiofs info MOUNTPOINT' lists what is")
    mounts = mounttable.aiofs_mounts()
    if not any(device.is_on(mount) for mount in mounts):
        # Through a bind mount its numbers tell, which are not asked for needlessly: its server may hang.
        device = loopdevices.identify(whole) or device
    if not any(device.is_on(mount) for mount in mounts):
        raise BadInput(
            f"{node} is on {device.backing}, which is on no aiofs mount; detach it: losetup --detach {node}"
        )
    return device


def _detach(device: LoopDevice) -> None:
    try:
        claim = os.open(device.node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise AiofsError(_in_use(device)) from None
        raise AiofsError(f"cannot detach {device.node}: {reason(error)}") from None
    try:
        losetup.detach(device.node)
    finally:
        os.close(claim)  # the last user, as a rule: the device goes now
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while _is_there(device):
        if time.monotonic() > deadline:
            raise AiofsError(f"{_in_use(device)}; it will be detached when that has ended")
        time.sleep(_LOOK_EVERY_S)


def _is_there(device: LoopDevice) -> bool:
    now = loopdevices.find(device.name)
    return now is not None and (now.sequence, now.backing) == (device.sequence, device.backing)


def _in_use(device: LoopDevice) -> str:
    who = "; ".join(map(str, deviceusers.users(device))) or "somebody who cannot be seen from here"
    return f"{device.node} is in use by {who}"
