"""The order of things: round by round all is mounted, then workload by workload the targets take turns."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from .image import settle
from .places import Fio, prepared
from .processes import TargetError, cpu_s, undisturbed
from .results import Cell, Run
from .targets import Lab, Served, Target
from .workloads import Reading, Workload, fio_command, read_fio

SLICES = 5
"""A cell is cut into so many short runs, which take turns with those of the other targets."""


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    targets: Sequence[Target]
    workloads: Sequence[Workload]
    rounds: int
    runtime_s: float
    """Of a cell, all its slices together."""
    engine: str
    full: bool = False
    """Also the cells in which nothing is expected: not merging, in random workloads."""

    def order(self, workload: Workload, round_number: int) -> list[list[Target]]:
        """Who is measured in one workload of one round: the targets of each slice, in an order of its own.

        A shared machine is faster or slower for seconds at a time. Short turns let all targets have the
        same seconds. Neighbours influence each other (the host may still be writing what the one before
        wrote), so nobody may always follow the same target. The shuffle has a seed: a run can be repeated.
        """
        wanted = [t for t in self.targets if self._measures(t, workload)]
        slices = range(SLICES if workload.place.in_turns else 1) if wanted else ()
        return [self._shuffled(wanted, f"{workload.name} {round_number} {number}") for number in slices]

    @staticmethod
    def _shuffled(targets: list[Target], seed: str) -> list[Target]:
        return random.Random(seed).sample(targets, len(targets))

    def _measures(self, target: Target, workload: Workload) -> bool:
        if target.place is not workload.place:
            return False
        return self.full or workload.sequential or not target.sequential_only


@contextlib.contextmanager
def serve_all(
    targets: Sequence[Target], lab: Lab, tell: Callable[[str], None]
) -> Iterator[dict[str, Served]]:
    """Every target that works here, by name; the others are told with their reason and left out.

    For one round only. A server keeps its memory for life, and where that lies in the machine's memory can
    make it twice as fast as its neighbour (seen on virtual machines, with identical servers); a new one in
    each round makes that a matter of spread instead of a verdict.
    """
    stack = contextlib.ExitStack()
    served: dict[str, Served] = {}
    try:
        for target in targets:
            try:
                served[target.name] = stack.enter_context(target.serve(lab))
            except (TargetError, OSError) as error:
                tell(f"{target.name} is left out: {error}")
        yield served
    finally:
        with undisturbed():
            stack.close()


def measure(plan: Plan, lab: Lab, tell: Callable[[str], None]) -> Iterator[Cell]:
    """Run every cell in order; a cell that fails is told and left out."""
    with lab.written():
        for round_number in range(plan.rounds):
            with serve_all(plan.targets, lab, tell if round_number == 0 else _silent) as served:
                yield from _round(plan, lab, served, round_number, tell)


def _silent(_line: str) -> None:
    """A target that is left out is told once."""


def _round(
    plan: Plan, lab: Lab, served: dict[str, Served], round_number: int, tell: Callable[[str], None]
) -> Iterator[Cell]:
    for workload in plan.workloads:
        for name, runs in _in_turns(plan, lab, workload, served, round_number, tell).items():
            cell = Cell.of(name, workload.name, round_number, runs)
            tell(f"round {round_number + 1}  {workload.name:20} {name:26} {cell.iops:10,.0f} IOPS")
            yield cell


def _in_turns(
    plan: Plan, lab: Lab, workload: Workload, served: dict[str, Served], round_number: int,
    tell: Callable[[str], None],
) -> dict[str, list[Run]]:  # fmt: skip
    """All slices of the targets that are served, without those that failed in one of them."""
    slices = plan.order(workload, round_number)
    runs: dict[str, list[Run]] = {t.name: [] for t in (slices or [[]])[0] if t.name in served}
    for number, targets in enumerate(slices):
        fio = partial(
            fio_command,
            workload,
            runtime_s=plan.runtime_s / len(slices),
            engine=plan.engine,
            seed=round_number * SLICES
            + number
            + 1,  # all have the same offsets, and others in the next slice
        )
        for target in (target for target in targets if target.name in runs):
            try:
                run = _one(lab, target, served[target.name], fio, plan.runtime_s + 60)
                runs[target.name].append(run)
            except (TargetError, OSError, ValueError, KeyError) as error:
                tell(f"{target.name}, {workload.name}: {error}")
                del runs[target.name]
    return runs


def _one(lab: Lab, target: Target, served: Served, fio: Fio, timeout_s: float) -> Run:
    settle(lab.image)
    with prepared(target.place, served.path, lab.size, lab.directory, fio) as command:
        reading, used_s = _fio(command, served.pids, timeout_s)
    return Run(reading, used_s if served.pids else None)


def _fio(command: list[str], pids: list[int], timeout_s: float) -> tuple[Reading, float]:
    """What fio says, and the seconds of CPU time that the processes used while it ran."""
    before = cpu_s(pids)
    # A session of its own: Ctrl-C ends fio through us, see below.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as fio:  # fmt: skip
        try:
            output, errors = fio.communicate(timeout=timeout_s)
        except BaseException as error:
            fio.terminate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TargetError(f"fio did not end {error.timeout:.0f} s after its start") from None
            raise
    if fio.returncode != 0:
        raise TargetError(f"fio: {(errors or output).strip()}")
    return read_fio(output), cpu_s(pids) - before
