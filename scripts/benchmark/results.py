"""Cells, the ratios between them, and the goals. Pure: no processes, no files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiofs.bench.results import Spread

from .targets import TARGETS
from .workloads import WORKLOADS, Reading, Workload

IO_URING = "aiofs-io_uring"
NO_MERGE = "-no-merge"

QEMU_GOAL = 1.2
LINUX_GOAL = 0.85
MERGE_GOAL = 1.5
MERGE_DRIVERS = ("threads", "posix", "sync")
NO_LOSS_GOAL = 0.97
READY_GOAL_S = 0.5
MEMORY_GOAL_MIB = 60.0
LISTING_GOAL_S = 1.0


@dataclass(frozen=True)
class Run:
    """One run of fio, a slice of a cell."""

    reading: Reading
    used_s: float | None
    """CPU time of the server's processes meanwhile; None where there is no server."""


@dataclass(frozen=True)
class Cell:
    """One target, one workload, one round: the medians of its runs of fio."""

    target: str
    workload: str
    round: int
    iops: float
    bytes_per_s: float
    latency_us: float
    cpu_us: float | None
    """CPU time of the server's processes per fio I/O; None where there is no server."""

    @classmethod
    def of(cls, target: str, workload: str, round_number: int, runs: Sequence[Run]) -> Cell:
        """Medians, as a slice in which the machine did something else must not count; the CPU time is that
        of all slices, because it is counted in ticks of 10 ms."""
        readings = [run.reading for run in runs]
        used = [run.used_s for run in runs if run.used_s is not None]
        return cls(
            target, workload, round_number,
            statistics.median(reading.iops for reading in readings),
            statistics.median(reading.bytes_per_s for reading in readings),
            statistics.median(reading.latency_us for reading in readings),
            sum(used) * 1e6 / sum(reading.ios for reading in readings) if used else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What a mount of many images costs while nothing happens, and to look for requests that can be merged
    where there are none (processor time for each, in batches of the benchmark's depth); one value per round.
    """

    images: int
    ready_s: list[float]
    listing_s: list[float]
    memory_mib: list[float]
    merge_ns: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """One run of the benchmark, as stored in JSON."""

    date: str
    machine: dict[str, str]
    settings: dict[str, Any]
    cells: list[Cell]
    costs: Costs | None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, with the goals for whoever reads the file."""
        return asdict(self) | {"goals": [asdict(goal) for goal in goals(self)]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """The inverse of to_json; KeyError or TypeError when the file is something else."""
        return cls(
            date=data["date"],
            machine=data["machine"],
            settings=data["settings"],
            cells=[Cell(**cell) for cell in data["cells"]],
            costs=None if data["costs"] is None else Costs(**data["costs"]),
        )

    def targets(self) -> list[str]:
        """The targets that were measured."""
        names = {cell.target for cell in self.cells}
        return [target.name for target in TARGETS if target.name in names]

    def workloads(self) -> list[Workload]:
        """The workloads that were measured."""
        names = {cell.workload for cell in self.cells}
        return [workload for workload in WORKLOADS if workload.name in names]

    def of(self, target: str, workload: str) -> dict[int, Cell]:
        """The cells of one target and workload by round."""
        return {cell.round: cell for cell in self.cells if (cell.target, cell.workload) == (target, workload)}

    def ratio(self, target: str, base: str, workload: str) -> Spread | None:
        """IOPS of `target` over IOPS of `base`, paired by round; None when no round has both."""
        ours, theirs = self.of(target, workload), self.of(base, workload)
        return Spread.of(ours[r].iops / theirs[r].iops for r in sorted(ours.keys() & theirs.keys()))


@dataclass(frozen=True)
class Goal:
    """One number that the benchmark compares with what was asked for."""

    title: str
    wanted: float
    measured: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Equal counts as met."""
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    def line(self) -> str:
        """`goal  0.75:   0.81 ok      4 KiB random read, depth 1: aiofs-io_uring / raw`."""
        word = "below" if self.at_most else "goal"
        verdict = "ok    " if self.met else "MISSED"
        return f"{word} {self.wanted:5.2f}: {self.measured:6.2f} {verdict}  {self.title}"


def goals(results: Results) -> list[Goal]:
    """Every goal whose numbers were measured."""
    found: list[Goal] = []
    for workload in results.workloads():
        subject = workload.place.subject
        found += _goal(results, subject, workload.place.baseline, workload, workload.goal)
        if workload.block_size < 1 << 20:
            found += _goal(results, subject, "qsd", workload, QEMU_GOAL)
        found += _goal(results, "aiofs-linux", IO_URING, workload, LINUX_GOAL)
    return found + _merge_goals(results) + _cost_goals(results.costs)


def _goal(results: Results, target: str, base: str, workload: Workload, wanted: float) -> list[Goal]:
    spread = results.ratio(target, base, workload.name)
    return [Goal(f"{workload.title}: {target} / {base}", wanted, spread.median)] if spread else []


def _merge_goals(results: Results) -> list[Goal]:
    found: list[Goal] = []
    for target in results.targets():
        if not target.startswith("aiofs-") or target.endswith(NO_MERGE):
            continue
        for workload in results.workloads():
            gains = workload.sequential_4k and target.removeprefix("aiofs-") in MERGE_DRIVERS
            wanted = MERGE_GOAL if gains else NO_LOSS_GOAL
            found += _goal(results, target, target + NO_MERGE, workload, wanted)
    return found


def _cost_goals(costs: Costs | None) -> list[Goal]:
    if costs is None:
        return []
    count = f"{costs.images:,} images"
    return [
        Goal(title, wanted, statistics.median(values), at_most=True)
        for title, wanted, values in (
            (f"seconds until a mount of {count} is ready", READY_GOAL_S, costs.ready_s),
            (f"MiB resident, idle, with {count}", MEMORY_GOAL_MIB, costs.memory_mib),
            (f"seconds to list {count} with their sizes", LISTING_GOAL_S, costs.listing_s),
        )
    ]
