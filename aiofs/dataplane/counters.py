"""What the data plane counts: memory that its loop writes and Python reads, at any time and without locks.

The loop stores each value whole, so what is read is current or a moment old; two values need not be of the
same moment.
"""

from __future__ import annotations

from typing import Any

from .binding import ffi, lib

OPERATIONS = ("read", "write", "fsync", "fallocate", "lseek")
"""What latencies are counted of, in the order of aiofs_image_counters.latency."""

LATENCY_LIMITS_NS: tuple[int, ...] = tuple(
    lib.aiofs_latency_limit(bucket) for bucket in range(lib.AIOFS_LATENCY_BUCKETS - 1)
)
"""The longest latency of each bucket in nanoseconds. One more bucket holds what took longer than the last."""

_KEYS = (*map(str, LATENCY_LIMITS_NS), "inf")


class ImageCounters:
    """The counters of one image. The data plane writes them while the image is registered with them."""

    def __init__(self) -> None:
        self.memory = ffi.new("aiofs_image_counters *")

    def read(self) -> dict[str, Any]:
        """aiofs_image_counters as a dict (api.h says what each one counts).

        `latency` has `sum_ns` and `buckets` for each operation: by the bucket's limit in ns, as text, or
        "inf"; without those that are empty.
        """
        latency = {
            operation: _latency(self.memory.latency[index]) for index, operation in enumerate(OPERATIONS)
        }
        return fields(self.memory, "aiofs_image_counters", without="latency") | {"latency": latency}

    @property
    def sticky_error(self) -> int:
        """errno of an fsync that failed, or 0."""
        return -int(self.memory.sticky_error)

    @property
    def unused(self) -> bool:
        """Nothing has been counted."""
        counted = self.memory
        return not (
            counted.requests_read
            or counted.requests_write
            or counted.requests_fsync
            or counted.requests_fallocate
            or counted.requests_lseek
            or counted.requests_truncate
        )


def fields(struct: Any, name: str, without: str = "") -> dict[str, Any]:
    """The numbers, and arrays of numbers, of a struct of api.h."""
    values = {}
    for field, _ in ffi.typeof(name).fields:
        if field != without:
            value = getattr(struct, field)
            values[field] = value if isinstance(value, int) else list(value)
    return values


def _latency(struct: Any) -> dict[str, Any]:
    numbers = ffi.unpack(struct.buckets, lib.AIOFS_LATENCY_BUCKETS)
    counted = {key: number for key, number in zip(_KEYS, numbers, strict=True) if number}
    return {"sum_ns": struct.sum_ns, "buckets": counted}
