"""Results as a picture: a grouped bar chart in SVG, ratio to the raw image per workload."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from aiofs import svg as draw
from aiofs.svg import BLUE, FAINT, GREY, INK, LEFT, LIGHT_BLUE, ORANGE, RIGHT, WIDTH

from .results import IO_URING, Results
from .workloads import Place, Workload


@dataclass(frozen=True)
class Series:
    """One colour of bars. Where fio is not on the file itself, the first one's is that of the place."""

    target: str
    label: str
    colour: str


SERIES = (
    Series(IO_URING, "aiofs io_uring", BLUE),
    Series("aiofs-linux", "aiofs linux", LIGHT_BLUE),
    Series("qsd", "qemu-storage-daemon", ORANGE),
    Series("nbdfuse", "nbdfuse (page cache)", GREY),
)

LOOP = "loop-randread-qd32"
"""The one workload on loop devices that the chart has room for; the report has all."""

HEIGHT = 470
TOP, BOTTOM = 118, 82
BAR_GAP = 2.0
MAX_BAR = 34.0


@dataclass(frozen=True)
class Bar:
    """One bar: how far it reaches, the extremes of its rounds, and its colour."""

    series: Series
    value: float
    low: float
    high: float


def svg(results: Results) -> str:
    """The chart; series and workloads that were not measured leave no gap."""
    shown = [
        workload for workload in results.workloads() if workload.place is Place.FILE or workload.name == LOOP
    ]
    groups = [(workload, _bars(results, workload)) for workload in shown]
    groups = [(workload, bars) for workload, bars in groups if bars]
    top = _scale_top([bar.high for _, bars in groups for bar in bars])
    used = [series for series in SERIES if any(bar.series is series for _, bars in groups for bar in bars)]
    subtitle = (
        f"IOPS, median of {results.settings['rounds']} rounds, each relative to the raw image in the same "
        "round; one fio job, O_DIRECT; thin lines: lowest and highest round"
    )
    parts = [*_legend(used), *_axis(top), _raw_line(top), *_groups(groups, top)]
    return draw.document(HEIGHT, "Speed through FUSE, as a share of the raw image", subtitle, parts)


def _bars(results: Results, workload: Workload) -> list[Bar]:
    found = []
    for series in SERIES:
        target = workload.place.subject if series.target == IO_URING else series.target
        spread = results.ratio(target, workload.place.baseline, workload.name)
        if spread:
            found.append(Bar(series, spread.median, spread.low, spread.high))
    return found


def _scale_top(values: list[float]) -> float:
    """The upper end of the axis: the next quarter above the highest value, at least 1.25."""
    return max(1.25, math.ceil(max(values, default=0) * 4 + 0.2) / 4)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _legend(used: list[Series]) -> Iterator[str]:
    x = float(LEFT)
    for series in used:
        yield from draw.legend_entry(x, series.label, series.colour)
        x += draw.legend_width(series.label)
    yield f'<path d="M{x:.1f} 80.5h18" stroke="{INK}" stroke-dasharray="5 3"/>'
    yield draw.text(x + 24, 85, "raw image", 12, INK)
    x += 24 + 7 * len("raw image") + 17
    yield f'<path d="M{x:.1f} 80.5h18" stroke="{INK}" stroke-width="3"/>'
    yield draw.text(x + 24, 85, "goal for aiofs io_uring", 12, INK)


def _axis(top: float) -> Iterator[str]:
    step = 0.25 if top <= 2 else 0.5 if top <= 4 else 1.0
    for i in range(round(top / step) + 1):
        y = _y(i * step, top)
        yield draw.rule(LEFT, y, WIDTH - RIGHT)
        yield draw.text(LEFT - 8, y + 4, f"{i * step:.2f}", 12, FAINT, anchor="end")


def _raw_line(top: float) -> str:
    return f'<path d="M{LEFT} {_y(1, top):.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-dasharray="5 4"/>'


def _groups(groups: list[tuple[Workload, list[Bar]]], top: float) -> Iterator[str]:
    pitch = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    for index, (workload, bars) in enumerate(groups):
        middle = LEFT + pitch * (index + 0.5)
        width = min(MAX_BAR, (pitch - 18) / len(SERIES) - BAR_GAP)
        x = middle - len(bars) * (width + BAR_GAP) / 2
        for bar in bars:
            yield from _bar(bar, x, width, top)
            if bar.series.target == IO_URING:
                y = _y(workload.goal, top)
                yield (
                    f'<path d="M{x - 3:.1f} {y:.1f}h{width + 6:.1f}" stroke="#ffffff" stroke-width="5"/>'
                    f'<path d="M{x - 3:.1f} {y:.1f}h{width + 6:.1f}" stroke="{INK}" stroke-width="3"/>'
                )
            x += width + BAR_GAP
        for line, words in enumerate(_label(workload)):
            colour = FAINT if line else INK
            yield draw.text(middle, HEIGHT - BOTTOM + 20 + 16 * line, words, 12.5, colour, anchor="middle")


def _bar(bar: Bar, x: float, width: float, top: float) -> Iterator[str]:
    y = _y(bar.value, top)
    tip = f"{bar.series.label}: {bar.value:.2f} ({bar.low:.2f} - {bar.high:.2f})"
    yield draw.bar(x, y, width, _y(0, top), bar.series.colour, tip)
    middle = x + width / 2
    low, high = _y(bar.low, top), _y(bar.high, top)
    yield draw.range_line(middle, low, high)
    yield draw.text(middle, high - 4, f"{bar.value:.2f}", 11, INK, anchor="middle")


def _label(workload: Workload) -> tuple[str, str, str]:
    """A workload's title in three short lines."""
    number, unit, pattern = workload.title.split(", ")[0].split(" ", 2)
    return (
        pattern,
        f"{number} {unit}, depth {workload.depth}",
        "loop on it / loop on raw" if workload.place is Place.LOOP else "",
    )
