"""What is run to answer the claims, beside the plan of `aiofs bench`. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from aiofs.dataplane import Op

BLOCK = 4096
DEPTH = 32


class File(enum.Enum):
    """What is under an I/O."""

    ALLOCATED = "O_DIRECT, written before"
    HOLES = "O_DIRECT, holes"
    GROWING = "O_DIRECT, empty: each write makes it longer"
    BUFFERED = "buffered, not in the cache"


@dataclass(frozen=True)
class Cell:
    """One thing that is measured once in each round; 4 KiB."""

    claim: str
    """The part of `claims` that it is for."""
    driver: str
    file: File = File.ALLOCATED
    op: Op = Op.READ
    random: bool = True
    depth: int = DEPTH
    merge: bool = False
    one_descriptor: bool = False
    """`posix` only: without its duplicates, as a program does that opens a file once."""


def cells() -> Iterator[Cell]:
    """All of them."""
    yield from _one_descriptor()
    yield from _blocking()
    yield from _merging()


def _one_descriptor() -> Iterator[Cell]:
    yield Cell("descriptor", "sync")
    yield Cell("descriptor", "posix", one_descriptor=True)
    yield Cell("descriptor", "posix")


def _blocking() -> Iterator[Cell]:
    for driver in ("linux", "io_uring"):
        yield Cell("blocking", driver)
        yield Cell("blocking", driver, op=Op.WRITE)
        yield Cell("blocking", driver, File.HOLES, Op.WRITE)
        yield Cell("blocking", driver, File.GROWING, Op.WRITE, random=False)
        yield Cell("blocking", driver, File.BUFFERED)


def _merging() -> Iterator[Cell]:
    for driver in ("io_uring", "linux", "threads", "posix", "sync"):
        for op in (Op.READ, Op.WRITE):
            for merge in (False, True):
                yield Cell("merging", driver, op=op, random=False, merge=merge)
