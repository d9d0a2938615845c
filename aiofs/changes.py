"""Changes of names that must not be done twice: what a request began before its server died.

A request that a dead server did not answer comes to the next one again. Most can be done twice. To make,
remove or move a name cannot: the second time says EEXIST or ENOENT to a caller whose change was done. So
each such change is written down before it is begun, and one that comes again is compared: where it had been
begun, and the names are as it leaves them, it is done.

An entry stays after its change, because the answer may not have reached the kernel yet; only a request that
is marked as sent again looks at them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyfuse3 import RequestContext

from .ledger import Kind, Ledger

_KEPT = 256
"""More than the control plane has in work at once, the answers on their way included."""
_PID_RESENT = 1 << 30
"""Set in the pid of a request that is sent again (protocol.h)."""


_SHAPES = {"make": (1, 0), "remove": (1, 1), "rename": (2, 2)}
"""By operation: how many names a change has, and how many files."""


class Changes:
    """The changes of names that were begun lately, by this server and the one before it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = 0
        self._before: dict[str, list[int]] = {}
        for number, what, inos in ledger.restored(Kind.CHANGE, _unpack):
            self._before[what] = inos
            self._next = number + 1

    def begin(self, operation: str, names: Sequence[tuple[int, bytes]], *inos: int) -> None:
        """Write down that `operation` is about to change these names (parent's node id, name).

        `inos`: the files that they belong to now.
        """
        record = json.dumps([_what(operation, names), inos])
        self._ledger.put(Kind.CHANGE, self._next % _KEPT, record.encode())
        self._next += 1

    def begun(self, ctx: RequestContext, operation: str, *names: tuple[int, bytes]) -> list[int] | None:
        """What `begin` of the server before this one was told of the request that comes again; else None."""
        if not ctx.pid & _PID_RESENT:
            return None
        return self._before.get(json.dumps(_what(operation, names)))


def _what(operation: str, names: Sequence[tuple[int, bytes]]) -> list[object]:
    return [operation, *([parent, name.decode("latin-1")] for parent, name in names)]


def _unpack(number: int, record: bytes) -> tuple[int, str, list[int]]:
    """Number, what was begun, and the files' node ids. ValueError: it is no such record."""
    try:
        what, inos = json.loads(record)
        operation, *names = what
        good = _SHAPES.get(operation) == (len(names), len(inos))
        good &= all(isinstance(parent, int) and isinstance(name, str) for parent, name in names)
        good &= all(isinstance(ino, int) and 0 <= ino < 1 << 64 for ino in inos)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not good:
        raise ValueError("it is no change of names")
    return number, json.dumps(what), list(inos)
