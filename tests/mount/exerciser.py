"""Random work on one file of a mount, checked against a bytearray after every operation.

The idea is that of fsx: whatever the order of reads, writes, truncations, holes and re-opens, a file is its
bytes. This one also keeps several requests in flight at once, on ranges that touch but do not overlap, so
that neighbours share blocks and pages. All decisions come from one seed: the same seed does the same
operations again. It knows nothing of aiofs; it works on any file system.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from allocation import KEEP_SIZE, PUNCH, ZERO_RANGE, data_ranges, fallocate

MAX_SIZE = 2 << 20
REMEMBERED = 40
"""Operations that a failure tells about."""
IN_FLIGHT = 8


class Mismatch(AssertionError):
    """The file is not what was written to it."""


class Exerciser:
    """One file, the bytes it must have, and the operations on it."""

    def __init__(self, path: Path, backing: Path, seed: int, *, direct: bool = True) -> None:
        """`path` is worked on; `backing` is the same file underneath, looked at after an fsync. With
        `direct` every second open is one with O_DIRECT, which must take unaligned requests."""
        self._path = path
        self._backing = backing
        self._seed = seed
        self._random = random.Random(seed)
        self._model = bytearray()
        self._log: deque[str] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._may_be_direct = direct
        self._direct = False
        self._refused: set[int] = set()
        self._pool = ThreadPoolExecutor(IN_FLIGHT)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

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

    def run(self, operations: int) -> None:
        """Do that many operations, then compare the whole file from both sides. Mismatch tells the seed."""
        names, weights = zip(*self._OPERATIONS, strict=True)
        try:
            for name in self._random.choices(names, weights, k=operations):
                self._count += 1
                getattr(self, f"_{name}")()
                self._check_size()
            self._reopen()
            self._expect(0, os.pread(self._fd, MAX_SIZE + 1, 0), "the whole file")
            os.fsync(self._fd)
            self._check_backing()
        except (OSError, AssertionError) as error:
            raise Mismatch(self._story(error)) from error
        finally:
            self._pool.shutdown()
            os.close(self._fd)

    def _story(self, error: Exception) -> str:
        operations = "\n  ".join(self._log)
        return (
            f"operation {self._count} with seed {self._seed}: {error}\n"
            f"again: AIOFS_SEED={self._seed} pytest, and this test's name\n"
            f"the last operations, the newest at the end:\n  {operations}"
        )

    def _note(self, text: str) -> None:
        self._log.append(f"{self._count} {'direct' if self._direct else 'buffered'} {text}")

    # -- what to do where --

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

    def _bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    # -- the operations --

    def _read(self) -> None:
        offset, length = self._range(len(self._model) + 5000)
        self._note(f"read {offset} +{length} of {len(self._model)}")
        self._expect(offset, os.pread(self._fd, length, offset), "read", length)

    def _write(self) -> None:
        offset, length = self._range(min(MAX_SIZE - 1, len(self._model) + 5000))
        length = min(length, MAX_SIZE - offset)
        self._note(f"write {offset} +{length} of {len(self._model)}")
        self._put(offset, self._bytes(length))

    def _append(self) -> None:
        length = min(self._length(), MAX_SIZE - len(self._model))
        self._note(f"append {len(self._model)} +{length}")
        self._put(len(self._model), self._bytes(length))

    def _put(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._fd, data, offset)
        assert written == len(data), f"{written} of {len(data)} bytes written"
        self._remember(offset, data)

    def _burst(self) -> None:
        """Reads and writes at once, on ranges that touch end to end: neighbours in a block, mergeable."""
        offset, _ = self._range(len(self._model) or 1)
        work = []
        self._note(f"burst of {len(self._model)}")
        small = self._random.random() < 0.7
        for _ in range(self._random.randint(2, IN_FLIGHT)):
            length = self._random.randint(1, 6000) if small else self._length()
            length = min(length, MAX_SIZE - offset)
            if length:
                write = self._random.random() < 0.6
                self._note(f"  {'write' if write else 'read'} {offset} +{length}")
                work.append((offset, length, self._bytes(length) if write else None))
            offset += length
        self._random.shuffle(work)
        size = len(self._model)
        futures = [
            self._pool.submit(os.pread, self._fd, length, start)
            if data is None
            else self._pool.submit(os.pwrite, self._fd, data, start)
            for start, length, data in work
        ]
        for (start, length, data), future in zip(work, futures, strict=True):
            result = future.result()
            if data is not None:
                assert result == length, f"{result!r} of {length} bytes written"
                self._remember(start, data)
            elif start + length <= size:  # what is read beyond depends on which write came first
                assert isinstance(result, bytes)
                self._expect(start, result, "read in a burst", length)

    def _mapped_read(self) -> None:
        if not self._model:
            return
        offset, length = self._range(len(self._model))
        self._note(f"mapped read {offset} +{length} of {len(self._model)}")
        # FUSE has no shared mapping of files open for direct I/O; a private one it always has.
        flags = mmap.MAP_PRIVATE if self._direct else mmap.MAP_SHARED
        with mmap.mmap(self._fd, len(self._model), flags=flags, prot=mmap.PROT_READ) as view:
            self._expect(offset, view[offset : offset + length], "mapped read", length)

    def _mapped_write(self) -> None:
        if self._direct or not self._model:
            return
        offset, length = self._range(len(self._model))
        data = self._bytes(min(length, len(self._model) - offset))
        self._note(f"mapped write {offset} +{len(data)} of {len(self._model)}")
        with mmap.mmap(self._fd, len(self._model)) as view:
            view[offset : offset + len(data)] = data
            view.flush()
        self._remember(offset, data)

    def _truncate(self) -> None:
        size = self._random.randrange(MAX_SIZE)
        size = size if self._random.random() < 0.6 else size // 512 * 512
        if self._random.random() < 0.3:
            size = min(MAX_SIZE, max(0, len(self._model) + self._random.randint(-5000, 5000)))
        self._note(f"truncate {len(self._model)} to {size}")
        os.ftruncate(self._fd, size)
        del self._model[size:]
        self._model.extend(bytes(size - len(self._model)))

    def _punch(self) -> None:
        offset, length = self._range(len(self._model) + 5000)
        self._fallocate(PUNCH, offset, length)

    def _zero(self) -> None:
        self._fallocate(ZERO_RANGE | self._random.choice((0, KEEP_SIZE)), *self._range_to_grow())

    def _allocate(self) -> None:
        self._fallocate(self._random.choice((0, KEEP_SIZE)), *self._range_to_grow())

    def _range_to_grow(self) -> tuple[int, int]:
        offset, length = self._range(min(MAX_SIZE - 1, len(self._model) + 5000))
        return offset, min(length, MAX_SIZE - offset)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        """What the file system does not know must change nothing; and not be known later, either."""
        self._note(f"fallocate mode {mode} {offset} +{length} of {len(self._model)}")
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
        self._note(f"seek data and holes of {len(self._model)}")
        end = 0
        for start, stop in [*data_ranges(self._fd), (len(self._model), 0)]:
            lost = any(self._model[end:start])
            assert not lost, f"there is data in the hole from {end} to {start}"
            end = stop

    def _fsync(self) -> None:
        self._note("fsync")
        os.fsync(self._fd)
        if self._random.random() < 0.2:
            self._check_backing()

    def _reopen(self) -> None:
        os.close(self._fd)
        self._direct = self._may_be_direct and not self._direct
        self._note("open")
        self._fd = os.open(self._path, os.O_RDWR | (os.O_DIRECT if self._direct else 0))

    # -- what must be true --

    def _remember(self, offset: int, data: bytes) -> None:
        self._model.extend(bytes(max(0, offset + len(data) - len(self._model))))
        self._model[offset : offset + len(data)] = data

    def _check_size(self) -> None:
        size = os.fstat(self._fd).st_size
        assert size == len(self._model), f"st_size is {size}, not {len(self._model)}"

    def _check_backing(self) -> None:
        self._note("compare the backing file")
        self._expect(0, self._backing.read_bytes(), "the backing file")

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
