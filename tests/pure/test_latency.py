"""latency.py: what follows from the buckets."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofs.dataplane import LATENCY_LIMITS_NS
from aiofs.dataplane.binding import lib
from aiofs.latency import NO_LATENCY, Latency

durations = st.lists(st.integers(1, LATENCY_LIMITS_NS[-1]), min_size=1, max_size=50)


def of(times_ns: list[int]) -> Latency:
    """The latency of requests that took so long."""
    limits: list[float] = [*LATENCY_LIMITS_NS, math.inf]
    return Latency(sum(times_ns), Counter(limits[lib.aiofs_latency_bucket(ns)] for ns in times_ns))


@given(durations, st.sampled_from([50, 90, 99, 100]))
def test_a_percentile_is_near_the_true_one(times_ns: list[int], percent: int) -> None:
    """In the bucket of the request that has so many percent at or below it."""
    found = of(times_ns).percentile_ns(percent, LATENCY_LIMITS_NS)
    true = sorted(times_ns)[math.ceil(len(times_ns) * percent / 100) - 1]
    assert found is not None
    assert found <= max(1000, true * 1.25)
    assert true <= max(1000, found * 1.25)


def test_no_requests_have_no_percentile() -> None:
    """Not 0, which would be a latency."""
    assert NO_LATENCY.percentile_ns(50, LATENCY_LIMITS_NS) is None


def test_what_is_above_all_limits_counts_as_the_last() -> None:
    """There is nothing better to say of it."""
    assert of([2**62]).percentile_ns(50, LATENCY_LIMITS_NS) == LATENCY_LIMITS_NS[-1]


@given(durations, durations)
def test_an_interval_is_what_came_after_its_beginning(before: list[int], after: list[int]) -> None:
    """The difference of two readings is the latency of the requests between them."""
    assert of(before + after).since(of(before)) == of(after)
    assert of(before) + of(after) == of(before + after)


@given(durations, st.sampled_from(LATENCY_LIMITS_NS))
def test_the_requests_up_to_a_limit_are_exact(times_ns: list[int], limit_ns: int) -> None:
    """Where the limit is one of a bucket."""
    assert of(times_ns).up_to(limit_ns) == sum(ns <= limit_ns for ns in times_ns)


@pytest.mark.parametrize("bucket", ["1250", "inf"])
def test_the_form_of_info_json_is_read(bucket: str) -> None:
    """Limits are text there."""
    told = Latency.told({"sum_ns": 7, "buckets": {bucket: 3}})
    assert told == Latency(7, {float(bucket): 3})
    assert told.count == 3
