"""Changes of names that must not be done twice: what a request began before its server died.

A request that a dead server did not answer comes to the next one again. Most can be done twice. To make,
remove or move a name cannot: the second time says EEXIST or ENOENT to a caller whose change was done. So
each such change is written down before it is begun, and one that comes again is compared: where it had been
begun, and the names are as it leaves them, it is done.

An entry stays after its change, because the answer may not have reached the kernel yet; only a request that
is marked as sent again looks at them. It has to find its own, not an older one that was the same: a file that
is made anew after it was removed is to be removed again. The kernel changes a name once at a time (it keeps
the directory locked until the answer), so what was not answered is what was begun last of its names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pyfuse3 import RequestContext

from .ledger import Kind, Ledger
from .nodes import is_file_name

_KEPT = 256
"""More than the control plane has in work at once, the answers on their way included."""
_PID_RESENT = 1 << 30
"""Set in the pid of a request that is sent again (protocol.h)."""


Name = tuple[int, bytes]
"""Node id of the directory, and the name in it."""

_SHAPES = {"make": (1, 0), "remove": (1, 1), "rename": (2, 2)}
"""By operation: how many names a change has, and how many files."""


class Changes:
    """The changes of names that were begun lately, by this server and the one before it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = 0
        self._before: dict[str, tuple[list[Name], list[int]]] = {}
        self._newest: dict[Name, str] = {}
        """By name: what was begun last of it."""
        for number, operation, names, inos in ledger.restored(Kind.CHANGE, _unpack):
            key = _key(operation, names)
            self._before[key] = names, inos
            self._newest |= dict.fromkeys(names, key)
            self._next = number + 1

    def begin(self, operation: str, names: Sequence[Name], *inos: int) -> None:
        """Write down that `operation` is about to change these names.

        `inos`: the files that they belong to now.
        """
        record = json.dumps([_what(operation, names), inos])
        self._ledger.put(Kind.CHANGE, self._next % _KEPT, record.encode())
        self._next += 1

    def begun(self, ctx: RequestContext, operation: str, *names: Name) -> list[int] | None:
        """What `begin` of the server before this one was told of the request that comes again; else None."""
        if not ctx.pid & _PID_RESENT:
            return None
        key = _key(operation, names)
        return self._before[key][1] if self._is_newest(key, names) else None

    def renames(self) -> Iterator[tuple[Name, Name, int]]:
        """Old name, new name and node id of the file, of renames that the server before this one had begun.

        It may not have come to note that they were done. Of an exchange, both ways.
        """
        for key, (names, inos) in self._before.items():
            if len(names) == 2 and self._is_newest(key, names):
                (old, new), (moved, target) = names, inos
                yield old, new, moved
                if target:
                    yield new, old, target

    def _is_newest(self, key: str, names: Sequence[Name]) -> bool:
        return all(self._newest.get(name) == key for name in names)


def _key(operation: str, names: Sequence[Name]) -> str:
    return json.dumps(_what(operation, names))


def _what(operation: str, names: Sequence[Name]) -> list[object]:
    return [operation, *([parent, name.decode("latin-1")] for parent, name in names)]


def _unpack(number: int, record: bytes) -> tuple[int, str, list[Name], list[int]]:
    """Number, what was begun, and the files' node ids. ValueError: it is no such record."""
    try:
        what, inos = json.loads(record)
        operation, *names = what
        good = _SHAPES.get(operation) == (len(names), len(inos))
        good &= all(
            isinstance(parent, int) and is_file_name(name.encode("latin-1")) for parent, name in names
        )
        good &= all(isinstance(ino, int) and 0 <= ino < 1 << 64 for ino in inos)
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not good:
        raise ValueError("it is no change of names")
    return number, operation, [(parent, name.encode("latin-1")) for parent, name in names], list(inos)
