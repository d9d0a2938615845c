"""Whether a disk after a power failure is in order: mounted, as its owner would, and looked at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from commits import lost

TIMEOUT_S = 60


def wrong_with(disk: bytearray, acknowledged: Mapping[str, int], mountpoint: Path) -> list[str]:
    """What is not as it must be on this disk with an ext4: its journal replays and it is clean then, and each
    worker finds the commits that were acknowledged. `mountpoint`: an empty directory to use."""
    with _device(disk) as device:
        mount = _run("mount", "-t", "ext4", "-o", "errors=remount-ro", device, str(mountpoint))
        if mount.returncode != 0:
            return [f"cannot be mounted: {mount.stderr.strip()}"]
        try:
            wrong = lost(mountpoint, acknowledged)
        finally:
            umount = _run("umount", str(mountpoint))
            if umount.returncode != 0:
                _run("umount", "--lazy", str(mountpoint))
        assert umount.returncode == 0, umount.stderr
        check = _run("e2fsck", "-f", "-n", device)
        if check.returncode != 0:
            wrong.append(f"e2fsck: {check.stdout.strip()}")
        return wrong


@contextmanager
def _device(disk: bytearray) -> Iterator[str]:
    """A loop device on these bytes, in memory."""
    fd = os.memfd_create("disk")
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            assert file.write(disk) == len(disk)
        made = _run("losetup", "--find", "--show", f"/proc/{os.getpid()}/fd/{fd}")
        assert made.returncode == 0, made.stderr
        device = made.stdout.strip()
        try:
            yield device
        finally:
            detached = _run("losetup", "--detach", device)
            assert detached.returncode == 0, detached.stderr
    finally:
        os.close(fd)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
