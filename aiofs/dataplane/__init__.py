"""The data plane: C, one thread, no GIL. README.md in this folder is its architecture.

Everything that serves may use is here; nothing else imports the extension. What measures is in measure.py.
"""

from .counters import COUNTERS_SIZE, LATENCY_LIMITS_NS, OPERATIONS, ImageCounters
from .faults import FaultCounts, add_fault, fault_counts, set_faults
from .plane import (
    MAX_QUEUE_DEPTH,
    MAX_REQUEST_BYTES,
    DataPlane,
    DriverStatus,
    ImageSpec,
    driver_names,
    drivers,
)
from .queue import Completion, Io, Op, Queue

__all__ = [
    "COUNTERS_SIZE",
    "LATENCY_LIMITS_NS",
    "MAX_QUEUE_DEPTH",
    "MAX_REQUEST_BYTES",
    "OPERATIONS",
    "Completion",
    "DataPlane",
    "DriverStatus",
    "FaultCounts",
    "ImageCounters",
    "ImageSpec",
    "Io",
    "Op",
    "Queue",
    "add_fault",
    "driver_names",
    "drivers",
    "fault_counts",
    "set_faults",
]
