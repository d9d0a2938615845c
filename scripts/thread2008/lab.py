"""Runs everything on temporary files without a name in one directory."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from aiofs.bench import machine, scratch
from aiofs.bench.plan import WORKLOADS, Plan
from aiofs.bench.results import Results
from aiofs.bench.run import Target, Targets, measured, run
from aiofs.dataplane.measure import Load, Measurement
from aiofs.source import Source

from .cells import BLOCK, Cell, File, cells

DRIVERS = ("io_uring", "linux", "threads", "posix")
DEPTHS = (1, 4, 32, 128)


@dataclass(frozen=True)
class Settings:
    """How long and how often."""

    directory: Path
    size: int
    """Bytes of the file."""
    rounds: int
    runtime_s: float
    seed: int


@dataclass(frozen=True)
class Taken:
    """A cell in one round."""

    cell: Cell
    round: int
    measurement: Measurement


class Lab:
    """The files, and what is run on them; a context manager. NoScratch where there is no room."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._size = scratch.size_for(settings.directory, settings.size)
        self._stack = ExitStack()
        self._direct = -1
        self._buffered = -1

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            directory = self._settings.directory
            self._tell(f"writing {self._size // scratch.MIB} MiB in {directory}")
            self._direct = scratch.create(directory, os.O_DIRECT)
            stack.callback(os.close, self._direct)
            scratch.fill(self._direct, self._size, f"in {directory}")
            self._buffered = os.open(f"/proc/self/fd/{self._direct}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, self._buffered)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def compare(self) -> Results:
        """The drivers, as `aiofs bench` compares them."""
        settings = self._settings
        plan = Plan(DRIVERS, WORKLOADS, DEPTHS, BLOCK, settings.rounds, settings.runtime_s, settings.seed)
        target = Target(self._direct, self._size, "the temporary file", buffered=False)
        append = functools.partial(scratch.create, settings.directory, os.O_APPEND)
        results = Results(
            "a temporary file",
            self._size,
            _filesystem(settings.directory),
            "none",
            {"drivers": list(DRIVERS)},
            machine.facts(),
        )
        run(plan, Targets(target, target, append), results, self)
        return results

    def step(self, words: str) -> None:
        """A cell of `compare` begins; there are hundreds."""

    def take(self) -> Iterator[Taken]:
        """Every cell of cells.py, round by round, shuffled."""
        for number in range(self._settings.rounds):
            self._tell(f"round {number + 1} of {self._settings.rounds}")
            order = list(cells())
            random.Random(f"{self._settings.seed} {number}").shuffle(order)
            for cell in order:
                yield Taken(cell, number, self._measure(cell, number))

    def _measure(self, cell: Cell, number: int) -> Measurement:
        settings = self._settings
        load = Load(
            op=cell.op,
            depth=cell.depth,
            block_size=BLOCK,
            end=self._size,
            random=cell.random,
            merge=cell.merge,
            watch=cell.claim == "blocking",
            warm_up_s=settings.runtime_s / 4,
            duration_s=settings.runtime_s,
            seed=settings.seed * 1000 + number,
        )
        lone = one_descriptor() if cell.one_descriptor else contextlib.nullcontext()
        with self._file(cell.file) as fd, lone:
            return measured(cell.driver, fd, load, "the temporary file")

    @contextlib.contextmanager
    def _file(self, kind: File) -> Iterator[int]:
        if kind in (File.HOLES, File.GROWING):
            with self._new_file(self._size if kind is File.HOLES else 0) as fd:
                yield fd
            return
        os.fdatasync(self._direct)
        if kind is File.BUFFERED:
            os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_DONTNEED)
        yield self._direct if kind is File.ALLOCATED else self._buffered

    @contextlib.contextmanager
    def _new_file(self, size: int) -> Iterator[int]:
        """Another one each time: what was written is no hole any more."""
        fd = scratch.create(self._settings.directory, os.O_DIRECT)
        try:
            os.ftruncate(fd, size)
            yield fd
        finally:
            os.close(fd)


def _filesystem(directory: Path) -> str:
    source = Source.open(directory, read_only=True)
    try:
        return source.filesystem()
    finally:
        source.close()


@contextlib.contextmanager
def one_descriptor() -> Iterator[None]:
    """`posix` attaches no duplicates in here.

    It leaves half of RLIMIT_NOFILE to the rest of the process, so a limit of twice the lowest free number
    leaves it none, and everybody else enough.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    # The queue opens its own three (epoll, events) before that; they fit between the half and the whole.
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
