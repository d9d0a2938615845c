"""Where fio runs: on a target's image itself, on a loop device on it, on an ext4 on that, or in a guest."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from guests import boot
from guests.kernel import Kernel, Missing

from .image import write_image
from .processes import TargetError, run_logged, undisturbed
from .workloads import Place

Fio = Callable[[Path, int], list[str]]
"""fio's command for a path and the bytes that may be used of it."""

MKFS = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]
"""The image keeps its blocks, and nothing is left for the kernel to write later."""
GUEST_MODULES = ("virtio_pci", "virtio_blk")
GUEST_MEMORY_MIB = 512
"""Debian's fio brings 80 MiB of libraries with it."""


@contextlib.contextmanager
def prepared(place: Place, image: Path, size: int, directory: Path, fio: Fio) -> Iterator[list[str]]:
    """The command whose output has fio's report on `image` of `size` bytes. TargetError.

    `directory`: where a file system may be mounted for it.
    """
    match place:
        case Place.FILE:
            yield fio(image, size)
        case Place.LOOP:
            with loop_device(image) as device:
                yield fio(device, size)
        case Place.EXT4:
            with loop_device(image) as device, _ext4(device, directory) as mountpoint:
                file = mountpoint / "disk.img"
                write_image(file, size // 2)
                yield fio(file, size // 2)
        case Place.GUEST:
            with _guest(image, fio(Path("/dev/vda"), size)) as command:
                yield command


def prove(place: Place, image: Path) -> None:
    """Find out now whether fio could not run there at all. TargetError."""
    match place:
        case Place.LOOP | Place.EXT4:
            with loop_device(image):
                pass
        case Place.GUEST:
            with _guest(image, []):
                pass


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A loop device with direct I/O on a file, which it keeps open (and aiofs locked) until the end."""
    if os.geteuid() != 0:
        raise TargetError("loop devices need root")
    # Sessions of their own: a Ctrl-C that ended losetup might leave a device that nobody knows of.
    command: list[str | Path] = ["losetup", "--find", "--show", "--direct-io=on", path]
    with undisturbed():
        attached = subprocess.run(
            command, capture_output=True, text=True, start_new_session=True, check=False
        )
        if attached.returncode != 0:
            raise TargetError(f"losetup: {attached.stderr.strip()}")
        device = Path(attached.stdout.strip())
    try:
        yield device
    finally:
        with undisturbed():
            subprocess.run(["losetup", "--detach", device], start_new_session=True, check=False)
            _wait_for_detach(device)


def _wait_for_detach(device: Path) -> None:
    """udev may hold a loop device a moment longer, and what it is on stays busy as long."""
    backing = Path("/sys/block") / device.name / "loop" / "backing_file"
    deadline = time.monotonic() + 10
    while backing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@contextlib.contextmanager
def _ext4(device: Path, parent: Path) -> Iterator[Path]:
    """A new ext4 on a device, mounted beneath `parent`."""
    with tempfile.TemporaryDirectory(prefix="ext4.", dir=parent) as room:
        log, mountpoint = Path(room, "log"), Path(room, "mount")
        mountpoint.mkdir()
        run_logged([*MKFS, device], log)
        run_logged(["mount", "-t", "ext4", device, mountpoint], log)
        try:
            yield mountpoint
        finally:
            with undisturbed():
                try:
                    run_logged(["umount", mountpoint], log)
                except TargetError:
                    run_logged(["umount", "--lazy", mountpoint], log)
                    raise


@contextlib.contextmanager
def _guest(image: Path, fio: list[str]) -> Iterator[list[str]]:
    """QEMU's command for a guest that runs fio on its disk, `image`, and prints what fio prints."""
    try:
        kernel = Kernel.find()
        archive = boot.initramfs(kernel, shlex.join(fio), modules=GUEST_MODULES, tools=["fio"])
        # In memory: to write it would be work for the disk that is measured.
        fd = os.memfd_create("initramfs")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(archive)
            initrd = Path(f"/proc/{os.getpid()}/fd/{fd}")
            drive = f"file={image},format=raw,cache=none,aio=io_uring"
            command = boot.command(kernel, initrd, [drive], memory_mib=GUEST_MEMORY_MIB)
            yield command
        finally:
            os.close(fd)
    except Missing as error:
        raise TargetError(str(error)) from None
