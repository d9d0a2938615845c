"""What can be on a disk after a power failure, on logs made by hand."""

from __future__ import annotations

from crashlog import SECTOR, Event, Kind, Point, Replay, flush_points, sampled_points, unpack

OLD, NEW, NEWER = (letter * SECTOR for letter in (b"o", b"n", b"N"))


def write(number: int, data: bytes = NEW, offset: int = 0) -> Event:
    """A write begins."""
    return Event(Kind.WRITE, number, offset, data)


def events(*kinds: tuple[Kind, int]) -> list[Event]:
    """Events that need no more than a number."""
    return [Event(kind, number) for kind, number in kinds]


WRITTEN = Event(Kind.WRITE_DONE, 0)
FLUSH, FLUSHED = events((Kind.FLUSH, 1), (Kind.FLUSH_DONE, 1))


def least(log: list[Event], base: bytes = OLD) -> bytes:
    """What is certainly on the disk after the log."""
    return bytes(Replay(base, log).state(Point(len(log), None)))


def test_a_log_is_read_as_it_was_written() -> None:
    """All events, and where each ends."""
    log = [write(0, NEW, 4096), WRITTEN, FLUSH, FLUSHED]
    packed = [event.pack() for event in log]
    read = list(unpack(b"".join(packed)))
    assert [event for event, _ in read] == log
    assert [end for _, end in read] == [sum(map(len, packed[: number + 1])) for number in range(4)]


def test_a_flush_makes_durable_what_was_done_when_it_began() -> None:
    """Not before it is done, and not what was still on its way, even if it is done before the FLUSH is."""
    assert least([write(0), WRITTEN]) == OLD
    assert least([write(0), WRITTEN, FLUSH]) == OLD
    assert least([write(0), WRITTEN, FLUSH, FLUSHED]) == NEW
    assert least([write(0), FLUSH, WRITTEN, FLUSHED]) == OLD
    assert least([FLUSH, write(0), WRITTEN, FLUSHED]) == OLD


def test_flushes_side_by_side() -> None:
    """Each covers its own: what the first has made durable is no matter of the second."""
    second = events((Kind.FLUSH, 3), (Kind.FLUSH_DONE, 3))
    both = [write(0), WRITTEN, FLUSH, write(2, NEWER, SECTOR), *events((Kind.WRITE_DONE, 2)), second[0]]
    assert least([*both, FLUSHED], OLD + OLD) == NEW + OLD
    assert least([*both, second[1]], OLD + OLD) == NEW + NEWER
    assert least([*both, FLUSHED, second[1]], OLD + OLD) == NEW + NEWER
    assert least([*both, second[1], FLUSHED], OLD + OLD) == NEW + NEWER


def test_writes_are_replayed_in_their_order() -> None:
    """The last one of a place is what is there."""
    log = [write(0), WRITTEN, write(2, NEWER), *events((Kind.WRITE_DONE, 2)), FLUSH, FLUSHED]
    assert least(log) == NEWER


def test_what_is_not_durable_is_there_or_not_or_in_part() -> None:
    """Samples have all four states of two sectors, and none touches what is durable."""
    log = [write(0, NEWER, 2 * SECTOR), WRITTEN, FLUSH, FLUSHED, write(2, NEW + NEW)]
    seen = set()
    for seed in range(200):
        state = bytes(Replay(OLD * 3, log).state(Point(len(log), seed)))
        assert state[2 * SECTOR :] == NEWER
        seen.add(state[: 2 * SECTOR])
    assert seen == {OLD + OLD, OLD + NEW, NEW + OLD, NEW + NEW}


def test_points_may_follow_each_other_on_one_replay() -> None:
    """What a sample has put on the disk is not there at the next point."""
    log = [write(0), WRITTEN, FLUSH, FLUSHED]
    replay = Replay(OLD, log)
    kept = next(seed for seed in range(100) if Replay(OLD, log).state(Point(2, seed)) == NEW)
    states = [replay.state(point) for point in (Point(2, kept), Point(2, None), Point(4, None))]
    assert states == [NEW, OLD, NEW]


def test_a_flush_is_looked_at_until_the_next_one_is_done() -> None:
    """There the disk is still the same, and all is demanded that was acknowledged until then."""
    log = [write(0), WRITTEN, FLUSH, FLUSHED, *events((Kind.FLUSH, 2), (Kind.FLUSH_DONE, 2)), write(3)]
    assert flush_points(log) == [Point(5, None), Point(7, None)]


def test_samples_are_anywhere_and_repeat_with_their_seed() -> None:
    """From the start to the end of the log."""
    log = [write(number) for number in range(10)]
    points = sampled_points(log, 5, 200, seed=3)
    assert {point.events for point in points} == {5, 6, 7, 8, 9, 10}
    assert points == sampled_points(log, 5, 200, seed=3)
