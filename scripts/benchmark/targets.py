"""What is measured: each target serves the same image, under a name of its own, until its context ends.

One image for all, because where an image lies on the disk changes its speed (factor 2 was seen between
two images written one after the other). Every target has a hard link to it; only one is used at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from . import places
from .image import write_image
from .processes import (
    TargetError,
    mounted,
    processes_about,
    run_logged,
    running,
    unmount_leftover,
    wait_until,
)
from .workloads import Place

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
def proved(place: Place, inner: AbstractContextManager[Served]) -> Iterator[Served]:
    """What another target serves, once it is known that fio can run in `place` on it."""
    with inner as served:
        places.prove(place, served.path)
        yield served


@dataclass(frozen=True)
class Target:
    """Something to measure."""

    name: str
    title: str
    serve: Callable[[Lab], AbstractContextManager[Served]]
    place: Place = Place.FILE
    """Made for each cell."""
    sequential_only: bool = False
    """Left out of the random workloads, unless everything is asked for."""


def aiofs_target(driver: str, merge: bool = True) -> Target:
    """aiofs with one driver, or with `auto`."""
    name = f"aiofs-{driver}" + ("" if merge else "-no-merge")
    title = f"aiofs {driver}" + ("" if merge else ", not merged")
    # Random requests have no neighbours to merge with: not merging is the same there.
    return Target(name, title, lambda lab: aiofs(lab, name, driver, merge=merge), sequential_only=not merge)


def placed_targets(place: Place) -> Iterator[Target]:
    """The raw image, and aiofs with io_uring, with fio in a place of its own."""
    base, ours = place.baseline, place.subject
    yield Target(base, f"{place.title} on the raw image", lambda lab: proved(place, raw(lab, base)), place)
    yield Target(
        ours,
        f"{place.title} on aiofs io_uring",
        lambda lab: proved(place, aiofs(lab, ours, "io_uring", merge=True)),
        place,
    )


TARGETS = (
    Target("raw", "raw image", lambda lab: raw(lab, "raw")),
    *(aiofs_target(driver, merge) for driver in DRIVERS for merge in (True, False)),
    Target("qsd", "qemu-storage-daemon", qsd),
    Target("nbdfuse", "nbdfuse, nbdkit file", nbdfuse),
    *(target for place in Place if place is not Place.FILE for target in placed_targets(place)),
)
