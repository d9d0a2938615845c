"""What is measured: each target serves the same image, under a name of its own, until its context ends.

One image for all, because where an image lies on the disk changes its speed (factor 2 was seen between
two images written one after the other). Every target has a hard link to it; only one is used at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from aiofs.locks import LockConflict, LocksUnsupported, lock_for_writing

from .processes import (
    TargetError,
    mounted,
    processes_about,
    run_logged,
    running,
    undisturbed,
    unmount_leftover,
    wait_until,
)
from .workloads import MIB

DRIVERS = ("io_uring", "linux", "threads", "posix", "sync")


@dataclass(frozen=True)
class Served:
    """An image as a target presents it."""

    path: Path
    pids: list[int]
    """The processes that serve it; empty for the kernel."""


@dataclass(frozen=True)
class Lab:
    """Where the image lies, and beneath it one directory per target."""

    directory: Path
    size: int
    """Bytes of the image."""
    qemu_aio: str
    """QEMU's `aio` for qemu-storage-daemon."""

    @property
    def image(self) -> Path:
        """The one image that all targets serve."""
        return self.directory / "disk.img"

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """The image is there, fully written, inside this context."""
        try:
            write_image(self.image, self.size)
            yield
        finally:
            self.image.unlink(missing_ok=True)

    @contextlib.contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """A directory for one target with `images/disk.img`, a link to the image; emptied afterwards."""
        room = self.directory / name
        image = room / "images" / "disk.img"
        image.parent.mkdir(parents=True)
        try:
            image.hardlink_to(self.image)
            yield room
        finally:
            image.unlink(missing_ok=True)
            image.parent.rmdir()
            for left in room.iterdir():
                # A mount that would not go away must not be emptied through.
                if not mounted(left):
                    left.rmdir() if left.is_dir() else left.unlink()
            with contextlib.suppress(OSError):
                room.rmdir()


def write_image(path: Path, size: int) -> None:
    """Fill a new file with random data, O_DIRECT, so that every block is allocated and written."""
    with mmap.mmap(-1, min(size, 32 * MIB)) as block:  # page-aligned, as O_DIRECT wants it
        block.write(os.urandom(len(block)))
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_DIRECT, 0o600)
        try:
            view = memoryview(block)
            left = size
            while left:
                left -= os.write(fd, view[: min(left, len(block))])
            view.release()
            os.fsync(fd)
        finally:
            os.close(fd)


