"""Is `--aio auto` right? Its mount beside one of each driver, on each file system, in one run."""

from __future__ import annotations

import dataclasses
import fnmatch
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiofs.bench.results import Spread

from . import filesystems
from .processes import TargetError
from .results import Results
from .run import Plan, measure
from .targets import Lab, Target, aiofs_target
from .workloads import KIB, Workload

AUTO = "aiofs-auto"
DRIVERS = ("io_uring", "linux", "threads", "sync")
TARGETS: tuple[Target, ...] = tuple(aiofs_target(driver) for driver in ("auto", *DRIVERS))
GOAL = 0.9
"""auto is to reach this share of the driver that is best."""

_PATTERNS = {
    "randread": "random read",
    "randwrite": "random write",
    "read": "seq. read",
    "write": "seq. write",
}
WORKLOADS = tuple(
    Workload(f"{pattern}-qd{depth}", f"{title}, depth {depth}", pattern, 4 * KIB, depth, GOAL)
    for pattern, title in _PATTERNS.items()
    for depth in (1, 32)
)


@dataclass(frozen=True)
class Row:
    """One workload on one file system."""

    filesystem: str
    workload: Workload
    iops: float
    """Of auto, the median."""
    best: str
    """The driver whose median is highest."""
    ratio: Spread
    """auto over the best driver, paired by round. For each round that is the best one of the other rounds: or
    whoever was lucky in it would be chosen for that, and of four equal drivers one is always ahead."""

    @property
    def met(self) -> bool:
        """auto is close enough."""
        return self.ratio.median >= GOAL


ROWS = tuple((kind, workload) for kind in filesystems.KINDS for workload in WORKLOADS)


def rows_named(patterns: str) -> dict[str, list[Workload]]:
    """The workloads for each file system of `btrfs/write-qd1,tmpfs/*`. ValueError: one that names none."""
    chosen: dict[str, list[Workload]] = {}
    words = patterns.split(",")
    for word in words:
        if not any(fnmatch.fnmatch(f"{kind}/{workload.name}", word) for kind, workload in ROWS):
            raise ValueError(word)
    for kind, workload in ROWS:
        if any(fnmatch.fnmatch(f"{kind}/{workload.name}", word) for word in words):
            chosen.setdefault(kind, []).append(workload)
    return chosen


def run(
    directory: Path, size: int, plan: Plan, chosen: dict[str, list[Workload]], tell: Callable[[str], None]
) -> Iterator[tuple[str, Results]]:
    """Measure on each file system in turn; those that cannot be made are told and left out."""
    for kind, workloads in chosen.items():
        try:
            with filesystems.made(kind, directory, filesystems.space(kind, size)) as room:
                tell(f"{kind}:")
                some = dataclasses.replace(plan, workloads=workloads)
                cells = list(measure(some, Lab(room, size, "native"), tell))
        except TargetError as error:
            tell(f"{kind} is left out: {error}")
            continue
        yield kind, Results("", {}, {}, cells, None)


def rows(kind: str, results: Results) -> Iterator[Row]:
    """What was measured on one file system."""
    for workload in WORKLOADS:
        iops = {
            target.name: {r: cell.iops for r, cell in cells.items()}
            for target in TARGETS
            if (cells := results.of(target.name, workload.name))
        }
        auto = iops.pop(AUTO, None)
        ratio = Spread.of(_ratios(auto, iops)) if auto else None
        if auto and ratio:
            best = _best(iops)
            yield Row(kind, workload, statistics.median(auto.values()), best.removeprefix("aiofs-"), ratio)


def _best(drivers: dict[str, dict[int, float]], without: int | None = None) -> str:
    """The driver with the highest median; `without` this round, if there are others."""

    def median(driver: str) -> float:
        rounds = drivers[driver]
        return statistics.median([iops for r, iops in rounds.items() if r != without] or rounds.values())

    return max(drivers, key=median)


def _ratios(auto: dict[int, float], drivers: dict[str, dict[int, float]]) -> Iterator[float]:
    for r, iops in sorted(auto.items()):
        there = {driver: rounds for driver, rounds in drivers.items() if r in rounds}
        if there:
            yield iops / there[_best(there, without=r)][r]


def markdown(found: list[Row]) -> str:
    """The table for the README and the terminal."""
    lines = [
        "| file system | workload, 4 KiB | auto, IOPS | best driver | auto / best | lowest-highest | |",
        "| --- | --- | ---: | --- | ---: | --- | --- |",
    ]
    for row in found:
        spread = f"{row.ratio.low:.2f}-{row.ratio.high:.2f}"
        verdict = "ok" if row.met else "MISSED"
        lines.append(
            f"| {row.filesystem} | {row.workload.title} | {row.iops:,.0f} | {row.best} "
            f"| {row.ratio.median:.2f} | {spread} | {verdict} |"
        )
    met = sum(row.met for row in found)
    return "\n".join([*lines, "", f"auto within 10 % of the best driver in {met} of {len(found)} rows", ""])
