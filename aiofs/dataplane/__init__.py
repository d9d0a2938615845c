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

__all__ = [
    "MAX_QUEUE_DEPTH",
    "MAX_REQUEST_BYTES",
    "DataPlane",
    "DriverStatus",
    "ImageSpec",
    "driver_names",
    "drivers",
]
