"""The counters of images over the life of a mount: they go on where they were when an image is opened again.

So what was done in an open of 100 ms is not lost, and no counter goes backwards. An image is one file, told
by inode number and time of birth, whatever it is called. Knows nothing of what is counted.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .dataplane import ImageCounters
from .ledger import Kind, Ledger, LedgerUnusable
from .nodes import Node

_MAX_CLOSED = 1024
"""Closed images whose counters are kept; they take 4.4 KiB each."""

_File = tuple[int, int]
"""Inode number and generation."""


@dataclass(frozen=True)
class Tally:
    """What was counted of an image that is closed now."""

    ino: int
    generation: int
    name: str
    path: str
    """The names it had when it was closed: for messages, and in the mount."""
    counters: ImageCounters


_RECORD = struct.Struct("<QIH")  # generation, slot, length of the name; then name and path


class Tallies:
    """The tallies of closed images; those closed longest ago are dropped. Hands out room for counters."""

    def __init__(self, ledger: Ledger, in_use: Iterable[int] = (), limit: int = _MAX_CLOSED) -> None:
        """With the tallies that the ledger has from a server before this one.

        `in_use`: the slots of counters of images that are open. LedgerUnusable.
        """
        self._ledger = ledger
        self._limit = limit
        self._closed: OrderedDict[_File, Tally] = OrderedDict()
        for tally in ledger.restored(Kind.TALLY, self._unpack):
            self._closed[tally.ino, tally.generation] = tally
        slots = [tally.counters.slot for tally in self] + list(in_use)
        used = set(slots)
        if len(used) < len(slots):
            raise LedgerUnusable("the memory of the mount is damaged: two images share their counters")
        self._next_slot = max(used, default=-1) + 1
        self._free_slots = [slot for slot in range(self._next_slot) if slot not in used]

    def __iter__(self) -> Iterator[Tally]:
        return iter(self._closed.values())

    def _unpack(self, ino: int, record: bytes) -> Tally:
        generation, slot, length = _RECORD.unpack_from(record)
        name, path = record[_RECORD.size :][:length], record[_RECORD.size :][length:]
        return Tally(ino, generation, os.fsdecode(name), os.fsdecode(path), self.in_slot(slot))

    def in_slot(self, slot: int) -> ImageCounters:
        """The counters that are kept there."""
        return ImageCounters(self._ledger.counters_place(slot), slot)

    def take(self, node: Node) -> ImageCounters:
        """The counters for an image that is about to be opened."""
        tally = self._closed.pop((node.ino, node.generation), None)
        if tally is not None:
            self._ledger.drop(Kind.TALLY, tally.ino)
            return tally.counters
        if self._free_slots:
            counters = self.in_slot(self._free_slots.pop())
        else:
            counters = self.in_slot(self._next_slot)
            self._next_slot += 1
        counters.clear()
        return counters

    def give_back(self, node: Node, name: str, path: str, counters: ImageCounters) -> None:
        """The image is closed: nobody writes its counters any more."""
        if counters.unused:
            self._free_slots.append(counters.slot)
            return
        self._closed[node.ino, node.generation] = Tally(node.ino, node.generation, name, path, counters)
        shown = os.fsencode(name)
        fixed = _RECORD.pack(node.generation, counters.slot, len(shown))
        self._ledger.put(Kind.TALLY, node.ino, fixed + shown + os.fsencode(path))
        if len(self._closed) > self._limit:
            (ino, _), dropped = self._closed.popitem(last=False)
            self._ledger.drop(Kind.TALLY, ino)
            self._free_slots.append(dropped.counters.slot)
