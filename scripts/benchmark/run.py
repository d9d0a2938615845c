"""The order of things: all mounted at once, then round by round, workload by workload, target by target."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .processes import TargetError, cpu_s
from .results import Cell
from .targets import Lab, Served, Target
from .workloads import Workload, fio_command, read_fio


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    targets: Sequence[Target]
    workloads: Sequence[Workload]
    rounds: int
    runtime_s: float
    engine: str

    def order(self, round_number: int) -> list[tuple[Workload, Target]]:
        """The cells of one round; each round begins with another target."""
        turn = round_number % max(len(self.targets), 1)
        turned = [*self.targets[turn:], *self.targets[:turn]]
        return [(w, t) for w in self.workloads for t in turned if t.on_loop == w.on_loop]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait: used while things are taken down."""
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


@contextlib.contextmanager
def serve_all(
    targets: Sequence[Target], lab: Lab, tell: Callable[[str], None]
) -> Iterator[dict[str, Served]]:
    """Every target that works here, by name; the others are told with their reason and left out."""
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


def measure(plan: Plan, lab: Lab, served: dict[str, Served], tell: Callable[[str], None]) -> Iterator[Cell]:
    """Run every cell in order; a cell that fails is told and left out."""
    for round_number in range(plan.rounds):
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
    command = fio_command(
        workload,
        served.path,
        size=lab.size,
        runtime_s=plan.runtime_s,
        engine=plan.engine,
        seed=round_number + 1,  # the same offsets for all targets, other ones in the next round
    )
    before = cpu_s(served.pids)
    # A session of its own: Ctrl-C ends fio through us, see below.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as fio:  # fmt: skip
        try:
            output, errors = fio.communicate(timeout=plan.runtime_s + 60)
        except BaseException as error:
            fio.terminate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TargetError(f"fio did not end {error.timeout:.0f} s after its start") from None
            raise
    if fio.returncode != 0:
        raise TargetError(f"fio: {(errors or output).strip()}")
    reading = read_fio(output)
    used = (cpu_s(served.pids) - before) * 1e6 / reading.ios if served.pids else None
    return Cell(
        target.name, workload.name, round_number,
        reading.iops, reading.bytes_per_s, reading.latency_us, used,
    )  # fmt: skip
