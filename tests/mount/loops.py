"""Loop devices and file systems mounted from them, as tests need them. Everything made here is undone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TIMEOUT_S = 60
TOOLS = ("losetup", "mount", "umount", "mkfs.ext4", "e2fsck")


def run(*command: str | Path) -> str:
    """What a command prints; AssertionError with all it said when it fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


class Loops:
    """The loop devices and mounts of one test, in the order in which they were made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._undo: list[tuple[str, Path]] = []

    @staticmethod
    def why_not() -> str:
        """Why this process can have no loop devices; empty when it can."""
        if os.geteuid() != 0:
            return "loop devices need root"
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            return f"not installed: {', '.join(missing)} (apt-get install mount e2fsprogs)"
        if not Path("/dev/loop-control").exists():
            return "/dev/loop-control is not here"
        probe = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
        return "" if probe.returncode == 0 else f"no loop device to be had: {probe.stderr.strip()}"

    def attach(self, image: Path, *options: str) -> Path:
        """A loop device on an image."""
        device = Path(run("losetup", "--find", "--show", *options, image).strip())
        self._undo.append(("losetup", device))
        return device

    def detach(self, device: Path) -> None:
        """Take the device away again; it must not be in use."""
        run("losetup", "--detach", device)
        self._undo.remove(("losetup", device))

    def mount(self, device: Path, name: str, *options: str) -> Path:
        """Mount the file system of a device on a new directory."""
        mountpoint = self._directory / name
        mountpoint.mkdir(exist_ok=True)
        run("mount", *options, device, mountpoint)
        self._undo.append(("umount", mountpoint))
        return mountpoint

    def umount(self, mountpoint: Path) -> None:
        """Unmount it."""
        run("umount", mountpoint)
        self._undo.remove(("umount", mountpoint))

    def ext4(self, name: str, size: int, *options: str) -> Path:
        """A new ext4 of `size` bytes on a loop device on a file of its own, mounted."""
        return self.filesystem("ext4", name, size, "-F", *options)

    def filesystem(self, kind: str, name: str, size: int, *options: str) -> Path:
        """A new file system on a loop device on a file of its own, mounted; skips where mkfs is missing."""
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"mkfs.{kind} is not installed (apt-get install {kind}progs or {kind}-progs)")
        image = self._directory / f"{name}.{kind}"
        with image.open("wb") as file:
            file.truncate(size)
        run(f"mkfs.{kind}", "-q", *options, image)
        return self.mount(self.attach(image), name)

    def virtual(self, kind: str, name: str, options: str) -> Path:
        """A file system without a device (tmpfs, overlay), mounted on a new directory."""
        return self.mount(Path(kind), name, "-t", kind, "-o", options)

    def clean_up(self) -> list[str]:
        """Undo what is left, the newest first; what could not be undone."""
        wrong = []
        for what, path in reversed(self._undo):
            command = ["losetup", "--detach"] if what == "losetup" else ["umount"]
            done = subprocess.run(
                [*command, str(path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            if done.returncode != 0:
                wrong.append(f"{what} {path}: {done.stderr.strip()}")
                if what == "umount":
                    subprocess.run(["umount", "--lazy", str(path)], timeout=TIMEOUT_S, check=False)
        self._undo.clear()
        return wrong
