"""Which driver is the best for the image that was measured, and whether `--aio auto` would have chosen it.

Score of a driver: the geometric mean, over all cells (workload and depth), of its IOPS as a share of the
IOPS of the best driver in that cell. The highest score wins. A driver is level with the winner when it is
within 3 percent of it, or within 10 percent and faster than it in at least one round: another run might end
the other way. Of those that are level, the one that uses the least CPU time per request is recommended, for
that is left to the guest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import probe
from ..config import CacheMode
from ..dataplane import Op
from .plan import Workload
from .results import Results

LEVEL, PERHAPS_LEVEL = 0.97, 0.90
"""Shares of the highest score: above the first a driver is level, between them when it won a round."""


@dataclass(frozen=True)
class Auto:
    """What `--aio auto` chooses."""

    driver: str
    reason: str
    writer: str = ""
    """The driver of writes, where it is another one."""

    def of(self, workload: Workload) -> str:
        """The driver that serves a workload."""
        return self.writer if self.writer and workload.op is Op.WRITE else self.driver


@dataclass(frozen=True)
class Verdict:
    """What the numbers say."""

    scores: dict[str, float]
    """By driver, 0 .. 1, the best first."""
    level: tuple[str, ...]
    """The drivers that are not clearly slower than the best one, and that one."""
    recommended: str
    why: str
    auto: str
    auto_reason: str
    agrees: bool | None
    """auto's driver is the recommended one, or level with it; None when it was not measured."""
    slower: float | None
    """By how much auto's driver is slower than the recommended one over all cells, as a share; negative:
    faster. None when it was not measured."""
    slower_by_workload: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries."""
        return asdict(self)


def auto_choice(path: Path, cache: CacheMode | None = None) -> Auto:
    """What `--aio auto` would use for this image, and its reason."""
    decision = probe.probe(path, cache).decision
    return Auto(decision.driver, decision.reason, "threads" if decision.writes_by_threads else "")


def judge(results: Results, auto: Auto) -> Verdict:
    """The verdict over everything in `results`, which holds at least one cell."""
    scores = dict(sorted(_scores(results).items(), key=lambda item: -item[1]))
    best = next(iter(scores))
    level = tuple(
        driver for driver in scores if _is_level(results, driver, best, scores[driver] / scores[best])
    )
    recommended = min(level, key=lambda driver: _cpu_us(results, driver))
    measured = all(auto.of(workload) in scores for workload in results.workloads())
    by_workload = {
        workload.name: _slower(results, auto, recommended, [workload.name])
        for workload in results.workloads()
        if measured
    }
    slower = _slower(results, auto, recommended, list(by_workload)) if measured else None
    agrees = slower is not None and (slower <= 1 - LEVEL or (auto.driver in level and not auto.writer))
    return Verdict(
        scores=scores,
        level=level,
        recommended=recommended,
        why=_why(results, best, recommended, level),
        auto=auto.driver,
        auto_reason=auto.reason,
        agrees=agrees if measured else None,
        slower=slower,
        slower_by_workload=by_workload,
    )


def _why(results: Results, best: str, recommended: str, level: Sequence[str]) -> str:
    if recommended == best:
        others = [driver for driver in level if driver != best]
        return "the most IOPS" + (f", and less CPU time than {' and '.join(others)}" if others else "")
    ours, theirs = _cpu_us(results, recommended), _cpu_us(results, best)
    return f"level with {best} in IOPS, at less CPU time: {ours:.1f} instead of {theirs:.1f} us per request"


def _cells(results: Results) -> list[tuple[str, int]]:
    return [(workload.name, depth) for workload in results.workloads() for depth in results.depths()]


def _scores(results: Results) -> dict[str, float]:
    shares: dict[str, list[float]] = {driver: [] for driver in results.drivers()}
    for workload, depth in _cells(results):
        iops = {driver: results.median(driver, workload, depth, "iops") for driver in shares}
        for driver, share in shares.items():
            share.append(iops[driver] / max(iops.values()))
    return {driver: _mean(share) for driver, share in shares.items()}


def _is_level(results: Results, driver: str, best: str, share: float) -> bool:
    """`share`: its score as a share of the best one's."""
    if share >= LEVEL:
        return True
    rounds: dict[int, list[float]] = {}
    for workload, depth in _cells(results):
        pairs = zip(results.of(driver, workload, depth), results.of(best, workload, depth), strict=True)
        for ours, theirs in pairs:
            rounds.setdefault(ours.round, []).append(ours.iops / theirs.iops)
    return share >= PERHAPS_LEVEL and any(_mean(ratios) >= 1 for ratios in rounds.values())


def _slower(results: Results, auto: Auto, than: str, workloads: Sequence[str]) -> float:
    ratios = [
        results.median(auto.of(workload), workload.name, depth, "iops")
        / results.median(than, workload.name, depth, "iops")
        for workload in results.workloads()
        for depth in results.depths()
        if workload.name in workloads
    ]
    return 1 - _mean(ratios)


def _cpu_us(results: Results, driver: str) -> float:
    return _mean([results.median(driver, workload, depth, "cpu_us") for workload, depth in _cells(results)])


def _mean(values: Sequence[float]) -> float:
    """Geometric: a driver that is twice as fast here and half as fast there is level."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))
