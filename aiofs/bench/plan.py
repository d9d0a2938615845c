"""What is measured, and in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..dataplane import Op


@dataclass(frozen=True)
class Workload:
    """One way to use an image."""

    name: str
    """fio's word for it."""
    title: str
    op: Op
    random: bool


WORKLOADS = (
    Workload("randread", "random read", Op.READ, True),
    Workload("read", "sequential read", Op.READ, False),
    Workload("randwrite", "random write", Op.WRITE, True),
    Workload("write", "sequential write", Op.WRITE, False),
)


@dataclass(frozen=True)
class Cell:
    """What is measured once in each round."""

    driver: str
    workload: Workload
    depth: int


@dataclass(frozen=True)
class Plan:
    """One run."""

    drivers: Sequence[str]
    workloads: Sequence[Workload]
    depths: Sequence[int]
    """Requests in flight."""
    block_size: int
    """Bytes of a request."""
    rounds: int
    runtime_s: float
    """Seconds that count in each cell; a quarter as much comes before and does not count."""
    seed: int
    merge: bool = False

    @property
    def warm_up_s(self) -> float:
        """Seconds for threads to be started and for queues to fill."""
        return self.runtime_s / 4

    def cells(self) -> list[Cell]:
        """Every combination, in the order in which they are shown."""
        return [Cell(d, w, depth) for w in self.workloads for depth in self.depths for d in self.drivers]

    def order(self, round_number: int) -> list[Cell]:
        """The cells of one round, shuffled by the seed and the round.

        Neighbours influence each other (a disk may still be busy with what was written before), so nobody may
        always follow the same one.
        """
        cells = self.cells()
        random.Random(f"{self.seed} {round_number}").shuffle(cells)
        return cells

    def order_cells(self) -> Iterator[tuple[str, int]]:
        """Driver and depth of each look at the order of sequential writes; one request alone has no order."""
        if any(w.op is Op.WRITE and not w.random for w in self.workloads):
            yield from ((driver, depth) for driver in self.drivers for depth in self.depths if depth > 1)

    def offsets_seed(self, round_number: int) -> int:
        """The same offsets for all drivers of a round, other ones in the next."""
        return self.seed * 1000 + round_number
