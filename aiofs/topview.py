"""The screen of `aiofs top`: rates as text, in 80 columns or in as many as there are. Knows no terminal.

Names of images are shown with what is not printable escaped: a file's name must not be able to steer the
terminal of who looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .info import count, duration
from .rates import ImageRates, MountRates

_GAP = 2
_MIN_NAME = 12
_BESIDE_ROWS = 5
"""Lines of a screen that are no image: three of the head, the column titles, the keys."""


@dataclass(frozen=True)
class Column:
    """One column: its title, how wide its cells are at most, and what is in them."""

    title: str
    width: int
    value: Callable[[ImageRates], Any]
    """To sort by."""
    cell: Callable[[ImageRates], str]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _average(average: float | None) -> str:
    return "-" if average is None else f"{average:.1f}" if average < 999.95 else count(round(average))


def short_time(ns: float | None) -> str:
    """A latency in at most 6 characters: `850us`, `1.25ms`, `67.1s`; `-` for none."""
    if ns is None:
        return "-"
    value = ns / 1000
    for unit in ("us", "ms"):
        if value < 999.5:
            return _three_digits(value) + unit
        value /= 1000
    return _three_digits(value) + "s"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _megabytes(bytes_s: float) -> str:
    return f"{bytes_s / 1e6:.1f}" if bytes_s < 9999.95e6 else f"{bytes_s / 1e6:.0f}"


COLUMNS = (
    Column("IMAGE", 0, lambda image: image.path, lambda image: image.path),
    Column("IOPS", 5, lambda image: image.requests_s, lambda image: count(round(image.requests_s))),
    Column("READ", 4, lambda image: image.read_share or 0, lambda image: _share(image.read_share)),
    Column("MB/S", 6, lambda image: image.bytes_s, lambda image: _megabytes(image.bytes_s)),
    Column("DEPTH", 5, lambda image: image.depth, lambda image: _average(image.depth)),
    Column("BATCH", 5, lambda image: image.batch or 0, lambda image: _average(image.batch)),
    Column("MERGED", 6, lambda image: image.merged_share or 0, lambda image: _share(image.merged_share)),
    Column("P50", 6, lambda image: image.p50_ns or 0, lambda image: short_time(image.p50_ns)),
    Column("P99", 6, lambda image: image.p99_ns or 0, lambda image: short_time(image.p99_ns)),
)


@dataclass(frozen=True)
class Order:
    """By which column the images stand, and which end is first."""

    column: int = 1
    """Index in COLUMNS."""
    reverse: bool = False
    """False: names from a, numbers from the highest."""

    def pressed(self, key: str) -> Order:
        """The order after a key: a column's number, < or >, r; the same for any other."""
        if key.isascii() and key.isdigit() and 1 <= int(key) <= len(COLUMNS):
            return Order(int(key) - 1)
        if key in ("<", ">"):
            return Order((self.column + (1 if key == ">" else -1)) % len(COLUMNS))
        if key == "r":
            return replace(self, reverse=not self.reverse)
        return self

    def sorted(self, images: Sequence[ImageRates]) -> list[ImageRates]:
        """The images in this order; those that are equal by name."""
        by_name = sorted(images, key=COLUMNS[0].value)
        return sorted(by_name, key=COLUMNS[self.column].value, reverse=self.reverse == (self.column == 0))

    def __str__(self) -> str:
        first = ("from z", "from a") if self.column == 0 else ("lowest first", "highest first")
        return f"by {COLUMNS[self.column].title}, {first[not self.reverse]}"


def printable(name: str) -> str:
    """A file's name for a terminal: what is not printable or not UTF-8 becomes an escape."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fit(text: str, width: int) -> str:
    """The text in so many columns; cut in the middle, because the ends of paths tell them apart."""
    if cell_len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return set_cell_size(text, width - 3 - tail) + "..." + set_cell_size(text[::-1], tail)[::-1]


def head(told: Mapping[str, Any], rates: MountRates | None) -> list[str]:
    """The lines about the mount; without rates, those that need none."""
    up = duration(time.time() - told["started"])
    lines = [
        f"{printable(told['mountpoint'])}  {told['driver']}, cache {told['cache']}, "
        f"queue depth {told['queue_depth']}, up {up}",
    ]
    if rates is None:
        return [*lines, "collecting the first interval ...", ""]
    return [
        *lines,
        f"kernel {_per_s(rates.requests_s)} requests ({_per_s(rates.forwarded_s)} to the control plane), "
        f"{rates.in_flight} in flight",
        f"batches {_per_s(rates.batches_s)} of {_average(rates.batch)} ios, "
        f"sleeps {_per_s(rates.sleeps_s)}, looks {_per_s(rates.looks_s)}",
    ]


def _per_s(rate: float) -> str:
    return f"{count(round(rate))}/s"


def table(images: Sequence[ImageRates], order: Order, width: int) -> Table:
    """The images, a line each, in `width` columns."""
    name_width = max(_MIN_NAME, width - sum(column.width + _GAP for column in COLUMNS[1:]))
    shown = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, collapse_padding=True)
    for index, column in enumerate(COLUMNS):
        shown.add_column(
            Text(column.title, style="reverse" if index == order.column else "bold"),
            justify="right" if index else "left",
            width=column.width or name_width,
            no_wrap=True,
        )
    for image in order.sorted(images):
        mark = "! " if image.failing else ""
        name = fit(mark + printable(image.path), name_width)
        cells = [name, *(column.cell(image) for column in COLUMNS[1:])]
        shown.add_row(*map(Text, cells), style="red" if image.failing else "")
    return shown


def page(told: Mapping[str, Any], rates: MountRates, width: int) -> RenderableType:
    """One interval as plain text: the head, and every image that is open or did something."""
    lines = [Text(fit(line, width)) for line in head(told, rates)]
    return Group(*lines, *_images(rates.images, Order(), width), Text())


def screen(
    told: Mapping[str, Any], rates: MountRates | None, order: Order, width: int, height: int
) -> RenderableType:
    """A full screen: as many images as there is room for, and what the keys do."""
    lines = [Text(fit(line, width)) for line in head(told, rates)]
    keys = f"sorted {order}   1-{len(COLUMNS)} < > column  r reverse  q quit"
    if rates is None:
        return Group(*lines, Text(fit(keys, width), style="dim"))
    room = max(1, height - _BESIDE_ROWS)
    left = len(rates.images) - room
    images = order.sorted(rates.images)
    if left > 0:
        keys = f"{left + 1} more   {keys}"
        images = images[: room - 1]
    return Group(*lines, *_images(images, order, width), Text(fit(keys, width), style="dim"))


def _images(images: Sequence[ImageRates], order: Order, width: int) -> list[RenderableType]:
    return [table(images, order, width)] if images else [Text("no image is open")]
