"""What a mount of many images costs by itself: time until ready, memory while idle, time to list."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .processes import TargetError, mounted, processes_about, resident_mib, run_logged, unmount_leftover
from .results import Costs
from .workloads import MIB

IMAGES = 10_000


@contextlib.contextmanager
def many_images(room: Path) -> Iterator[Path]:
    """A directory of IMAGES sparse images of 1 MiB."""
    source = room / "images"
    source.mkdir(parents=True)
    try:
        for number in range(IMAGES):
            fd = os.open(source / f"{number:05}.img", os.O_CREAT | os.O_WRONLY, 0o600)
            os.ftruncate(fd, MIB)
            os.close(fd)
        yield source
    finally:
        for image in source.iterdir():
            image.unlink()
        source.rmdir()


def list_with_sizes(directory: Path) -> float:
    """Seconds that it takes to list a directory and stat every entry, as `ls -l` does."""
    begin = time.monotonic()
    with os.scandir(directory) as entries:
        total = sum(entry.stat().st_size for entry in entries)
    took = time.monotonic() - begin
    if total != IMAGES * MIB:
        raise TargetError(f"the mount shows {total} bytes in {IMAGES} images, not {IMAGES * MIB}")
    return took


def measure(directory: Path, rounds: int) -> Costs:
    """Mount, list and look at the memory, `rounds` times; TargetError when that fails."""
    costs = Costs(images=IMAGES, ready_s=[], listing_s=[], memory_mib=[])
    room = directory / "costs"
    mountpoint = room / "mount"
    mountpoint.mkdir(parents=True)
    try:
        with many_images(room) as source:
            for _ in range(rounds):
                _one_round(source, mountpoint, costs)
    finally:
        for log in room.glob("*.log"):
            log.unlink()
        mountpoint.rmdir()
        room.rmdir()
    return costs


def _one_round(source: Path, mountpoint: Path, costs: Costs) -> None:
    try:
        begin = time.monotonic()
        run_logged(["aiofs", "mount", source, mountpoint], mountpoint.parent / "mount.log")
        costs.ready_s.append(time.monotonic() - begin)
        costs.listing_s.append(list_with_sizes(mountpoint))
        costs.memory_mib.append(resident_mib(processes_about(mountpoint)))
    finally:
        if mounted(mountpoint):
            with contextlib.suppress(TargetError):
                run_logged(["aiofs", "umount", mountpoint], mountpoint.parent / "umount.log")
            unmount_leftover(mountpoint)
