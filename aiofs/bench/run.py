"""Runs a plan: round by round, cell by cell, nothing else meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from ..dataplane import Op
from ..dataplane.measure import Load, Measurement, Stop, measure
from ..errors import AiofsError
from .order import disorder, numbers_in
from .plan import Cell, Plan
from .results import OrderSample, Results, Sample
from .scratch import NoScratch

ORDER_BLOCK = 4096
ORDER_BLOCKS = 2048
"""One look at the order: 8 MiB."""


@dataclass(frozen=True)
class Target:
    """What a kind of cell runs on."""

    fd: int
    size: int
    """Bytes, from the start of the file."""
    name: str
    """For messages."""
    buffered: bool


@dataclass(frozen=True)
class Targets:
    """What there is to run on; None: such cells were left out of the plan."""

    read: Target
    write: Target | None
    append: Callable[[], int] | None
    """A new empty file, opened with O_APPEND; its descriptor is the caller's to close."""

    def of(self, op: Op) -> Target | None:
        """For cells of this kind."""
        return self.read if op is Op.READ else self.write


SIGNAL_WITHIN_S = 1.0
"""How late a signal may be noticed that comes just as the wait for a cell begins."""


class Watcher(Protocol):
    """Who is told how far the run is."""

    def step(self, words: str) -> None: ...


class Failed(AiofsError):
    """An I/O of a cell failed, or a driver did."""


def run(plan: Plan, targets: Targets, results: Results, watcher: Watcher) -> None:
    """Fill `results`. Failed when an I/O fails; at Ctrl-C those in flight are waited for first."""
    for round_number in range(plan.rounds):
        for cell in plan.order(round_number):
            watcher.step(f"{cell.workload.title}, depth {cell.depth}, {cell.driver}")
            if target := targets.of(cell.workload.op):
                results.samples.append(_sample(plan, cell, target, round_number))
        for driver, depth in plan.order_cells():
            watcher.step(f"order of sequential writes, depth {depth}, {driver}")
            if targets.append and (look := _look(driver, depth, round_number, targets.append, results)):
                results.order.append(look)


def steps(plan: Plan) -> int:
    """How often a run of this plan calls Watcher.step."""
    return plan.rounds * (len(plan.cells()) + len(list(plan.order_cells())))


def measured(driver: str, fd: int, load: Load, name: str) -> Measurement:
    """One cell, in a thread of its own, so that a signal reaches Python meanwhile: it then stops the cell.

    Failed when an I/O failed, with `name` for the file.
    """
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(measure, driver, fd, load, stop)
            # Python notes a signal and acts on it later: between its last look at the note and the sleep is a
            # moment in which one does not interrupt, so no sleep is for good.
            while not wait([running], SIGNAL_WITHIN_S).done:
                pass
            done = running.result()
        except OSError as error:
            raise Failed(
                f"driver {driver} does not open at depth {load.depth}: {os.strerror(error.errno or 0)}; "
                "'aiofs drivers' says whether it works, --drivers leaves it out"
            ) from None
        except BaseException:
            stop.set()  # leaving the pool waits for its end
            raise
    if done.errors:
        raise Failed(_failure(driver, load, done, name))
    return done


def _failure(driver: str, load: Load, done: Measurement, name: str) -> str:
    short = done.error == -errno.ENODATA
    why = "fewer bytes than asked for" if short else os.strerror(-done.error)
    verb = "reading" if load.op is Op.READ else "writing"
    hint = "; free some space" if done.error in (-errno.ENOSPC, -errno.EDQUOT) else ""
    return f"{verb} {name} through {driver} at depth {load.depth}: {why}{hint}"


def _sample(plan: Plan, cell: Cell, target: Target, round_number: int) -> Sample:
    _settle(target, cell.workload.op)
    load = Load(
        op=cell.workload.op,
        depth=cell.depth,
        block_size=plan.block_size,
        end=target.size,
        random=cell.workload.random,
        merge=plan.merge,
        warm_up_s=plan.warm_up_s,
        duration_s=plan.runtime_s,
        seed=plan.offsets_seed(round_number),
    )
    done = measured(cell.driver, target.fd, load, target.name)
    return sample(cell, plan.block_size, round_number, done)


def sample(cell: Cell, block_size: int, round_number: int, done: Measurement) -> Sample:
    """A measurement in the units of the tables."""
    requests = max(1, done.requests)
    iops = done.requests / done.elapsed_ns * 1e9
    return Sample(
        driver=cell.driver,
        workload=cell.workload.name,
        depth=cell.depth,
        round=round_number,
        iops=iops,
        bytes_per_s=iops * block_size,
        p50_us=done.p50_ns / 1000,
        p99_us=done.p99_ns / 1000,
        cpu_us=done.cpu_ns / 1000 / requests,
        switches=done.switches / requests,
        submit_us=done.submit_ns / 1000 / max(1, done.submits),
        submit_max_us=done.submit_max_ns / 1000,
    )


def _settle(target: Target, op: Op) -> None:
    """What the cell before left to do is done first; buffered reads begin without pages in the cache."""
    if op is Op.WRITE:
        os.fdatasync(target.fd)
    if target.buffered:
        os.posix_fadvise(target.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _look(
    driver: str, depth: int, round_number: int, append: Callable[[], int], results: Results
) -> OrderSample | None:
    """One look at the order (order.py); None, with a note, where the file system does not allow it."""
    load = Load(
        op=Op.WRITE,
        depth=depth,
        block_size=ORDER_BLOCK,
        end=ORDER_BLOCKS * ORDER_BLOCK,
        numbered=True,
        count=ORDER_BLOCKS,
    )
    try:
        fd = append()
        try:
            measured(driver, fd, load, "the temporary file")
            found = disorder(numbers_in(fd, ORDER_BLOCK))
        finally:
            os.close(fd)
    except (NoScratch, ValueError) as error:
        note = f"the order of sequential writes was not looked at: {error}"
        if note not in results.notes:
            results.notes.append(note)
        return None
    return OrderSample(driver, depth, round_number, found.late, found.displacement)
