"""How long requests took: the buckets of info.json, and what follows from them. Pure."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Requests by how long they took."""

    sum_ns: int
    buckets: Mapping[float, int]
    """Requests by the longest latency of their bucket in ns; math.inf for those above all limits."""

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> Latency:
        """From its form in info.json."""
        return cls(told["sum_ns"], {float(limit): number for limit, number in told["buckets"].items()})

    @property
    def count(self) -> int:
        """All requests."""
        return sum(self.buckets.values())

    def __add__(self, other: Latency) -> Latency:
        return Latency(self.sum_ns + other.sum_ns, Counter(self.buckets) + Counter(other.buckets))

    def since(self, before: Latency) -> Latency:
        """What came after `before`."""
        return Latency(self.sum_ns - before.sum_ns, Counter(self.buckets) - Counter(before.buckets))

    def up_to(self, limit_ns: float) -> int:
        """Requests that took no longer than that. Exact when it is the limit of a bucket."""
        return sum(number for limit, number in self.buckets.items() if limit <= limit_ns)

    def percentile_ns(self, percent: float, limits_ns: Sequence[int]) -> float | None:
        """The latency that so many percent of the requests did not pass; None when there are no requests.

        Inside a bucket requests are taken to be spread evenly, so it is off by one bucket's width at most, a
        fifth. What is above all limits counts as the last one. `limits_ns`: those of all buckets.
        """
        wanted = self.count * percent / 100
        below = 0
        for limit in sorted(self.buckets):
            number = self.buckets[limit]
            if below + number >= wanted and number:
                if math.isinf(limit):
                    return float(limits_ns[-1])
                place = bisect.bisect_left(limits_ns, limit)
                low = limits_ns[place - 1] if place else 0
                return low + (limit - low) * max(0.0, wanted - below) / number
            below += number
        return None


NO_LATENCY = Latency(0, {})
