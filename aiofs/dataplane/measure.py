"""measure: one driver under a closed loop on one descriptor, and what it cost. The loop is measure.c's."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from .binding import check, ffi, lib
from .queue import Op

MAX_DEPTH = 1024
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 512, 1 << 20
"""Bytes; block sizes are multiples of the smallest."""


@dataclass(frozen=True)
class Load:
    """What the loop is to do; api.h's aiofs_workload."""

    op: Op
    """READ or WRITE."""
    depth: int
    """Requests in flight, 1 .. MAX_DEPTH."""
    block_size: int
    """Bytes of each request."""
    end: int
    """The range of the file ends here, bytes."""
    start: int = 0
    random: bool = False
    merge: bool = False
    numbered: bool = False
    """Each block written begins with its number (8 bytes, native order), in the order of submission."""
    watch: bool = False
    """Count the sleeps within submit."""
    count: int = 0
    """Requests after which to end; 0: no limit."""
    warm_up_s: float = 0.0
    duration_s: float = 0.0
    """0: no limit."""
    seed: int = 0


@dataclass(frozen=True)
class Measurement:
    """What the loop counted; api.h's aiofs_measurement has the meaning of each."""

    requests: int
    ios: int
    submits: int
    elapsed_ns: int
    cpu_ns: int
    switches: int
    preemptions: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    submit_ns: int
    submit_max_ns: int
    submit_switches: int
    errors: int
    error: int
    """The first failure's -errno, or 0."""


class Stop:
    """Ends a running `measure` from another thread."""

    def __init__(self) -> None:
        self.flag: Any = ffi.new("int32_t *")

    def set(self) -> None:
        """Take no more requests; `measure` returns when those in flight have finished."""
        self.flag[0] = 1


def measure(driver: str, fd: int, load: Load, stop: Stop) -> Measurement:
    """Run `load` on `fd` through `driver`. The GIL is free meanwhile.

    A request that fails ends the run and is in the result; OSError is for a driver that does not open.
    """
    workload = ffi.new(
        "aiofs_workload *",
        {
            "fd": fd,
            "op": int(load.op),
            "random": load.random,
            "merge": load.merge,
            "numbered": load.numbered,
            "watch": load.watch,
            "depth": load.depth,
            "block_size": load.block_size,
            "start": load.start,
            "end": load.end,
            "count": load.count,
            "warm_up_ns": round(load.warm_up_s * 1e9),
            "duration_ns": round(load.duration_s * 1e9),
            "seed": load.seed,
        },
    )
    out = ffi.new("aiofs_measurement *")
    result: int = lib.aiofs_measure(driver.encode(), workload, stop.flag, out)
    if result == -errno.EINVAL:
        raise ValueError(f"{load} is out of the limits of api.h")
    check(result, f"measure driver {driver}")
    return Measurement(**{field: getattr(out, field) for field in Measurement.__dataclass_fields__})
