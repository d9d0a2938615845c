"""What is measured: each target serves an image of its own until its context ends."""

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

from .processes import (
    TargetError,
    mounted,
    processes_about,
    run_logged,
    running,
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
    """Where the targets live: one directory per target beneath `directory`."""

    directory: Path
    size: int
    """Bytes of each image."""
    qemu_aio: str
    """QEMU's `aio` for qemu-storage-daemon."""

    @contextlib.contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """A directory for one target with `images/disk.img`, fully written; emptied afterwards."""
        room = self.directory / name
        image = room / "images" / "disk.img"
        image.parent.mkdir(parents=True)
        try:
            write_image(image, self.size)
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
            f"driver=file,node-name=disk,filename={image},aio={lab.qemu_aio},cache.direct=on",
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
def loop_on(inner: AbstractContextManager[Served]) -> Iterator[Served]:
    """A loop device with direct I/O on what another target serves."""
    if os.geteuid() != 0:
        raise TargetError("loop devices need root")
    with inner as served:
        command: list[str | Path] = ["losetup", "--find", "--show", "--direct-io=on", served.path]
        attached = subprocess.run(command, capture_output=True, text=True, check=False)
        if attached.returncode != 0:
            raise TargetError(f"losetup: {attached.stderr.strip()}")
        device = Path(attached.stdout.strip())
        try:
            yield Served(device, served.pids)
        finally:
            subprocess.run(["losetup", "--detach", device], check=False)
            _wait_for_detach(device)


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


def _aiofs_target(driver: str, merge: bool) -> Target:
    name = f"aiofs-{driver}" + ("" if merge else "-no-merge")
    title = f"aiofs {driver}" + ("" if merge else ", not merged")
    return Target(name, title, lambda lab: aiofs(lab, name, driver, merge=merge))


TARGETS = (
    Target("raw", "raw image", lambda lab: raw(lab, "raw")),
    *(_aiofs_target(driver, merge) for driver in DRIVERS for merge in (True, False)),
    Target("qsd", "qemu-storage-daemon", qsd),
    Target("nbdfuse", "nbdfuse, nbdkit file", nbdfuse),
    Target("loop-raw", "loop on the raw image", lambda lab: loop_on(raw(lab, "loop-raw")), on_loop=True),
    Target(
        "loop-aiofs",
        "loop on aiofs io_uring",
        lambda lab: loop_on(aiofs(lab, "loop-aiofs", "io_uring", merge=True)),
        on_loop=True,
    ),
)
