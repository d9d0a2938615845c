"""The numbers of one run. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .plan import WORKLOADS, Workload


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None when there are no values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None


@dataclass(frozen=True)
class Sample:
    """One cell in one round."""

    driver: str
    workload: str
    depth: int
    round: int
    iops: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    """CPU time of the process per request."""
    switches: float
    """Voluntary context switches of the process per request."""
    submit_us: float
    """Time inside one submit call, mean."""
    submit_max_us: float


@dataclass(frozen=True)
class OrderSample:
    """How sequential writes of one driver arrived in one round (order.py)."""

    driver: str
    depth: int
    round: int
    late: float
    """Share of the blocks that arrived after one that was submitted later, 0 .. 1."""
    displacement: int
    """The farthest that a block was from its place, in blocks."""


@dataclass
class Results:
    """One run, as printed by --json."""

    image: str
    size: int
    """Bytes."""
    filesystem: str
    cache: str
    """`none` or `writeback`."""
    settings: dict[str, Any]
    machine: dict[str, str]
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know, and what was left out."""
    samples: list[Sample] = field(default_factory=list)
    order: list[OrderSample] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists: what is above, and under `cells` the medians and extremes."""
        return asdict(self) | {"cells": [self._cell(*key) for key in self._keys()]}

    def workloads(self) -> list[Workload]:
        """Those that were measured, as WORKLOADS has them."""
        names = {sample.workload for sample in self.samples}
        return [workload for workload in WORKLOADS if workload.name in names]

    def depths(self) -> list[int]:
        """Those that were measured, smallest first."""
        return sorted({sample.depth for sample in self.samples})

    def drivers(self) -> list[str]:
        """Those that were measured, in the order of the data plane's table where the run kept it."""
        names = {sample.driver for sample in self.samples}
        return [name for name in self.settings["drivers"] if name in names]

    def of(self, driver: str, workload: str, depth: int) -> list[Sample]:
        """One cell, by round."""
        found = [s for s in self.samples if (s.driver, s.workload, s.depth) == (driver, workload, depth)]
        return sorted(found, key=lambda sample: sample.round)

    def spread(self, driver: str, workload: str, depth: int, what: str) -> Spread | None:
        """Median and extremes of one field of Sample."""
        return Spread.of(getattr(sample, what) for sample in self.of(driver, workload, depth))

    def median(self, driver: str, workload: str, depth: int, what: str) -> float:
        """The median alone; 0 when nothing was measured."""
        spread = self.spread(driver, workload, depth, what)
        return spread.median if spread else 0.0

    def late(self, driver: str, depth: int) -> Spread | None:
        """The share of sequential writes that arrived late."""
        return Spread.of(s.late for s in self.order if (s.driver, s.depth) == (driver, depth))

    def _keys(self) -> list[tuple[str, str, int]]:
        return [
            (driver, workload.name, depth)
            for workload in self.workloads()
            for depth in self.depths()
            for driver in self.drivers()
        ]

    def _cell(self, driver: str, workload: str, depth: int) -> dict[str, Any]:
        cell: dict[str, Any] = {"driver": driver, "workload": workload, "depth": depth}
        for what in ("iops", "bytes_per_s", "p50_us", "p99_us", "cpu_us", "switches"):
            spread = self.spread(driver, workload, depth, what)
            cell[what] = asdict(spread) if spread else None
        return cell
