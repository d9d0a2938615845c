"""A long list of operations that ended badly, made short: delta debugging, within a time.

Lists are lines of text (workload.py); what doing one again comes to is somebody else's to find out.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

FIRST = 64
"""Operations that are tried first: the last ones before the failure."""
CONFIRMATIONS = 3
CONFIRMATION_S = 20.0

Again = Callable[[list[str], float], str]
"""Does a list in a new place: what went wrong, or nothing. OutOfTime at the given time.monotonic()."""


class OutOfTime(Exception):
    """The deadline came before the end of a list."""


def reduced(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Items whose list fails still, but without any one of them does not (ddmin: halves are left out first,
    then ever smaller pieces). When `fails` raises OutOfTime: the best so far."""
    best = list(items)
    size = max(1, len(best) // 2)
    with contextlib.suppress(OutOfTime):
        while best:
            before, start = len(best), 0
            while start < len(best):
                without = best[:start] + best[start + size :]
                if fails(without):
                    best = without
                else:
                    start += size
            if size == 1 and len(best) == before:
                break
            size = max(1, size // 2)
    return best


def shrunk(lines: list[str], sizes: Sequence[int], again: Again, patience_s: float) -> str:
    """What to tell of a failure at the end of `lines`, before each of which the file had the size of `sizes`:
    the shortest list found within `patience_s` that fails again, or that none did."""
    end = time.monotonic() + patience_s

    def wrong(tried: list[str]) -> str:
        if time.monotonic() > end:
            raise OutOfTime
        return again(tried, end)

    tries = []
    try:
        broken = wrong([])
        if broken:
            return f"not shortened: by now a new file fails without any operation: {broken}"
        for count in _counts(len(lines)):
            start = _restored(lines[:-count], sizes[-count]) if count < len(lines) else []
            tried = [*start, *lines[-count:]]
            if wrong(tried):
                return _told(_shortest(tried, wrong), len(lines), again)
            tries.append(str(count))
    except OutOfTime:
        pass
    tried_so_far = f"the last {', '.join(tries)}" if tries else "none"
    return (
        f"not shortened: it did not happen again in {patience_s:g} s at most; "
        f"operations done once more: {tried_so_far} of {len(lines)}"
    )


def _counts(whole: int) -> list[int]:
    """How many of the last operations to try: more and more, at last all."""
    growing = itertools.takewhile(lambda count: count < whole, (FIRST * 4**i for i in itertools.count()))
    return [*growing, whole]


def _restored(before: list[str], size: int) -> list[str]:
    """The file as it was after these, its bytes apart: its size, and how it was open."""
    opened = next((line for line in reversed(before) if line.startswith("open")), "open 0")
    return [f"truncate {size}", opened]


def _shortest(lines: list[str], wrong: Callable[[list[str]], str]) -> list[str]:
    """Without lines, and without operations of what is done at once."""
    pieces = [(number, text) for number, line in enumerate(lines) for text in line.split(" & ")]

    def joined(some: list[tuple[int, str]]) -> list[str]:
        steps = itertools.groupby(some, key=lambda piece: piece[0])
        return [" & ".join(text for _, text in step) for _, step in steps]

    return joined(reduced(pieces, lambda some: bool(wrong(joined(some)))))


def _told(shortest: list[str], whole: int, again: Again) -> str:
    outcomes: list[str] = []
    with contextlib.suppress(OutOfTime):
        outcomes.extend(again(shortest, time.monotonic() + CONFIRMATION_S) for _ in range(CONFIRMATIONS))
    failures = [outcome for outcome in outcomes if outcome]
    listed = "\n".join(f"  {line}" for line in shortest)
    return (
        f"shortened from {whole} operations to {len(shortest)}, which failed {len(failures)} of "
        f"{len(outcomes)} times more{': ' + failures[0] if failures else ''}\n"
        f"again: AIOFS_REPLAY=FILE pytest, and this test's name; FILE holds\n{listed}"
    )
