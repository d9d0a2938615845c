"""Power failures under aiofs: after each, the file system is clean and holds all that was acknowledged.

A recording disk (recorder.py) lies under the image of a mount. The image is attached and has an ext4, where
workers commit (commits.py). What can be on the disk when the power fails at some moment of that (crashlog.py)
is mounted and looked at (surviving.py).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from commits import workers
from crashlog import Kind, Point, Replay, flush_points, sampled_points
from mounting import MountedFs
from recording import Recorder, Recording, record
from surviving import wrong_with

Mounting = Callable[..., MountedFs]
Recorders = Callable[[int], Recorder]

COMMITS = 20
"""Of each worker; with them come about 160 FLUSHes."""
FLUSHES, SAMPLES = 30, 20
"""Power failures looked at in one recording: 200 in all four."""
LONG_SAMPLES = 100
"""In a recording of --long, beside every FLUSH: more than 2,000 failures in all ten."""

FEW = [("io_uring", "none"), ("io_uring", "writeback"), ("threads", "none"), ("threads", "writeback")]
MORE = [(driver, cache) for driver in ("linux", "posix", "sync") for cache in ("none", "writeback")]


def violations(recording: Recording, points: Iterable[Point], directory: Path) -> dict[Point, list[str]]:
    """What is wrong after the power fails at these points; those where nothing is are not in it."""
    mountpoint = directory / "survived"
    mountpoint.mkdir()
    replay = Replay(recording.base, recording.events)
    found = {}
    for point in sorted(points, key=lambda point: point.events):
        wrong = wrong_with(replay.state(point), recording.acknowledged(point.events), mountpoint)
        if wrong:
            found[point] = wrong
    return found


def chosen_points(recording: Recording, seed: int, *, every_flush: bool) -> list[Point]:
    """Power failures after the workers have begun: FLUSHes, and samples of what is between them."""
    flushes = [point for point in flush_points(recording.events) if point.events >= recording.start]
    assert len(flushes) >= FLUSHES, "the disk saw too few FLUSHes"
    if every_flush:
        return flushes + sampled_points(recording.events, recording.start, LONG_SAMPLES, seed)
    few = random.Random(seed).sample(flushes, FLUSHES)
    return few + sampled_points(recording.events, recording.start, SAMPLES, seed)


@pytest.mark.parametrize(("driver", "cache"), [*FEW, *MORE])
def test_nothing_acknowledged_is_lost(
    recorder: Recorders, mounted: Mounting, tmp_path: Path, long: bool, driver: str, cache: str
) -> None:
    """After every failure fsck is clean and all commits are there. Another seed each time."""
    if (driver, cache) in MORE and not long:
        pytest.skip("only with --long: the same with another driver")
    seed = int.from_bytes(os.urandom(4))
    disk = recorder(seed)
    fs = mounted(disk.mountpoint, "--aio", driver, "--cache", cache)
    recording = record(disk, fs, COMMITS)
    points = chosen_points(recording, seed, every_flush=long)
    found = violations(recording, points, tmp_path)
    print(f"{len(points)} crash points, {len(found)} violated (seed {seed})")
    if found:
        first = min(found, key=lambda point: point.events)
        kept = tmp_path / "violated.img"
        kept.write_bytes(Replay(recording.base, recording.events).state(first))
        pytest.fail(f"{kept} is the disk at {first} (seed {seed}) of {found}")


def test_what_unsafe_loses_is_found(recorder: Recorders, mounted: Mounting, tmp_path: Path) -> None:
    """A mount that ignores fsync: no FLUSH reaches the disk, and commits of every worker are missed."""
    disk = recorder(1)
    fs = mounted(disk.mountpoint, "--cache", "unsafe")
    fs.allow("cache mode unsafe")
    recording = record(disk, fs, COMMITS)
    assert [event for event in recording.events if event.kind is Kind.FLUSH] == []
    last = Point(len(recording.events), None)
    samples = sampled_points(recording.events, recording.start, SAMPLES, seed=1)
    found = violations(recording, [last, *samples], tmp_path)
    assert {line.split(":")[0] for line in found[last]} == {worker.name for worker in workers()}
    assert len(found) > SAMPLES // 2
