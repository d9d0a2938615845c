"""What must be true before a mount is tried: paths, the mountpoint, the machine, the rights of the user.

Each check raises BadInput with one sentence that names the path and the way out. They run before
anything is opened or mounted, so a refusal leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

from . import fusermount, mounttable
from .config import MountConfig
from .errors import BadInput, reason

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
FUSE_SYSCTL = Path("/proc/sys/fs/fuse")
ANSWER_TIMEOUT_S = 2.0


def check(config: MountConfig) -> None:
    """All of them, the cheapest and most likely first."""
    _check_source(config.source)
    _check_mountpoint(config.mountpoint)
    _check_apart(config.source, config.mountpoint)
    fusermount.find()
    check_fuse_device()
    if config.allow_other:
        check_allow_other()


def _check_source(source: Path) -> None:
    try:
        mode = source.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise BadInput(
                f"source {source} does not exist; give a directory of images, an image or a block device"
            ) from None
        raise BadInput(f"cannot use source {source}: {reason(error)}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BadInput(f"source {source} is neither a directory, nor a file, nor a block device")


def _check_mountpoint(mountpoint: Path) -> None:
    # The table first: a stat() of a mount whose server hangs would hang as well.
    mounted = mounttable.mount_at(mountpoint)
    if mounted is not None and mounted.is_aiofs:
        _refuse_mounted(mountpoint, mounted)
    try:
        mode = mountpoint.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise BadInput(
                f"mountpoint {mountpoint} does not exist; make it: mkdir -p {mountpoint}"
            ) from None
        if error.errno == errno.ENOTCONN:
            raise BadInput(_stale(mountpoint)) from None
        raise BadInput(f"cannot use mountpoint {mountpoint}: {reason(error)}") from None
    if not stat.S_ISDIR(mode):
        raise BadInput(f"mountpoint {mountpoint} is not a directory")


def _refuse_mounted(mountpoint: Path, mounted: mounttable.Mount) -> None:
    if _server_has_died(mounted):
        raise BadInput(_stale(mountpoint))
    raise BadInput(
        f"mountpoint {mountpoint} is already an aiofs mount, of {mounted.source}; "
        f"unmount it: aiofs umount {mountpoint}"
    )


def _server_has_died(mounted: mounttable.Mount) -> bool:
    answers: list[int | None] = []

    def ask() -> None:
        try:
            os.statvfs(mounted.mountpoint)
        except OSError as error:
            answers.append(error.errno)

    # The kernel answers for a dead server at once. One that lives and hangs must not hang this.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(ANSWER_TIMEOUT_S)
    return bool(answers) and answers[0] in (errno.ENOTCONN, errno.ECONNABORTED)


def _stale(mountpoint: Path) -> str:
    return (
        f"mountpoint {mountpoint} is stale (Transport endpoint is not connected: the server of an earlier "
        f"mount has died); clear it: {fusermount.clear_hint(mountpoint)}"
    )


def _check_apart(source: Path, mountpoint: Path) -> None:
    """Refuse a mount that would hide its own source, or show itself inside its source."""
    below = Path(os.path.realpath(source))
    above = Path(os.path.realpath(mountpoint))
    if below == above:
        raise BadInput(f"source and mountpoint are the same directory, {above}; use another mountpoint")
    if below.is_relative_to(above):
        raise BadInput(
            f"source {below} is inside the mountpoint {above}, which would hide it; use another mountpoint"
        )
    if above.is_relative_to(below):
        raise BadInput(f"mountpoint {above} is inside the source {below}; use a mountpoint outside of it")


def check_fuse_device() -> None:
    """The kernel has FUSE and this user may open it."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise BadInput(
                f"{FUSE_DEVICE} is not there; load the kernel module: modprobe fuse "
                f"(in a container: start it with --device {FUSE_DEVICE})"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise BadInput(
                f"no permission to open {FUSE_DEVICE}; as root: chmod 666 {FUSE_DEVICE} "
                f"(in a container: start it with --device {FUSE_DEVICE})"
            ) from None
        raise BadInput(f"cannot open {FUSE_DEVICE}: {reason(error)}") from None


def check_allow_other() -> None:
    """Ordinary users need the administrator's leave for --allow-other."""
    if os.geteuid() == 0:
        return
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise BadInput(
            f"--allow-other is not allowed to ordinary users here; "
            f"root has to put the line 'user_allow_other' into {FUSE_CONF}"
        )


def request_timeout_s() -> int:
    """After how long the kernel aborts a connection that has not answered; 0: never (before Linux 6.15)."""
    limits = []
    for name in ("default_request_timeout", "max_request_timeout"):
        try:
            limits.append(int((FUSE_SYSCTL / name).read_text()))
        except (OSError, ValueError):
            continue
    return min((limit for limit in limits if limit > 0), default=0)
