"""The data plane: C, one thread, no GIL. README.md in this folder is its architecture.

Everything the rest of aiofs may use is here; nothing else imports the extension.
"""

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
    "MAX_QUEUE_DEPTH",
    "MAX_REQUEST_BYTES",
    "Completion",
    "DataPlane",
    "DriverStatus",
    "ImageSpec",
    "Io",
    "Op",
    "Queue",
    "driver_names",
    "drivers",
]
