"""File systems to measure on: made on loop devices (or in memory), mounted, and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .places import loop_device
from .processes import TargetError, undisturbed
from .workloads import MIB

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")


def space(kind: str, image_size: int) -> int:
    """Bytes that a file system needs which is to hold an image; btrfs writes everything to a new place."""
    return 3 * image_size if kind == "btrfs" else image_size + max(image_size // 4, 320 * MIB)


@contextlib.contextmanager
def made(kind: str, directory: Path, size: int) -> Iterator[Path]:
    """A new file system of `size` bytes, mounted in `directory`. TargetError says what is missing."""
    if os.geteuid() != 0:
        raise TargetError("file systems are made by root only")
    mountpoint = directory / kind
    mountpoint.mkdir()
    try:
        if kind == "tmpfs":
            with _mounted(["-t", "tmpfs", "-o", f"size={size}", "tmpfs"], mountpoint):
                yield mountpoint
            return
        with _disk(directory / f"{kind}.disk", size) as disk, loop_device(disk) as device:
            _run([_tool(f"mkfs.{kind}"), "-q", str(device)])
            with _mounted([str(device)], mountpoint):
                yield mountpoint
    finally:
        mountpoint.rmdir()


@contextlib.contextmanager
def _disk(path: Path, size: int) -> Iterator[Path]:
    """A file with all its blocks, so that no file system on it waits for the one below to find some."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _mounted(what: list[str], mountpoint: Path) -> Iterator[None]:
    with undisturbed():
        _run(["mount", *what, str(mountpoint)])
    try:
        yield
    finally:
        with undisturbed():
            _run(["umount", str(mountpoint)])


def _tool(name: str) -> str:
    if shutil.which(name) is None:
        raise TargetError(f"{name} is not installed")
    return name


def _run(command: list[str]) -> None:
    # A session of its own: Ctrl-C must not leave a mount half made.
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    if done.returncode != 0:
        raise TargetError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
