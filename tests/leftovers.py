"""What a killed run of the tests has left: mounts, and loop devices on them.

Nobody serves such a mount, and whoever asks about a device on it is told "Transport endpoint is not
connected": mkfs.btrfs, which asks about all of them, would fail in every run until somebody clears them away.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from aiofs import loopdevices, mounttable

TIMEOUT_S = 60


def clear(temporary: Path) -> list[str]:
    """Take away what is left in the directories of ended runs (`pytest-N` in `temporary`); what it was."""
    ended = [run for run in temporary.glob("pytest-[0-9]*") if not run.is_symlink() and _has_ended(run)]
    return [left for run in ended for left in _clear_run(run)]


def _has_ended(run: Path) -> bool:
    """pytest keeps the number of its process in the directory that it made, for as long as it runs."""
    try:
        return not Path("/proc", (run / ".lock").read_text().strip()).exists()
    except FileNotFoundError:
        return True


def _clear_run(run: Path) -> list[str]:
    """The newest mount first: it may be of a device on one that was there before it."""
    devices = [device for device in loopdevices.attached() if device.path.is_relative_to(run)]
    mounts = [mount for mount in mounttable.mounts() if mount.mountpoint.is_relative_to(run)]
    for mount in reversed(mounts):
        _do("umount", "--lazy", str(mount.mountpoint))  # a server that still lives ends
    for device in devices:  # its path was that in the mount, and is not any more
        _do("losetup", "--detach", str(device.node))
    return [
        *(f"{mount.fstype} on {mount.mountpoint}" for mount in mounts),
        *(f"{device.node} on {device.path}" for device in devices),
    ]


def _do(*command: str) -> None:
    """One that fails says why on stderr, and the rest is cleared all the same."""
    subprocess.run(command, timeout=TIMEOUT_S, check=False)
