"""Random work on one file of a mount, checked against a bytearray after every operation.

The idea is that of fsx: whatever the order of reads, writes, truncations, holes and re-opens, a file is its
bytes. This one also keeps several requests in flight at once, on ranges that touch but do not overlap, so
that neighbours share blocks and pages; and it may kill who serves the file while they are. workload.py
chooses what is done: the same seed does the same operations again. What fails is shortened (shrinking.py). It
knows nothing of aiofs; it works on any file system.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from allocation import KEEP_SIZE, data_ranges, fallocate
from shrinking import OutOfTime, shrunk
from workload import IN_FLIGHT, MAX_SIZE, Operation, Step, Workload, as_line, parse

REMEMBERED = 40
"""Operations that a failure tells about."""


class Mismatch(AssertionError):
    """The file is not what was written to it."""


def no_kill(after_s: float) -> None:
    """Of a file that nobody serves."""


@dataclass(frozen=True)
class Target:
    """A file to work on."""

    path: Path
    backing: Path
    """The same file underneath, looked at after an fsync."""
    direct: bool = True
    """Every second open is one with O_DIRECT, which must take unaligned requests."""
    kill: Callable[[float], None] = no_kill
    """Kills who serves it, so many seconds from now; returns at once."""

    @contextmanager
    def another(self, number: int) -> Iterator[Target]:
        """A new file beside it, served in the same way; removed at the end."""
        name = f"{self.path.name}.again{number}"
        made = replace(self, path=self.path.with_name(name), backing=self.backing.with_name(name))
        try:
            yield made
        finally:
            made.path.unlink(missing_ok=True)


def exercise(target: Target, seed: int, operations: int, *, kills: int = 0, patience_s: float = 60) -> None:
    """Do that many random operations, then compare the whole file from both sides, while who serves it is
    killed so often. Mismatch tells the seed, and a short list that fails as well if one is found in
    `patience_s`."""
    every = max(1, operations // kills) if kills else 0
    workload = Workload(seed, direct=target.direct, kill_every=every)
    exerciser = Exerciser(target)
    try:
        exerciser.run(workload.next, operations)
    except Mismatch as mismatch:
        done = exerciser.done
        last = "\n  ".join(
            f"{line} (of {size} bytes)"
            for line, size in zip(done[-REMEMBERED:], exerciser.sizes[-REMEMBERED:], strict=True)
        )
        raise Mismatch(
            f"operation {len(done)} with seed {seed}: {mismatch}\n"
            f"again: AIOFS_SEED={seed} pytest, and this test's name\n"
            f"the last operations, the newest at the end:\n  {last}\n"
            f"{shrunk(done, exerciser.sizes, Again(target), patience_s)}"
        ) from mismatch


def replay(target: Target, lines: list[str]) -> None:
    """Do what the lines say, then compare; Mismatch. ValueError: a line that does not read."""
    steps = iter([parse(line) for line in lines])
    Exerciser(target).run(lambda _: next(steps), len(lines))


class Again:
    """Does lists of operations on one new file after another."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._numbers = itertools.count()

    def __call__(self, lines: list[str], deadline: float) -> str:
        """What is wrong after them; empty if nothing is. OutOfTime at the `deadline` of time.monotonic()."""
        steps = iter([parse(line) for line in lines])

        def choose(_: int) -> Step:
            if time.monotonic() > deadline:
                raise OutOfTime
            return next(steps)

        try:
            with self._target.another(next(self._numbers)) as target:
                Exerciser(target).run(choose, len(lines))
        except (OSError, Mismatch) as error:
            return str(error)
        return ""


