"""What the exerciser does: operations as data, their text, and the random choice of the next ones.

A step is what is done at once: one operation, or several reads and writes on ranges that do not overlap. Its
text is a line (`write 4096 100 17 & read 4196 50`), and `parse` reads it back, so that what has been done can
be printed, shortened and done again. All choices come from one seed.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from allocation import KEEP_SIZE, PUNCH, ZERO_RANGE

MAX_SIZE = 2 << 20
IN_FLIGHT = 8
KILL_WITHIN_US = 5000
"""A server is killed while one of the next operations is in work: each takes 0.1 to 2 ms."""

NUMBERS = {
    "read": ("offset", "length"),
    "write": ("offset", "length", "seed"),
    "mapped_read": ("offset", "length"),
    "mapped_write": ("offset", "length", "seed"),
    "truncate": ("size",),
    "fallocate": ("mode", "offset", "length"),
    "seek": (),
    "fsync": (),
    "compare": (),
    "open": ("direct",),
    "kill": ("after_us",),
}
"""The operations and their numbers. `seed` is that of the bytes; `compare` is an fsync and a look at the file
underneath; `direct` is 0 or 1."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One of them."""

    name: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *map(str, self.numbers)))


Step = tuple[Operation, ...]


def as_line(step: Step) -> str:
    """Its text."""
    return " & ".join(map(str, step))


def parse(line: str) -> Step:
    """The step of a line; ValueError names what is not known."""
    step = []
    for text in line.split("&"):
        name, *numbers = text.split() or [""]
        if name not in NUMBERS:
            raise ValueError(f"operation '{name}' is not known; use {' '.join(NUMBERS)}")
        if len(numbers) != len(NUMBERS[name]) or not all(word.isdecimal() for word in numbers):
            raise ValueError(f"'{text.strip()}' does not read: {name} {' '.join(NUMBERS[name])}")
        step.append(Operation(name, tuple(map(int, numbers))))
    if len(step) > 1 and not {operation.name for operation in step} <= {"read", "write"}:
        raise ValueError(f"'{line.strip()}': only read and write can be done at once")
    return tuple(step)


class Workload:
    """One step after another."""

    def __init__(self, seed: int, *, direct: bool, kill_every: int = 0) -> None:
        """With `direct` every second open is one with O_DIRECT. Each `kill_every`th step kills the server; 0:
        none does."""
        self._random = random.Random(seed)
        self._may_be_direct = direct
        self._direct = False
        self._kill_every = kill_every
        self._count = 0
        self._data_seeds = itertools.count()

    _OPERATIONS = (
        ("read", 30),
        ("write", 30),
        ("burst", 14),
        ("mapped_read", 6),
        ("mapped_write", 4),
        ("truncate", 4),
        ("append", 3),
        ("punch", 4),
        ("zero", 3),
        ("allocate", 2),
        ("seek", 3),
        ("fsync", 2),
        ("reopen", 5),
    )
    _NAMES = tuple(name for name, _ in _OPERATIONS)
    _CUMULATED = tuple(itertools.accumulate(weight for _, weight in _OPERATIONS))

    def next(self, size: int) -> Step:
        """What to do next with a file of that many bytes."""
        self._count += 1
        if self._kill_every and self._count % self._kill_every == 0:
            return (Operation("kill", (self._random.randrange(KILL_WITHIN_US),)),)
        [name] = self._random.choices(self._NAMES, cum_weights=self._CUMULATED)
        step: Step = getattr(self, f"_{name}")(size)
        return step

    # -- where --

    def _length(self) -> int:
        """1 byte to 1 MiB, as many small as large ones, often whole sectors or pages."""
        length = int(2 ** self._random.uniform(0, 18 if self._random.random() < 0.97 else 20.5))
        unit = self._random.choice((1, 1, 512, 4096))
        return max(1, length // unit * unit)

    def _range(self, end: int) -> tuple[int, int]:
        """An offset below `end`, and a length that may cross `end`."""
        unit = self._random.choice((1, 1, 512, 4096))
        offset = self._random.randrange(max(1, end)) // unit * unit
        if self._random.random() < 0.1:
            offset = max(0, end - self._random.randrange(1, 5000))
        return offset, self._length()

    def _range_to_grow(self, size: int) -> tuple[int, int]:
        offset, length = self._range(min(MAX_SIZE - 1, size + 5000))
        return offset, min(length, MAX_SIZE - offset)

    # -- what --

    def _read(self, size: int) -> Step:
        return (Operation("read", self._range(size + 5000)),)

    def _write(self, size: int) -> Step:
        return (Operation("write", (*self._range_to_grow(size), next(self._data_seeds))),)

    def _append(self, size: int) -> Step:
        return (Operation("write", (size, min(self._length(), MAX_SIZE - size), next(self._data_seeds))),)

    def _burst(self, size: int) -> Step:
        """Reads and writes at once, on ranges that touch end to end: neighbours in a block, mergeable."""
        offset, _ = self._range(size or 1)
        small = self._random.random() < 0.7
        step = []
        for _ in range(self._random.randint(2, IN_FLIGHT)):
            length = self._random.randint(1, 6000) if small else self._length()
            length = min(length, MAX_SIZE - offset)
            if length and self._random.random() < 0.6:
                step.append(Operation("write", (offset, length, next(self._data_seeds))))
            elif length:
                step.append(Operation("read", (offset, length)))
            offset += length
        self._random.shuffle(step)
        return tuple(step) or self._seek(size)

    def _mapped_read(self, size: int) -> Step:
        return (Operation("mapped_read", self._range(size)),)

    def _mapped_write(self, size: int) -> Step:
        return (Operation("mapped_write", (*self._range(size), next(self._data_seeds))),)

    def _truncate(self, size: int) -> Step:
        new = self._random.randrange(MAX_SIZE)
        new = new if self._random.random() < 0.6 else new // 512 * 512
        if self._random.random() < 0.3:
            new = min(MAX_SIZE, max(0, size + self._random.randint(-5000, 5000)))
        return (Operation("truncate", (new,)),)

    def _punch(self, size: int) -> Step:
        return (Operation("fallocate", (PUNCH, *self._range(size + 5000))),)

    def _zero(self, size: int) -> Step:
        mode = ZERO_RANGE | self._random.choice((0, KEEP_SIZE))
        return (Operation("fallocate", (mode, *self._range_to_grow(size))),)

    def _allocate(self, size: int) -> Step:
        return (Operation("fallocate", (self._random.choice((0, KEEP_SIZE)), *self._range_to_grow(size))),)

    def _seek(self, _: int) -> Step:
        return (Operation("seek"),)

    def _fsync(self, _: int) -> Step:
        return (Operation("compare" if self._random.random() < 0.2 else "fsync"),)

    def _reopen(self, _: int) -> Step:
        self._direct = self._may_be_direct and not self._direct
        return (Operation("open", (int(self._direct),)),)
