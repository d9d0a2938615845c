"""The plan of the fault drivers, set up and read: what aiofs.faults describes, in the process's one plan."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..faults import OPERATIONS, Fault, Plan
from .binding import check, ffi, lib


@dataclass(frozen=True)
class FaultCounts:
    """What the fault drivers have done since the plan was set up."""

    ios: int
    """Given to them."""
    overlaps: int
    """Of them while one that they overlap was in flight, one of the two a change: 0, or aiofs is wrong."""
    struck: tuple[int, ...]
    """By fault."""


def set_faults(plan: Plan) -> None:
    """From now on these, and no others. The process has one plan."""
    check(lib.aiofs_fault_reset(plan.seed, plan.reorder), "set up faults")
    for fault in plan.faults:
        add_fault(fault)


def add_fault(fault: Fault) -> None:
    """One more."""
    value = -fault.value if fault.kind == lib.AIOFS_FAULT_ERROR else fault.value
    struct = {
        "kind": int(fault.kind),
        "ops": sum(1 << OPERATIONS.index(operation) for operation in set(fault.operations)),
        "value": value,
        "from": fault.start,
        "to": fault.end,
        "first": fault.first,
        "last": fault.last,
        "chance": round(fault.probability * (1 << 32)),
        "spares_threads": fault.spares_threads,
    }
    result = lib.aiofs_fault_add(ffi.new("aiofs_fault *", struct))
    if result == -errno.ENOSPC:
        raise ValueError(f"more than {lib.AIOFS_FAULTS_MAX} faults")


def fault_counts(plan: Plan) -> FaultCounts:
    """What has been done of `plan`."""
    counts = ffi.new("aiofs_fault_counts *")
    lib.aiofs_fault_read(counts)
    return FaultCounts(counts.ios, counts.overlaps, tuple(counts.struck[0 : len(plan.faults)]))
