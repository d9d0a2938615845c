"""The counters of images over the life of a mount: they go on where they were when an image is opened again.

So what was done in an open of 100 ms is not lost, and no counter goes backwards. An image is one file, told
by inode number and time of birth, whatever it is called. Knows nothing of what is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from .dataplane import ImageCounters
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


class Tallies:
    """The tallies of closed images; those closed longest ago are dropped."""

    def __init__(self, limit: int = _MAX_CLOSED) -> None:
        self._limit = limit
        self._closed: OrderedDict[_File, Tally] = OrderedDict()

    def __iter__(self) -> Iterator[Tally]:
        return iter(self._closed.values())

    def take(self, node: Node) -> ImageCounters:
        """The counters for an image that is about to be opened."""
        tally = self._closed.pop((node.ino, node.generation), None)
        return ImageCounters() if tally is None else tally.counters

    def give_back(self, node: Node, name: str, path: str, counters: ImageCounters) -> None:
        """The image is closed: nobody writes its counters any more."""
        if counters.unused:
            return
        self._closed[node.ino, node.generation] = Tally(node.ino, node.generation, name, path, counters)
        if len(self._closed) > self._limit:
            self._closed.popitem(last=False)
