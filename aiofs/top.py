"""`aiofs top`: what a mount does right now, on a screen with keys, or as text for files and programs.

Everything it shows is the difference of two readings of info.json; the server knows nothing of it. A reading
has a time limit, so a server that is stuck ends `top` with a message and not with a screen that stands still.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live

from . import info, mounttable, rates, topview
from .errors import AiofsError, BadInput
from .mounttable import Mount
from .rates import MountRates
from .terminal import QUIT, Keyboard

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 3600.0
MAX_COUNT = 1_000_000_000
ANSWER_S = 5.0
"""How long the server may take to answer."""
_SMALLEST = (80, 24)
"""What a terminal that does not know its size is taken for."""


@dataclass(frozen=True)
class Options:
    """How to look at a mount."""

    interval_s: float = 1.0
    batch: bool = False
    """Text without a screen; also when stdout is no terminal."""
    count: int | None = None
    """End after so many intervals; None: only when told."""


def parse_interval(word: str) -> float:
    """Seconds, MIN_INTERVAL_S to MAX_INTERVAL_S."""
    usable = f"use {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds"
    try:
        interval_s = float(word)
    except ValueError:
        raise BadInput(f"interval '{word}' is not a number; {usable}") from None
    if math.isnan(interval_s) or not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise BadInput(f"interval {word} is out of range; {usable}")
    return interval_s


def parse_count(word: str) -> int:
    """A number of intervals, from 1."""
    try:
        number = int(word)
    except ValueError:
        raise BadInput(f"count '{word}' is not a number; use 1 or more") from None
    if not 1 <= number <= MAX_COUNT:
        raise BadInput(f"count {word} is out of range; use 1 to {MAX_COUNT}")
    return number


def run(mount: Mount, options: Options) -> int:
    """Look at a mount until told to end. AiofsError: it cannot be looked at (any more)."""
    if options.batch or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        _print_pages(mount, options)
    else:
        _show_screen(mount, options)
    return 0


def _read(mount: Mount) -> dict[str, Any]:
    try:
        return info.read(mount.mountpoint, timeout_s=ANSWER_S)
    except info.Unreadable as error:
        if mounttable.holds(mount):
            raise
        raise AiofsError(f"{mount.mountpoint} has been unmounted") from error


class _Readings:
    """The last reading of a mount, and the rates between it and the one before."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self.told: Mapping[str, Any] = _read(mount)
        self.rates: MountRates | None = None
        self.number = 0
        """Intervals so far."""

    def next(self) -> None:
        """Read again. A server that took the place of the one before begins anew."""
        before, self.told = self.told, _read(self._mount)
        self.rates = rates.between(before, self.told) if rates.same_server(before, self.told) else None
        self.number += 1


def _print_pages(mount: Mount, options: Options) -> None:
    console = Console(color_system=None, force_terminal=False, highlight=False, width=_text_width())
    for readings in _intervals(mount, options):
        if readings.rates is not None:
            console.print(topview.page(readings.told, readings.rates, console.width), soft_wrap=False)
            sys.stdout.flush()


def _intervals(mount: Mount, options: Options) -> Iterator[_Readings]:
    readings = _Readings(mount)
    while readings.number != options.count:
        time.sleep(options.interval_s)
        readings.next()
        yield readings


def _text_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return max(_SMALLEST[0], int(columns)) if columns.isascii() and columns.isdigit() else _SMALLEST[0]


def _show_screen(mount: Mount, options: Options) -> None:
    readings = _Readings(mount)
    order = topview.Order()
    with Keyboard(sys.stdin.fileno()) as keyboard, _live() as live:
        due = time.monotonic() + options.interval_s
        while readings.number != options.count:
            _draw(live, readings, order)
            pressed = keyboard.wait(due - time.monotonic())
            if QUIT in pressed:
                break
            for key in pressed:
                order = order.pressed(key)
            if time.monotonic() >= due:
                readings.next()
                due = time.monotonic() + options.interval_s
    if keyboard.ended_by not in (0, signal.SIGINT):  # Ctrl-C is a way to quit, not a failure
        raise SystemExit(128 + keyboard.ended_by)  # as a shell tells of a process that a signal has ended


def _live() -> Live:
    console = Console(highlight=False)
    return Live(
        console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )


def _draw(live: Live, readings: _Readings, order: topview.Order) -> None:
    size = os.get_terminal_size(sys.stdout.fileno())
    width, height = (size.columns or _SMALLEST[0], size.lines or _SMALLEST[1])
    live.console.size = (width, height)
    live.update(topview.screen(readings.told, readings.rates, order, width, height), refresh=True)
