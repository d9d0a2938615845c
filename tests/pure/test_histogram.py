"""histogram.c: which bucket a duration is counted in."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aiofs.dataplane import LATENCY_LIMITS_NS
from aiofs.dataplane.binding import lib

durations = st.one_of(
    st.integers(0, 2 * LATENCY_LIMITS_NS[-1]),
    st.sampled_from(LATENCY_LIMITS_NS).flatmap(lambda limit: st.integers(limit - 1, limit + 1)),
)


@given(durations)
def test_a_duration_is_in_the_first_bucket_whose_limit_it_does_not_pass(ns: int) -> None:
    """A bucket holds its upper limit, as the buckets of Prometheus do."""
    expected = next((i for i, limit in enumerate(LATENCY_LIMITS_NS) if ns <= limit), len(LATENCY_LIMITS_NS))
    assert lib.aiofs_latency_bucket(ns) == expected


def test_the_limits_reach_from_a_microsecond_past_a_minute() -> None:
    """1 us is the first limit, 67 s the last; what is longer has a bucket without a limit."""
    assert LATENCY_LIMITS_NS[0] == 1000
    assert LATENCY_LIMITS_NS[-1] == 1000 << 26
    assert len(LATENCY_LIMITS_NS) == lib.AIOFS_LATENCY_BUCKETS - 1
    assert lib.aiofs_latency_limit(len(LATENCY_LIMITS_NS)) == 2**64 - 1


def test_a_bucket_is_a_quarter_of_its_lower_limit_wide_at_most() -> None:
    """So a percentile is off by that at most."""
    assert all(low < high <= low * 5 // 4 for low, high in itertools.pairwise(LATENCY_LIMITS_NS))


def test_the_longest_time_there_is_has_a_bucket() -> None:
    """No duration is counted outside the table."""
    assert lib.aiofs_latency_bucket(2**64 - 1) == lib.AIOFS_LATENCY_BUCKETS - 1
