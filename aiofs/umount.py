"""`aiofs umount`: unmount, and return when the server has brought everything to disk and has gone.

The order matters. While the mount still answers, its info names the server; a pidfd and the server's
outcome file are opened then, because after the unmount there is nothing left to ask.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import fusermount, holders, info, loopdevices, mounttable, outcome
from .errors import AiofsError, BadInput
from .fusermount import Unmounting
from .mounttable import Mount

PATIENCE_S = 2.0
"""After so long, a word about what is being waited for."""


@dataclass(frozen=True)
class _Server:
    """A live server, held so that neither a reused pid nor its end can deceive."""

    pid: int
    pidfd: int
    outcome_fd: int | None


def umount(mountpoint: Path, *, lazy: bool = False, detach: bool = False) -> int:
    """Unmount an aiofs mount; the exit status. Waits however long the sync takes, but not when lazy.

    `detach`: first take away the loop devices on its images, unless they are in use.
    """
    mount = _find(mountpoint)
    server, unknown = None, ""
    try:
        server = _server_of(mount)
    except info.Unreadable as error:
        unknown = error.why
    if detach:
        _detach_devices(mount, answers=server is not None)
    match fusermount.unmount(mount.mountpoint, lazy=lazy):
        case Unmounting.BUSY:
            raise AiofsError(_busy(mount))
        case Unmounting.NOT_MOUNTED if server is None:
            raise BadInput(f"{mountpoint} is not mounted any more")
    if server is None:
        raise AiofsError(f"unmounted {mountpoint}, but whether everything is on disk is not known: {unknown}")
    if lazy:
        return 0
    _wait(server, mount)
    if server.outcome_fd is None:  # of another user: it has gone, its last words are not for us
        return 0
    failures = outcome.failures_in(server.outcome_fd)
    if failures:
        raise AiofsError(f"unmounted {mountpoint}, but not everything is on disk: {'; '.join(failures)}")
    return 0


def _find(path: Path) -> Mount:
    """The aiofs mount on `path`. BadInput says what is there instead."""
    mount = mounttable.mount_at(path)
    if mount is not None and mount.is_aiofs:
        return mount
    if mount is not None:
        raise BadInput(f"{path} is not an aiofs mount: {mount.fstype} ({mount.source}) is mounted there")
    around = mounttable.mount_over(Path(os.path.realpath(path)))
    if around is not None and around.is_aiofs:
        raise BadInput(f"{path} is inside an aiofs mount; unmount that: aiofs umount {around.mountpoint}")
    if not path.exists():
        raise BadInput(f"{path} does not exist; 'aiofs info' lists the aiofs mounts")
    raise BadInput(f"{path} is not mounted; 'aiofs info' lists the aiofs mounts")


def _detach_devices(mount: Mount, *, answers: bool) -> None:
    from . import losetup
    from .detach import detach_all

    devices = loopdevices.on_mount(mount, answers=answers)
    if devices:
        losetup.need_root("umount --detach")
        detach_all(devices)


def _server_of(mount: Mount) -> _Server:
    told = info.read(mount.mountpoint)
    pid = int(told["pid"])
    gone = info.Unreadable(f"its server (pid {pid}) is not visible from here")
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise gone from None
    # Compared after the pidfd is open: from here on the pid cannot become another process.
    with suppress(OSError):
        if info.start_ticks(pid) == told["start_ticks"]:
            return _Server(pid, pidfd, outcome.open_of(pid, int(told["outcome_fd"])))
    os.close(pidfd)
    raise gone


def _wait(server: _Server, mount: Mount) -> None:
    ended = select.poll()
    ended.register(server.pidfd, select.POLLIN)
    if ended.poll(PATIENCE_S * 1000):
        return
    if mounttable.mount_at(mount.mountpoint) is None:
        what = "writing to disk, or in use in another mount namespace"
    else:
        what = "still in use"
    print(f"aiofs: waiting for the server (pid {server.pid}): {what}", file=sys.stderr)
    ended.poll()


def _busy(mount: Mount) -> str:
    lines = holders.holders_of(mount).lines()
    if not lines:
        return f"{mount.mountpoint} is busy, but nobody who holds it can be seen from here"
    if any(device.is_on(mount) for device in loopdevices.attached()):
        lines.append(f"to detach the loop devices and unmount: aiofs umount --detach {mount.mountpoint}")
    return "\n  ".join([f"{mount.mountpoint} is busy, held by", *lines])
