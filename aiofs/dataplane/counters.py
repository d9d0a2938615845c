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


COUNTERS_SIZE: int = ffi.sizeof("aiofs_image_counters")
"""Bytes of one image's counters."""


class ImageCounters:
    """The counters of one image. The data plane writes them while the image is registered with them."""

    def __init__(self, place: tuple[Any, int] | None = None, slot: int = -1) -> None:
        """`place`: where they are kept, as a buffer and an offset in it; its owner calls that `slot`."""
        if place is None:
            self.memory = ffi.new("aiofs_image_counters *")
        else:
            buffer, offset = place
            self._buffer = ffi.from_buffer(buffer, require_writable=True)  # as long as `memory` is used
            self.memory = ffi.cast("aiofs_image_counters *", self._buffer + offset)
        self.slot = slot
        self.touch()

    def touch(self) -> None:
        """Touch all of it: the loop, which writes it, must not wait for memory (populate.h)."""
        ffi.memmove(self.memory, bytes(ffi.buffer(self.memory)), COUNTERS_SIZE)

    def clear(self) -> None:
        """Begin at zero."""
        ffi.memmove(self.memory, bytes(COUNTERS_SIZE), COUNTERS_SIZE)

    def read(self) -> dict[str, Any]:
        """aiofs_image_counters as a dict (api.h says what each one counts).

        Without `opens`, which the image table knows as well. `latency` has `sum_ns` and `buckets` for each
        operation: by the bucket's limit in ns, as text, or "inf"; without those that are empty.
        """
        latency = {
            operation: _latency(self.memory.latency[index]) for index, operation in enumerate(OPERATIONS)
        }
        return fields(self.memory, "aiofs_image_counters", without=("latency", "opens")) | {
            "latency": latency
        }

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


def fields(struct: Any, name: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The numbers, and arrays of numbers, of a struct of api.h."""
    values = {}
    for field, _ in ffi.typeof(name).fields:
        if field not in without:
            value = getattr(struct, field)
            values[field] = value if isinstance(value, int) else list(value)
    return values


def _latency(struct: Any) -> dict[str, Any]:
    numbers = ffi.unpack(struct.buckets, lib.AIOFS_LATENCY_BUCKETS)
    counted = {key: number for key, number in zip(_KEYS, numbers, strict=True) if number}
    return {"sum_ns": struct.sum_ns, "buckets": counted}
