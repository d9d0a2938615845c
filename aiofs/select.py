"""Which driver serves: the one the user named, or the first that works. No I/O: the probes' verdicts come in.

A choice carries its reason, because `aiofs info` and the log show it. Selection per image (DESIGN.md,
"--aio auto") will add the image's facts to `choose`; its callers already treat a Choice as the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import BadInput

PREFERENCE = ("io_uring", "linux", "threads", "sync")
"""Tried in this order. `posix` is for comparison: `threads` does the same job better."""


class Status(Protocol):
    """The verdict of a driver's probe; dataplane.DriverStatus is one."""

    @property
    def name(self) -> str: ...
    @property
    def works(self) -> bool: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Choice:
    """A driver, and why this one."""

    driver: str
    reason: str


def choose(asked: str | None, statuses: Sequence[Status]) -> Choice:
    """The driver for a mount. BadInput when the one asked for does not work: never another one silently."""
    works = [status.name for status in statuses if status.works]
    if asked is not None:
        return _forced(asked, statuses, works)
    refused: list[str] = []
    by_name = {status.name: status for status in statuses}
    for name in PREFERENCE:
        status = by_name.get(name)
        if status is None:
            continue
        if status.works:
            return Choice(name, "; ".join(["first that works", *refused]))
        refused.append(f"{name}: {status.reason}")
    raise BadInput(f"no AIO driver works on this machine: {'; '.join(refused) or 'none is built in'}")


def _forced(asked: str, statuses: Sequence[Status], works: Sequence[str]) -> Choice:
    for status in statuses:
        if status.name != asked:
            continue
        if status.works:
            return Choice(asked, "asked for")
        raise BadInput(
            f"AIO driver {asked} does not work here: {status.reason}; "
            f"use --aio with one of: {' '.join(works) or '(none works)'}"
        )
    raise BadInput(f"AIO driver {asked} is not built in; use one of: {' '.join(works) or '(none works)'}")
