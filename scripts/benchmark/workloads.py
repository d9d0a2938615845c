"""What fio is asked to do in one cell, and what is read from its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


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
    on_loop: bool = False
    """Runs on loop devices instead of files."""

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
    Workload("loop-randread-qd1", "4 KiB random read, depth 1, loop", "randread", 4 * KIB, 1, 0.75, True),
    Workload("loop-randread-qd32", "4 KiB random read, depth 32, loop", "randread", 4 * KIB, 32, 1.0, True),
    Workload(
        "loop-randwrite-qd32", "4 KiB random write, depth 32, loop", "randwrite", 4 * KIB, 32, 1.0, True
    ),
    Workload("loop-seqread-qd32", "4 KiB sequential read, depth 32, loop", "read", 4 * KIB, 32, 1.0, True),
    Workload("loop-seqwrite-qd32", "4 KiB sequential write, depth 32, loop", "write", 4 * KIB, 32, 1.0, True),
)


@dataclass(frozen=True)
class Reading:
    """What one run of fio said."""

    iops: float
    bytes_per_s: float
    latency_us: float
    ios: int


def fio_command(
    workload: Workload, path: Path, *, size: int, runtime_s: float, engine: str, seed: int
) -> list[str]:
    """One job on an existing file of `size` bytes: O_DIRECT, time based, no change to the file's shape."""
    return [
        "fio",
        f"--name={workload.name}",
        f"--filename={path}",
        f"--size={size}",
        f"--rw={workload.pattern}",
        f"--bs={workload.block_size}",
        f"--iodepth={workload.depth}",
        f"--ioengine={engine}",
        f"--runtime={round(runtime_s * 1000)}ms",
        f"--randseed={seed}",
        "--direct=1",
        "--time_based",
        "--numjobs=1",
        "--norandommap",
        "--fallocate=none",
        "--allow_file_create=0",
        "--output-format=json",
    ]


def read_fio(output: str) -> Reading:
    """The numbers of a fio JSON report with one job; ValueError when the job failed or did nothing."""
    # fio may print notes before the report.
    job = json.loads(output[output.index("{") :])["jobs"][0]
    if job["error"]:
        raise ValueError(f"fio: error {job['error']}")
    side = job["write"] if job["write"]["total_ios"] else job["read"]
    if not side["total_ios"]:
        raise ValueError("fio: no I/O was done")
    return Reading(
        iops=side["iops"],
        bytes_per_s=side["bw_bytes"],
        latency_us=side["lat_ns"]["mean"] / 1000,
        ios=side["total_ios"],
    )
