"""Results as a picture: a panel per workload, in it a group of bars per depth, a bar per driver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import svg as draw
from ..svg import BLUE, FAINT, GREEN, GREY, INK, LEFT, LIGHT_BLUE, ORANGE, RIGHT, WIDTH
from .plan import Workload
from .results import Results

COLOURS = {"io_uring": BLUE, "linux": LIGHT_BLUE, "threads": ORANGE, "posix": GREY, "sync": GREEN}

TOP, PANEL_HEIGHT, PANEL_GAP = 110, 210, 74
COLUMNS = 2
BAR_GAP = 1.5
MAX_BAR = 26.0


@dataclass(frozen=True)
class Panel:
    """Where one workload is drawn, and its scale."""

    workload: Workload
    x: float
    y: float
    width: float
    top: float
    """The IOPS at the upper edge."""

    def height_of(self, iops: float) -> float:
        """The y of a value."""
        return self.y + PANEL_HEIGHT * (1 - iops / self.top)


def svg(results: Results) -> str:
    """The chart."""
    workloads = results.workloads()
    rows = -(-len(workloads) // COLUMNS)
    height = TOP + rows * (PANEL_HEIGHT + PANEL_GAP)
    settings = results.settings
    subtitle = (
        f"IOPS by requests in flight, {settings['block_size']:,} bytes each; {results.filesystem}, cache "
        f"{results.cache}; median of {settings['rounds']} rounds; thin lines: lowest and highest round"
    )
    parts = [*_legend(results)]
    for index, workload in enumerate(workloads):
        parts += _panel(_place(results, workload, index), results)
    return draw.document(height, "AIO drivers on one image, without FUSE", subtitle, parts)


def _legend(results: Results) -> Iterator[str]:
    x = float(LEFT)
    for driver in results.drivers():
        yield from draw.legend_entry(x, driver, COLOURS.get(driver, INK))
        x += draw.legend_width(driver)


def _place(results: Results, workload: Workload, index: int) -> Panel:
    pitch = (WIDTH - RIGHT) / COLUMNS
    x = LEFT + index % COLUMNS * pitch
    y = TOP + 22 + index // COLUMNS * (PANEL_HEIGHT + PANEL_GAP)
    highest = max(sample.iops for sample in results.samples if sample.workload == workload.name)
    step = draw.round_step(highest, 5)
    return Panel(workload, x, y, pitch - LEFT, step * (int(highest / step) + 1))


def _panel(panel: Panel, results: Results) -> Iterator[str]:
    yield draw.text(panel.x, panel.y - 8, panel.workload.title, 13.5, INK, weight="bold")
    step = draw.round_step(panel.top, 6)
    for line in range(int(panel.top / step) + 1):
        y = panel.height_of(line * step)
        yield draw.rule(panel.x, y, panel.x + panel.width)
        yield draw.text(panel.x - 6, y + 4, f"{line * step / 1000:g}k", 11, FAINT, anchor="end")
    depths = results.depths()
    for index, depth in enumerate(depths):
        middle = panel.x + panel.width / len(depths) * (index + 0.5)
        yield from _group(panel, results, depth, middle)
        yield draw.text(middle, panel.y + PANEL_HEIGHT + 18, f"depth {depth}", 12, INK, anchor="middle")


def _group(panel: Panel, results: Results, depth: int, middle: float) -> Iterator[str]:
    drivers = results.drivers()
    width = min(MAX_BAR, (panel.width / len(results.depths()) - 14) / len(drivers) - BAR_GAP)
    x = middle - len(drivers) * (width + BAR_GAP) / 2
    bottom = panel.height_of(0)
    for driver in drivers:
        iops = results.spread(driver, panel.workload.name, depth, "iops")
        if iops:
            tip = f"{driver}, depth {depth}: {iops.median:,.0f} IOPS ({iops.low:,.0f} - {iops.high:,.0f})"
            y = panel.height_of(iops.median)
            yield draw.bar(x, y, width, bottom, COLOURS.get(driver, INK), tip)
            low, high = panel.height_of(iops.low), panel.height_of(iops.high)
            yield draw.range_line(x + width / 2, low, high)
        x += width + BAR_GAP
