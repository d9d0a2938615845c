"""From the numbers to a sentence and a verdict for each claim. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiofs.bench.plan import Workload
from aiofs.bench.results import Results
from aiofs.dataplane import Op
from aiofs.dataplane.measure import Measurement

from .cells import DEPTH, File, cells
from .lab import Taken

WITHIN = 0.90
"""'Within 10 %.'"""
FEW_US = 10.0
"""More than this is not 'a few microseconds'."""
SERIAL = 1.1
"""32 requests that are served no faster than this times one at a time are not served in parallel."""
BLOCKING_SLEEPS = 0.1
"""Sleeps inside submit per request from which on it blocks; DESIGN.md, "--aio auto", test 6."""
FAIR_BIT = 1.2
"""A gain from which on merging 'helps a fair bit'."""
IN_ORDER = 0.01


@dataclass(frozen=True)
class Claim:
    """A row of the table."""

    said: str
    measured: str
    verdict: str


def claims(results: Results, taken: Sequence[Taken]) -> list[Claim]:
    """All of them, in the order of the thread."""
    return [
        _pool(results),
        _posix(results),
        _descriptor(taken),
        _order(results),
        _blocks(taken),
        _merge(taken),
    ]


def _pool(results: Results) -> Claim:
    ratios = {
        (workload, depth): _ratio(results, "threads", "linux", workload, depth)
        for workload in results.workloads()
        for depth in results.depths()
    }
    near = [workload.random for (workload, _), ratio in ratios.items() if ratio >= WITHIN]
    rows = ", ".join(
        f"{workload.title} {_join(ratios[workload, depth] for depth in results.depths())}"
        for workload in results.workloads()
    )
    depths = ", ".join(map(str, results.depths()))
    half = len(ratios) // 2
    return Claim(
        "a simple thread pool could come within 10 % of Linux AIO for most workloads",
        f"threads / linux, IOPS at depths {depths}: {rows}; CPU time per request at depth {DEPTH}: "
        f"{_cpu(results, 'threads'):.0f} us, linux {_cpu(results, 'linux'):.0f}",
        f"{'true' if len(near) > half else 'false'}: random {sum(near)} of {half}, "
        f"sequential {len(near) - sum(near)} of {half}",
    )


def _ratio(results: Results, ours: str, theirs: str, workload: Workload, depth: int) -> float:
    """Of the IOPS, paired by round, then the median."""
    pairs = zip(results.of(ours, workload.name, depth), results.of(theirs, workload.name, depth), strict=True)
    return statistics.median(a.iops / b.iops for a, b in pairs)


def _cpu(results: Results, driver: str) -> float:
    return statistics.median(
        results.median(driver, workload.name, DEPTH, "cpu_us") for workload in results.workloads()
    )


def _posix(results: Results) -> Claim:
    more: dict[str, list[float]] = {"linux": [], "threads": []}
    for other, differences in more.items():
        for workload in results.workloads():
            latency = {d: results.median(d, workload.name, 1, "p50_us") for d in ("posix", other)}
            differences.append(latency["posix"] - latency[other])
    linux, threads = (statistics.median(more[other]) for other in ("linux", "threads"))
    verdict = "true" if linux <= FEW_US else "true, and more than a few"
    return Claim(
        "posix aio adds a few microseconds per request",
        f"median latency at depth 1: {linux:+.0f} us over linux, {threads:+.0f} us over threads "
        "(glibc tells of a completion by starting a thread)",
        verdict if linux > 0 else "false: it adds none",
    )


def _descriptor(taken: Sequence[Taken]) -> Claim:
    def iops(driver: str, one: bool = False) -> float:
        return _median(
            taken,
            lambda t: (t.cell.claim, t.cell.driver, t.cell.one_descriptor) == ("descriptor", driver, one),
            _iops,
        )

    one, eight, serial = iops("posix", one=True), iops("posix"), iops("sync")
    return Claim(
        "glibc doesn't service multiple requests on a single fd in parallel",
        f"random reads, IOPS at depth {DEPTH}: posix {one:,.0f} on one descriptor, {eight:,.0f} on eight "
        f"duplicates of it; one request at a time (sync) {serial:,.0f}",
        "true" if one < SERIAL * serial else "false here",
    )


def _order(results: Results) -> Claim:
    deep = [depth for depth in results.depths() if depth >= DEPTH]

    def late(driver: str) -> list[float]:
        return [spread.median for depth in deep if (spread := results.late(driver, depth))]

    rows = "; ".join(f"{driver} {_join(late(driver), '.1%')}" for driver in results.drivers())
    kept = all(share < IN_ORDER for driver in ("linux", "io_uring") for share in late(driver))
    pool, glibc = max(late("threads")), max(late("posix"))
    verdict = "true of glibc's threads" if glibc >= IN_ORDER and kept else "false here"
    if pool >= IN_ORDER and kept:
        verdict = "true"
    elif kept and glibc >= IN_ORDER:
        verdict += ", hardly of a pool with one queue"
    return Claim(
        "threads reorder sequential streams where AIO keeps them",
        f"requests that reach the kernel after a later one, at depths {_join(deep, 'd')}: {rows}",
        verdict,
    )


def _blocks(taken: Sequence[Taken]) -> Claim:
    def of(driver: str, file: File, op: Op) -> tuple[float, float]:
        """Sleeps inside submit per request, and the share of all time spent there."""

        def wanted(t: Taken) -> bool:
            return t.cell.claim == "blocking" and (t.cell.driver, t.cell.file, t.cell.op) == (
                driver,
                file,
                op,
            )

        return (
            _median(taken, wanted, lambda m: m.submit_switches / m.requests),
            _median(taken, wanted, lambda m: m.submit_ns / m.elapsed_ns),
        )

    situations = {
        "O_DIRECT read": (File.ALLOCATED, Op.READ),
        "overwrite": (File.ALLOCATED, Op.WRITE),
        "write into holes": (File.HOLES, Op.WRITE),
        "write to a growing file": (File.GROWING, Op.WRITE),
        "buffered read": (File.BUFFERED, Op.READ),
    }
    found = {name: (of("linux", *what), of("io_uring", *what)) for name, what in situations.items()}
    rows = ", ".join(f"{name} {linux[0]:.2f} / {ring[0]:.2f}" for name, (linux, ring) in found.items())
    shares = _join((linux[1] for linux, _ in found.values()), ".0%")
    blocks = [name for name, (linux, _) in found.items() if linux[0] >= BLOCKING_SLEEPS]
    return Claim(
        "io_submit blocks on buffered and on sparse files",
        f"sleeps inside submit per request at depth {DEPTH}, linux / io_uring: {rows}; share of linux's time "
        f"spent there: {shares}",
        f"true of: {', '.join(blocks)}" if blocks else "false here",
    )


def _merge(taken: Sequence[Taken]) -> Claim:
    gains: dict[str, list[float]] = {}
    for driver in dict.fromkeys(cell.driver for cell in cells() if cell.claim == "merging"):
        for op in (Op.READ, Op.WRITE):
            by_round: dict[int, dict[bool, float]] = {}
            for t in taken:
                if t.cell.claim == "merging" and (t.cell.driver, t.cell.op) == (driver, op):
                    by_round.setdefault(t.round, {})[t.cell.merge] = _iops(t.measurement)
            gains.setdefault(driver, []).append(
                statistics.median(both[True] / both[False] for both in by_round.values())
            )
    rows = "; ".join(f"{driver} {_join(gain)}" for driver, gain in gains.items())
    helped = [driver for driver, gain in gains.items() if statistics.mean(gain) >= FAIR_BIT]
    return Claim(
        "the back-end can merge adjacent requests. This also helps a fair bit",
        f"4 KiB sequential, depth {DEPTH}, merged / not merged, IOPS of reads and of writes: {rows}",
        "true" if len(helped) == len(gains) else f"true of: {', '.join(helped)}" if helped else "false here",
    )


def _iops(m: Measurement) -> float:
    return m.requests / m.elapsed_ns * 1e9


def _median(
    taken: Sequence[Taken], wanted: Callable[[Taken], bool], value: Callable[[Measurement], float]
) -> float:
    return statistics.median(value(t.measurement) for t in taken if wanted(t))


def _join(values: Iterable[float], form: str = ".2f") -> str:
    return ", ".join(format(value, form) for value in values)


def markdown(found: Sequence[Claim]) -> str:
    """The table of the README."""
    rows = [f"| {claim.said} | {claim.measured} | {claim.verdict} |" for claim in found]
    return "\n".join(["| said in 2008 | measured | verdict |", "| --- | --- | --- |", *rows])
