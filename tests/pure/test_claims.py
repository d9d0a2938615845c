"""scripts/claims: verdicts from made-up numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from aiofs.bench.plan import WORKLOADS
from aiofs.bench.results import OrderSample, Results, Sample
from aiofs.dataplane.measure import Measurement

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from thread2008.cells import File, cells
from thread2008.claims import Claim, claims, markdown
from thread2008.lab import DEPTHS, DRIVERS, Taken


def drivers(threads: float, posix_us: float, late: float) -> Results:
    """linux: 1,000 IOPS at 50 us; threads: a share of that; posix: latency and late share as given."""
    results = Results("", 0, "", "", {"drivers": list(DRIVERS)}, {})
    for number in range(3):
        for driver in DRIVERS:
            iops = 1000.0 * (threads if driver == "threads" else 1.0)
            latency = posix_us if driver == "posix" else 50.0
            for depth in DEPTHS:
                for workload in WORKLOADS:
                    results.samples.append(
                        Sample(driver, workload.name, depth, number, iops, 0, latency, 0, 3, 1, 1, 1)
                    )
                share = late if driver == "posix" else 0.0
                results.order.append(OrderSample(driver, depth, number, share, 1))
    return results


def taken(one: int = 1000, blocking: tuple[File, ...] = (), merge_gain: float = 2.0) -> Iterator[Taken]:
    """sync does 1,000 IOPS, posix on one descriptor `one`; `linux` sleeps once per request in `blocking`."""
    for cell in cells():
        iops = one if cell.one_descriptor else 4000 if cell.driver == "posix" else 1000
        if cell.merge:
            iops = int(iops * merge_gain)
        sleeps = iops if cell.driver == "linux" and cell.file in blocking else 0
        yield Taken(cell, 0, measurement(iops, sleeps))


def measurement(requests: int, sleeps: int) -> Measurement:
    """One second."""
    zeros = dict.fromkeys(Measurement.__dataclass_fields__, 0)
    changed = {"requests": requests, "elapsed_ns": 10**9, "submit_switches": sleeps, "submits": requests}
    return Measurement(**{**zeros, **changed})


def verdicts(results: Results, more: Iterator[Taken]) -> list[str]:
    """In the order of the table."""
    return [claim.verdict for claim in claims(results, list(more))]


def test_claims_that_hold_are_true() -> None:
    """A pool at 95 %, posix 8 us slower, serial and late, merging doubles."""
    found = verdicts(drivers(0.95, 58, 0.5), taken(blocking=(File.BUFFERED, File.HOLES)))
    assert found == [
        "true: random 8 of 8, sequential 8 of 8",
        "true",
        "true",
        "true of glibc's threads, hardly of a pool with one queue",
        "true of: write into holes, buffered read",
        "true",
    ]


def test_claims_that_do_not_hold_are_false() -> None:
    """A pool at half, posix as fast, parallel and in order, nothing blocks, merging gains nothing."""
    found = verdicts(drivers(0.5, 50, 0.0), taken(one=3000, merge_gain=1.0))
    assert found == [
        "false: random 0 of 8, sequential 0 of 8",
        "false: it adds none",
        "false here",
        "false here",
        "false here",
        "false here",
    ]


def test_more_than_a_few_is_said() -> None:
    """30 us."""
    assert verdicts(drivers(0.9, 80, 0.1), taken())[1] == "true, and more than a few"


def test_the_table_has_a_row_for_each_claim() -> None:
    """As markdown."""
    rows = markdown([Claim("a", "b", "c"), Claim("d", "e", "f")]).splitlines()
    assert rows[1:] == ["| --- | --- | --- |", "| a | b | c |", "| d | e | f |"]


def test_blocking_is_measured_in_every_situation_for_both() -> None:
    """What one driver is asked, the other is asked too."""
    asked = {(c.driver, c.file, c.op) for c in cells() if c.claim == "blocking"}
    assert {a[1:] for a in asked if a[0] == "linux"} == {a[1:] for a in asked if a[0] == "io_uring"}
    assert {cell.file for cell in cells()} == set(File)
