"""What fio is asked to do in one cell, and what is read from its answer."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


class Place(enum.Enum):
    """What fio runs on. Each has two targets to compare: one on the raw image, one on the aiofs file."""

    FILE = ("file", "raw", "aiofs-io_uring")
    LOOP = ("loop", "loop-raw", "loop-aiofs")
    """A loop device on the file."""
    EXT4 = ("ext4 on loop", "ext4-raw", "ext4-aiofs")
    """A file in an ext4 on that."""
    GUEST = ("guest's disk", "guest-raw", "guest-aiofs")
    """From inside."""

    def __init__(self, title: str, baseline: str, subject: str) -> None:
        self.title = title
        self.baseline = baseline
        """The target that ratios refer to."""
        self.subject = subject
        """The target that is to reach the goal."""

    @property
    def in_turns(self) -> bool:
        """It is made so quickly that a cell may be cut into slices; not a file system, nor a guest's boot."""
        return self in (Place.FILE, Place.LOOP)


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark."""

    name: str
    title: str
    pattern: str
    """fio's `rw`."""
    block_size: int
    """Bytes."""
    depth: int
    goal: float
    """Ratio to the raw image in the same round that aiofs with io_uring is to reach."""
    place: Place = Place.FILE
    sync_every: int = 0
    """fsync after so many writes, which go through the page cache; 0: O_DIRECT, and no fsync."""

    @property
    def sequential(self) -> bool:
        """Requests have neighbours."""
        return self.pattern in ("read", "write")

    @property
    def sequential_4k(self) -> bool:
        """Adjacent small requests at depth: where merging can earn its keep."""
        return self.sequential and self.block_size == 4 * KIB


WORKLOADS = (
    Workload("randread-qd1", "4 KiB random read, depth 1", "randread", 4 * KIB, 1, 0.75),
    Workload("randread-qd32", "4 KiB random read, depth 32", "randread", 4 * KIB, 32, 0.65),
    Workload("randwrite-qd32", "4 KiB random write, depth 32", "randwrite", 4 * KIB, 32, 0.75),
    Workload("seqread-qd32", "4 KiB sequential read, depth 32", "read", 4 * KIB, 32, 1.05),
    Workload("seqwrite-qd32", "4 KiB sequential write, depth 32", "write", 4 * KIB, 32, 1.05),
    Workload("read1m-qd8", "1 MiB sequential read, depth 8", "read", MIB, 8, 0.95),
    Workload(
        "loop-randread-qd1", "4 KiB random read, depth 1, loop", "randread", 4 * KIB, 1, 0.75, Place.LOOP
    ),
    Workload(
        "loop-randread-qd32", "4 KiB random read, depth 32, loop", "randread", 4 * KIB, 32, 1.0, Place.LOOP
    ),
    Workload(
        "loop-randwrite-qd32", "4 KiB random write, depth 32, loop", "randwrite", 4 * KIB, 32, 1.0, Place.LOOP
    ),
    Workload(
        "loop-seqread-qd32", "4 KiB sequential read, depth 32, loop", "read", 4 * KIB, 32, 1.0, Place.LOOP
    ),
    Workload(
        "loop-seqwrite-qd32", "4 KiB sequential write, depth 32, loop", "write", 4 * KIB, 32, 1.0, Place.LOOP
    ),
    Workload(
        "loop-ext4-randrw", "4 KiB random r/w, fsync, ext4 on loop", "randrw", 4 * KIB, 1, 0.9, Place.EXT4, 16
    ),
    Workload(
        "guest-randread-qd32",
        "4 KiB random read, depth 32, guest",
        "randread",
        4 * KIB,
        32,
        0.95,
        Place.GUEST,
    ),
    Workload(
        "guest-randwrite-qd32",
        "4 KiB random write, depth 32, guest",
        "randwrite",
        4 * KIB,
        32,
        0.95,
        Place.GUEST,
    ),
)


@dataclass(frozen=True)
class Reading:
    """What one run of fio said."""

    iops: float
    bytes_per_s: float
    latency_us: float
    ios: int


def fio_command(
    workload: Workload, path: Path, size: int, *, runtime_s: float, engine: str, seed: int
) -> list[str]:
    """One job on an existing file of `size` bytes: time based, no change to the file's shape."""
    how = ["--direct=1", f"--ioengine={engine}"]
    if workload.sync_every:
        how = ["--direct=0", "--ioengine=psync", f"--fsync={workload.sync_every}"]
    return [
        "fio",
        f"--name={workload.name}",
        f"--filename={path}",
        f"--size={size}",
        f"--rw={workload.pattern}",
        f"--bs={workload.block_size}",
        f"--iodepth={workload.depth}",
        *how,
        f"--runtime={round(runtime_s * 1000)}ms",
        f"--randseed={seed}",
        "--time_based",
        "--numjobs=1",
        "--norandommap",
        "--fallocate=none",
        "--allow_file_create=0",
        "--output-format=json",
    ]


def read_fio(output: str) -> Reading:
    """The numbers of a fio JSON report with one job, reads and writes together.

    ValueError when the job failed or did nothing.
    """
    if "{" not in output:
        raise ValueError(f"fio gave no report: {(output.strip().splitlines() or ['it printed nothing'])[-1]}")
    # fio may print notes before the report, and the console of a guest has more after it.
    report, _ = json.JSONDecoder().raw_decode(output, output.index("{"))
    job = report["jobs"][0]
    if job["error"]:
        raise ValueError(f"fio: error {job['error']}")
    sides = [job["read"], job["write"]]
    ios = sum(side["total_ios"] for side in sides)
    if not ios:
        raise ValueError("fio: no I/O was done")
    return Reading(
        iops=sum(side["iops"] for side in sides),
        bytes_per_s=sum(side["bw_bytes"] for side in sides),
        latency_us=sum(side["lat_ns"]["mean"] * side["total_ios"] for side in sides) / ios / 1000,
        ios=ios,
    )