def settle(image: Path) -> None:
    """Bring the image to the state in which every cell finds it: on the disk, not cached, not locked.

    nbdkit leaves dirty pages, which whoever comes next would have to write. The kernel tells a FUSE server
    of a close some time after the close, so an aiofs may still hold the lock of the cell before.
    """
    fd = os.open(image, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        deadline = time.monotonic() + 10
        while True:
            try:
                lock_for_writing(fd)  # given up with the descriptor
                return
            except LocksUnsupported:
                return
            except LockConflict:
                if time.monotonic() > deadline:
                    raise TargetError("the image stays locked after its last use") from None
                time.sleep(0.001)
    finally:
        os.close(fd)


@contextlib.contextmanager
def raw(lab: Lab, name: str) -> Iterator[Served]:
    """The image itself."""
    with lab.room(name) as room:
        yield Served(room / "images" / "disk.img", [])


@contextlib.contextmanager
def aiofs(lab: Lab, name: str, driver: str, *, merge: bool) -> Iterator[Served]:
    """`aiofs mount`, in the background as its users have it."""
    with lab.room(name) as room:
        mountpoint = room / "mount"
        mountpoint.mkdir()
        options = ["--aio", driver, *([] if merge else ["--no-merge"])]
        pids: list[int] = []
        try:
            run_logged(["aiofs", "mount", room / "images", mountpoint, *options], room / "mount.log")
            pids = processes_about(mountpoint)
            yield Served(mountpoint / "disk.img", pids)
        finally:
            if mounted(mountpoint):
                with contextlib.suppress(TargetError):
                    run_logged(["aiofs", "umount", mountpoint], room / "umount.log")
                unmount_leftover(mountpoint)


@contextlib.contextmanager
def qsd(lab: Lab) -> Iterator[Served]:
    """qemu-storage-daemon: the export is one regular file, mounted over a regular file."""
    with lab.room("qsd") as room:
        export, log = room / "export.img", room / "qsd.log"
        export.touch()
        image = room / "images" / "disk.img"
        command = [
            "qemu-storage-daemon",
            "--blockdev",
            # It would lock the image as long as it runs, and no aiofs could open it meanwhile. Only one
            # target is used at a time, so nothing is lost by not locking.
            f"driver=file,node-name=disk,filename={image},aio={lab.qemu_aio},cache.direct=on,locking=off",
            "--export",
            f"type=fuse,id=disk,node-name=disk,mountpoint={export},writable=on",
        ]
        with running(command, log) as child:
            try:
                wait_until(lambda: mounted(export), "qemu-storage-daemon", child, log)
                yield Served(export, [child.pid])
            finally:
                child.terminate()
                child.wait()
                unmount_leftover(export)


@contextlib.contextmanager
def nbdfuse(lab: Lab) -> Iterator[Served]:
    """nbdfuse over `nbdkit file`, which reads and writes through the page cache: it has no O_DIRECT."""
    with lab.room("nbdfuse") as room:
        socket, log, mountpoint = room / "nbd.sock", room / "nbdkit.log", room / "mount"
        mountpoint.mkdir()
        image = room / "images" / "disk.img"
        with running(["nbdkit", "--foreground", "--unix", socket, "file", image], log) as server:
            wait_until(socket.exists, "nbdkit", server, log)
            log = room / "nbdfuse.log"
            with running(["nbdfuse", mountpoint / "disk.img", "--unix", socket], log) as client:
                try:
                    wait_until(lambda: mounted(mountpoint), "nbdfuse", client, log)
                    yield Served(mountpoint / "disk.img", [server.pid, client.pid])
                finally:
                    unmount_leftover(mountpoint)


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


@contextlib.contextmanager
def for_loop(inner: AbstractContextManager[Served]) -> Iterator[Served]:
    """What another target serves, once a loop device has proved to work on it."""
    with inner as served:
        with loop_device(served.path):
            pass
        yield served


def _wait_for_detach(device: Path) -> None:
    """udev may hold a loop device a moment longer, and what it is on stays busy as long."""
    backing = Path("/sys/block") / device.name / "loop" / "backing_file"
    deadline = time.monotonic() + 10
    while backing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@dataclass(frozen=True)
class Target:
    """Something to measure."""

    name: str
    title: str
    serve: Callable[[Lab], AbstractContextManager[Served]]
    on_loop: bool = False
    """Measured through a loop device, attached for each cell."""
    sequential_only: bool = False
    """Left out of the random workloads, unless everything is asked for."""


def aiofs_target(driver: str, merge: bool = True) -> Target:
    """aiofs with one driver, or with `auto`."""
    name = f"aiofs-{driver}" + ("" if merge else "-no-merge")
    title = f"aiofs {driver}" + ("" if merge else ", not merged")
    # Random requests have no neighbours to merge with: not merging is the same there.
    return Target(name, title, lambda lab: aiofs(lab, name, driver, merge=merge), sequential_only=not merge)


TARGETS = (
    Target("raw", "raw image", lambda lab: raw(lab, "raw")),
    *(aiofs_target(driver, merge) for driver in DRIVERS for merge in (True, False)),
    Target("qsd", "qemu-storage-daemon", qsd),
    Target("nbdfuse", "nbdfuse, nbdkit file", nbdfuse),
    Target("loop-raw", "loop on the raw image", lambda lab: for_loop(raw(lab, "loop-raw")), on_loop=True),
    Target(
        "loop-aiofs",
        "loop on aiofs io_uring",
        lambda lab: for_loop(aiofs(lab, "loop-aiofs", "io_uring", merge=True)),
        on_loop=True,
    ),
)
