"""What aiofs costs by itself. A mount of many images: time until ready, memory while idle, time to list. And
merging where there is nothing to merge, which is too little to be seen in a ratio of two servers.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from aiofs.dataplane.binding import ffi, lib

from .processes import TargetError, mounted, processes_about, resident_mib, run_logged, unmount_leftover
from .results import Costs
from .workloads import MIB

IMAGES = 10_000
MERGE_SPANS = 32
MERGE_BATCHES = 20_000


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


def merge_ns() -> float:
    """Processor time, for each request, of planning batches of random ones that are nowhere adjacent."""
    blocks = random.sample(range(0, 1 << 18, 2), MERGE_SPANS)  # every other block of 1 GiB
    spans = [{"stream": 1, "offset": block << 12, "length": 1 << 12, "next": 0} for block in blocks]
    spent: int = lib.aiofs_merge_cost_ns(ffi.new("aiofs_span[]", spans), MERGE_SPANS, MERGE_BATCHES)
    if spent < 0:
        raise TargetError(f"planning of merges: {os.strerror(-spent)}")
    return spent / (MERGE_SPANS * MERGE_BATCHES)


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
                costs.merge_ns.append(merge_ns())
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
