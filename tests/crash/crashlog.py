"""What a disk did (recorder.py), and what can be on it when the power fails at some point of that.

A disk has a cache. A FLUSH makes durable what was written before it began, and is answered when that is so.
Any other write that has begun, answered or not, may be on the disk after the failure, or not, or some of its
sectors. So with the log cut anywhere, the durable writes together with any part of the rest are a state that
the owner of the disk has to live with. Knows nothing of what is on the disk.
"""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SECTOR = 512
"""Bytes that are written whole or not at all."""

_HEADER = struct.Struct("<BQQQ")


class Kind(enum.IntEnum):
    """What happened."""

    WRITE = 1
    WRITE_DONE = 2
    FLUSH = 3
    FLUSH_DONE = 4


@dataclass(frozen=True)
class Event:
    """The begin of a request, or its end, which has the same number."""

    kind: Kind
    number: int
    offset: int = 0
    """Of a WRITE, in bytes."""
    data: bytes = b""
    """Of a WRITE."""

    def pack(self) -> bytes:
        """Its bytes in the log."""
        return _HEADER.pack(self.kind, self.number, self.offset, len(self.data)) + self.data


def unpack(log: bytes) -> Iterator[tuple[Event, int]]:
    """The events of a log, each with the size of the log that ends with it."""
    at = 0
    while at < len(log):
        kind, number, offset, length = _HEADER.unpack_from(log, at)
        data = at + _HEADER.size
        at = data + length
        yield Event(Kind(kind), number, offset, log[data:at]), at


@dataclass(frozen=True)
class Point:
    """A power failure."""

    events: int
    """So many of the log's first events have happened."""
    seed: int | None
    """Chooses what is there of the writes that are not durable; None: nothing."""


class Replay:
    """The disk as it becomes while a log is replayed. Only forwards."""

    def __init__(self, base: bytes, events: Sequence[Event]) -> None:
        """`base`: what was on the disk before the first event."""
        self._durable = bytearray(base)
        self._events = events
        self._at = 0
        self._cached: dict[int, Event] = {}
        """Writes that have begun and are not durable, by number: that is by age."""
        self._done: set[int] = set()
        """Those of them that are done."""
        self._covered: dict[int, set[int]] = {}
        """What each FLUSH that has begun will have made durable when it is done."""

    def state(self, point: Point) -> bytearray:
        """What is on the disk after the failure. Points must be asked for in the order of their events."""
        assert point.events >= self._at
        for event in self._events[self._at : point.events]:
            self._happened(event)
        self._at = point.events
        state = bytearray(self._durable)
        if point.seed is not None:
            chance = random.Random(point.seed)
            likely = chance.random()
            for write in self._cached.values():
                _apply(state, write, _kept(write, likely, chance))
        return state

    def _happened(self, event: Event) -> None:
        match event.kind:
            case Kind.WRITE:
                self._cached[event.number] = event
            case Kind.WRITE_DONE:
                self._done.add(event.number)
            case Kind.FLUSH:
                self._covered[event.number] = set(self._done)
            case Kind.FLUSH_DONE:
                for number in sorted(self._covered.pop(event.number) & self._done):
                    _apply(self._durable, self._cached.pop(number))
                    self._done.remove(number)


def _apply(disk: bytearray, write: Event, sectors: Sequence[bool] | None = None) -> None:
    """Put a write on the disk, or only those of its sectors that are true."""
    if sectors is None:
        disk[write.offset : write.offset + len(write.data)] = write.data
        return
    for number, kept in enumerate(sectors):
        if kept:
            part = write.data[number * SECTOR : (number + 1) * SECTOR]
            disk[write.offset + number * SECTOR : write.offset + number * SECTOR + len(part)] = part


def _kept(write: Event, likely: float, chance: random.Random) -> list[bool]:
    """Which sectors of a write are there: all or none of them, or, one time in four, some."""
    count = -(-len(write.data) // SECTOR)
    if chance.random() < 0.25:
        return [chance.random() < likely for _ in range(count)]
    return [chance.random() < likely] * count


def flush_points(events: Sequence[Event]) -> list[Point]:
    """One for each FLUSH: nothing is there that it did not make durable.

    The failure is as late as can be, just before the next FLUSH is done: the disk is the same, and more has
    been acknowledged.
    """
    done = [number for number, event in enumerate(events) if event.kind is Kind.FLUSH_DONE]
    return [Point(following, None) for following in [*done[1:], len(events)]]


def sampled_points(events: Sequence[Event], start: int, count: int, seed: int) -> list[Point]:
    """`count` failures anywhere after `start` events, with any part of what was not durable then."""
    chance = random.Random(seed)
    return [Point(chance.randint(start, len(events)), chance.getrandbits(32)) for _ in range(count)]
