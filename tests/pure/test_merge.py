"""The rules of merging, as properties of merge.c."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from aiofs.dataplane.binding import ffi, lib

MAX_BYTES = 1 << 20
MAX_SPANS = 1024
UNIT = 4096


class Span(NamedTuple):
    stream: int
    offset: int
    length: int


def plan(spans: list[Span]) -> list[list[int]]:
    """The ios that merge.c makes of a batch: lists of indices into it."""
    c_spans = ffi.new("aiofs_span[]", [{**s._asdict(), "next": 0} for s in spans])
    heads = ffi.new("int32_t[]", len(spans) or 1)
    count = lib.aiofs_merge(c_spans, len(spans), heads)
    assert 0 <= count <= len(spans)
    ios = []
    for head in heads[0:count]:
        io, at = [], head
        while at >= 0:
            io.append(at)
            at = c_spans[at].next
        ios.append(io)
    return ios


batches = st.lists(
    st.builds(
        Span,
        stream=st.sampled_from([0, 1, 2, (7 << 32) + 1]),
        offset=st.integers(0, 40).map(lambda n: n * UNIT),
        length=st.sampled_from([512, UNIT, UNIT, UNIT, 2 * UNIT, 100 * UNIT]),
    ),
    max_size=200,
)


@given(batches)
def test_every_request_is_in_exactly_one_io(batch: list[Span]) -> None:
    """Nothing is lost and nothing is done twice."""
    assert sorted(i for io in plan(batch) for i in io) == list(range(len(batch)))


@given(batches)
def test_an_io_holds_exactly_adjacent_requests_of_one_stream(batch: list[Span]) -> None:
    """Within an io each request begins where the one before it ends: no gap, no overlap."""
    for io in plan(batch):
        for before, after in itertools.pairwise(io):
            assert batch[before].stream == batch[after].stream
            assert batch[before].offset + batch[before].length == batch[after].offset


@given(batches)
def test_an_io_has_its_limits(batch: list[Span]) -> None:
    """At most 1 MiB, unless one request alone is that long, and at most 1,024 requests."""
    for io in plan(batch):
        assert len(io) == 1 or sum(batch[i].length for i in io) <= MAX_BYTES
        assert len(io) <= MAX_SPANS


@given(batches)
def test_adjacent_requests_do_not_stay_apart(batch: list[Span]) -> None:
    """No two ios could have been one: an io ends only where nothing follows, or where it is full."""
    ios = plan(batch)
    starts = {(batch[io[0]].stream, batch[io[0]].offset): io for io in ios}
    claimed: dict[tuple[int, int], int] = {}
    for io in ios:
        last = batch[io[-1]]
        end = (last.stream, last.offset + last.length)
        follower = starts.get(end)
        if follower is None:
            continue
        claimed[end] = claimed.get(end, 0) + 1
        full = sum(batch[i].length for i in io) + batch[follower[0]].length > MAX_BYTES
        # Several that end, or several that begin, at one place overlap: only one pair can be joined.
        several = sum((s.stream, s.offset + s.length) == end for s in batch) > 1
        several |= sum((s.stream, s.offset) == end for s in batch) > 1
        assert full or several


@given(st.integers(1, 3000), st.randoms(use_true_random=False))
def test_a_stream_becomes_the_fewest_ios_whatever_its_order(count: int, random: object) -> None:
    """A shuffled run of 512-byte requests is cut only by the limits."""
    batch = [Span(1, i * 512, 512) for i in range(count)]
    random.shuffle(batch)  # type: ignore[attr-defined]
    assert len(plan(batch)) == -(-count // MAX_SPANS)


@given(batches)
def test_ios_come_in_the_order_of_their_first_requests(batch: list[Span]) -> None:
    """Streams stay in order: an io takes the place of the first of its requests (cut runs apart)."""
    ios = plan(batch)
    if all(sum(batch[i].length for i in io) < MAX_BYTES - 100 * UNIT for io in ios):
        firsts = [min(io) for io in ios]
        assert firsts == sorted(firsts)


@given(st.permutations(range(64)))
def test_requests_that_do_not_touch_keep_their_order(order: list[int]) -> None:
    """What is not merged goes out exactly as it came."""
    batch = [Span(1, i * 2 * UNIT, UNIT) for i in order]
    assert plan(batch) == [[i] for i in range(64)]


def test_the_cost_of_planning_grows_with_the_batches() -> None:
    """It is processor time of the work itself: none for no batch, more for a hundred times as many."""
    spans = ffi.new("aiofs_span[]", [Span(0, 2 * i * UNIT, UNIT)._asdict() | {"next": 0} for i in range(32)])
    few = min(lib.aiofs_merge_cost_ns(spans, 32, 100) for _ in range(5))  # a hypervisor may take some as well
    many = lib.aiofs_merge_cost_ns(spans, 32, 10_000)
    assert 0 < few < many
    assert spans[0].next == 0, "the caller's spans are not written"
