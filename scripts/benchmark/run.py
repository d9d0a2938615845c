"""The order of things: round by round all is mounted, then workload by workload, target by target."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .image import settle
from .places import prepared
from .processes import TargetError, cpu_s, undisturbed
from .results import Cell
from .targets import Lab, Served, Target
from .workloads import Reading, Workload, fio_command, read_fio


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    targets: Sequence[Target]
    workloads: Sequence[Workload]
    rounds: int
    runtime_s: float
    engine: str
    full: bool = False
    """Also the cells in which nothing is expected: not merging, in random workloads."""

    def order(self, round_number: int) -> list[tuple[Workload, Target]]:
        """The cells of one round: by workload, the targets of each in an order of its own.

        Neighbours influence each other (the host may still be writing what the one before wrote), so nobody
        may always follow the same target. The shuffle has a seed: a run can be repeated.
        """
        return [(w, t) for w in self.workloads for t in self._shuffled(w, round_number)]

    def _shuffled(self, workload: Workload, round_number: int) -> list[Target]:
        wanted = [t for t in self.targets if self._measures(t, workload)]
        random.Random(f"{workload.name} {round_number}").shuffle(wanted)
        return wanted

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
    for workload, target in plan.order(round_number):
        if target.name not in served:
            continue
        try:
            cell = _one(plan, lab, workload, target, served[target.name], round_number)
        except (TargetError, OSError, ValueError, KeyError) as error:
            tell(f"{target.name}, {workload.name}: {error}")
            continue
        tell(f"round {round_number + 1}  {workload.name:20} {target.name:26} {cell.iops:10,.0f} IOPS")
        yield cell


def _one(plan: Plan, lab: Lab, workload: Workload, target: Target, served: Served, round_number: int) -> Cell:
    def fio(path: Path, size: int) -> list[str]:
        return fio_command(
            workload,
            path,
            size=size,
            runtime_s=plan.runtime_s,
            engine=plan.engine,
            seed=round_number + 1,  # the same offsets for all targets, other ones in the next round
        )

    settle(lab.image)
    with prepared(target.place, served.path, lab.size, lab.directory, fio) as command:
        reading, used_s = _fio(command, served.pids, plan.runtime_s + 60)
    return Cell(
        target.name, workload.name, round_number,
        reading.iops, reading.bytes_per_s, reading.latency_us,
        used_s * 1e6 / reading.ios if served.pids else None,
    )  # fmt: skip


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
