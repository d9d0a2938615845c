"""Results as a picture: a grouped bar chart in SVG, ratio to the raw image per workload."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .results import IO_URING, Results, baseline
from .workloads import Workload


@dataclass(frozen=True)
class Series:
    """One colour of bars."""

    target: str
    label: str
    colour: str
    loop_target: str = ""
    """The target that stands for it where the workload runs on loop devices."""


SERIES = (
    Series(IO_URING, "aiofs io_uring", "#1f5fbf", "loop-aiofs"),
    Series("aiofs-linux", "aiofs linux", "#7fb2ea"),
    Series("qsd", "qemu-storage-daemon", "#e07b28"),
    Series("nbdfuse", "nbdfuse (page cache)", "#a3a8b0"),
)

WIDTH, HEIGHT = 1040, 470
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 118, 82
INK, FAINT, GRID = "#1d2329", "#5c6670", "#e3e6ea"
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
    groups = [(workload, _bars(results, workload)) for workload in results.workloads()]
    groups = [(workload, bars) for workload, bars in groups if bars]
    top = _scale_top([bar.high for _, bars in groups for bar in bars])
    used = [series for series in SERIES if any(bar.series is series for _, bars in groups for bar in bars)]
    subtitle = (
        f"IOPS, median of {results.settings['rounds']} rounds, each relative to the raw image in the same "
        "round; one fio job, O_DIRECT; thin lines: lowest and highest round"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 34, "Speed through FUSE, as a share of the raw image", 20, INK, weight="bold"),
        _text(LEFT, 56, subtitle, 11.5, FAINT),
        *_legend(used),
        *_axis(top),
        _raw_line(top),
        *_groups(groups, top),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bars(results: Results, workload: Workload) -> list[Bar]:
    found = []
    for series in SERIES:
        target = series.loop_target if workload.on_loop else series.target
        spread = results.ratio(target, baseline(workload), workload.name)
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
        yield f'<rect x="{x:.1f}" y="74" width="13" height="13" rx="2" fill="{series.colour}"/>'
        yield _text(x + 19, 85, series.label, 12, INK)
        x += 19 + 7 * len(series.label) + 17
    yield f'<path d="M{x:.1f} 80.5h18" stroke="{INK}" stroke-dasharray="5 3"/>'
    yield _text(x + 24, 85, "raw image", 12, INK)
    x += 24 + 7 * len("raw image") + 17
    yield f'<path d="M{x:.1f} 80.5h18" stroke="{INK}" stroke-width="3"/>'
    yield _text(x + 24, 85, "goal for aiofs io_uring", 12, INK)


def _axis(top: float) -> Iterator[str]:
    step = 0.25 if top <= 2 else 0.5 if top <= 4 else 1.0
    for i in range(round(top / step) + 1):
        y = _y(i * step, top)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
        yield _text(LEFT - 8, y + 4, f"{i * step:.2f}", 12, FAINT, anchor="end")


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
            yield _text(middle, HEIGHT - BOTTOM + 20 + 16 * line, words, 12.5, colour, anchor="middle")


def _bar(bar: Bar, x: float, width: float, top: float) -> Iterator[str]:
    y = _y(bar.value, top)
    tip = f"{bar.series.label}: {bar.value:.2f} ({bar.low:.2f} - {bar.high:.2f})"
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_y(0, top) - y:.1f}" rx="2" '
        f'fill="{bar.series.colour}"><title>{escape(tip)}</title></rect>'
    )
    middle = x + width / 2
    low, high = _y(bar.low, top), _y(bar.high, top)
    yield f'<path d="M{middle:.1f} {low:.1f}V{high:.1f}" stroke="{INK}" stroke-opacity="0.45"/>'
    yield _text(middle, high - 4, f"{bar.value:.2f}", 11, INK, anchor="middle")


def _label(workload: Workload) -> tuple[str, str, str]:
    """A workload's title in three short lines."""
    number, unit, pattern = workload.title.split(", ")[0].split(" ", 2)
    return (
        pattern,
        f"{number} {unit}, depth {workload.depth}",
        "loop on it / loop on raw" if workload.on_loop else "",
    )


def _text(
    x: float, y: float, words: str, size: float, colour: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}" paint-order="stroke" stroke="#ffffff" stroke-width="3">'
        f"{escape(words)}</text>"
    )