class Exerciser:
    """One file, the bytes it must have, and the operations on it."""

    def __init__(self, target: Target) -> None:
        self.done: list[str] = []
        """The operations so far, the one that failed at the end; as text, for there may be a million."""
        self.sizes = array("q")
        """Of the file before each of them."""
        self._target = target
        self._model = bytearray()
        self._direct = False
        self._refused: set[int] = set()
        self._pool = ThreadPoolExecutor(IN_FLIGHT)
        self._fd = os.open(target.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def run(self, choose: Callable[[int], Step], operations: int) -> None:
        """Do so many steps that `choose` gives for the file's size, then compare the whole file from both
        sides. Mismatch."""
        try:
            for _ in range(operations):
                self._do(choose(len(self._model)))
                self._check_size()
            self._open(int(self._target.direct and not self._direct))
            self._expect(0, os.pread(self._fd, MAX_SIZE + 1, 0), "the whole file")
            self._compare()
        except (OSError, AssertionError) as error:
            raise Mismatch(str(error)) from error
        finally:
            self._pool.shutdown()
            if self._fd >= 0:
                os.close(self._fd)

    def _do(self, step: Step) -> None:
        self.done.append(as_line(step))
        self.sizes.append(len(self._model))
        if len(step) > 1:
            self._together(step)
            return
        [operation] = step
        getattr(self, f"_{operation.name}")(*operation.numbers)

    # -- the operations --

    def _read(self, offset: int, length: int) -> None:
        self._expect(offset, os.pread(self._fd, length, offset), "read", length)

    def _write(self, offset: int, length: int, seed: int) -> None:
        data = content(seed, length)
        written = os.pwrite(self._fd, data, offset)
        assert written == len(data), f"{written} of {len(data)} bytes written"
        self._remember(offset, data)

    def _together(self, step: Step) -> None:
        size = len(self._model)
        work = [(operation, self._start(operation)) for operation in step]
        for operation, future in work:
            result = future.result()
            offset, length = operation.numbers[:2]
            if operation.name == "write":
                assert result == length, f"{result!r} of {length} bytes written"
                self._remember(offset, content(operation.numbers[2], length))
            elif offset + length <= size:  # what is read beyond depends on which write came first
                assert isinstance(result, bytes)
                self._expect(offset, result, "read in a burst", length)

    def _start(self, operation: Operation) -> Future[int] | Future[bytes]:
        offset, length = operation.numbers[:2]
        if operation.name == "write":
            return self._pool.submit(os.pwrite, self._fd, content(operation.numbers[2], length), offset)
        return self._pool.submit(os.pread, self._fd, length, offset)

    def _mapped_read(self, offset: int, length: int) -> None:
        if not self._model:
            return
        # FUSE has no shared mapping of files open for direct I/O; a private one it always has.
        flags = mmap.MAP_PRIVATE if self._direct else mmap.MAP_SHARED
        with mmap.mmap(self._fd, len(self._model), flags=flags, prot=mmap.PROT_READ) as view:
            self._expect(offset, view[offset : offset + length], "mapped read", length)

    def _mapped_write(self, offset: int, length: int, seed: int) -> None:
        if self._direct or offset >= len(self._model):
            return
        data = content(seed, min(length, len(self._model) - offset))
        with mmap.mmap(self._fd, len(self._model)) as view:
            view[offset : offset + len(data)] = data
            view.flush()
        self._remember(offset, data)

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        del self._model[size:]
        self._model.extend(bytes(size - len(self._model)))

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        """What the file system does not know must change nothing; and not be known later, either."""
        try:
            fallocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._refused.add(mode)
            return
        assert mode not in self._refused, f"fallocate of mode {mode} was not supported before"
        if mode & ~KEEP_SIZE:
            end = min(offset + length, len(self._model))
            self._model[offset:end] = bytes(max(0, end - offset))
        if not mode & KEEP_SIZE:
            self._model.extend(bytes(max(0, offset + length - len(self._model))))

    def _seek(self) -> None:
        end = 0
        for start, stop in [*data_ranges(self._fd), (len(self._model), 0)]:
            lost = any(self._model[end:start])
            assert not lost, f"there is data in the hole from {end} to {start}"
            end = stop

    def _fsync(self) -> None:
        os.fsync(self._fd)

    def _compare(self) -> None:
        os.fsync(self._fd)
        self._expect(0, self._target.backing.read_bytes(), "the backing file")

    def _open(self, direct: int) -> None:
        fd, self._fd = self._fd, -1  # in case it cannot be opened again
        os.close(fd)
        self._direct = bool(direct)
        self._fd = os.open(self._target.path, os.O_RDWR | (os.O_DIRECT if direct else 0))

    def _kill(self, after_us: int) -> None:
        self._target.kill(after_us / 1e6)

    # -- what must be true --

    def _remember(self, offset: int, data: bytes) -> None:
        self._model.extend(bytes(max(0, offset + len(data) - len(self._model))))
        self._model[offset : offset + len(data)] = data

    def _check_size(self) -> None:
        size = os.fstat(self._fd).st_size
        assert size == len(self._model), f"st_size is {size}, not {len(self._model)}"

    def _expect(self, offset: int, got: bytes, what: str, length: int | None = None) -> None:
        want = self._model[offset:] if length is None else self._model[offset : offset + length]
        if got == want:
            return
        assert len(got) == len(want), f"{what} at {offset} has {len(got)} bytes, not {len(want)}"
        wrong = [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b]
        zeros = "zeros" if not any(got[i] for i in wrong) else "not zeros"
        raise AssertionError(
            f"{what} at {offset} +{len(want)}: {len(wrong)} bytes differ, "
            f"the first at {offset + wrong[0]}, the last at {offset + wrong[-1]} ({zeros})"
        )


def content(seed: int, length: int) -> bytes:
    """The bytes that a write of this seed writes."""
    return random.Random(seed).randbytes(length)
