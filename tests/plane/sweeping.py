"""A script of requests on two images behind faults and one beside them; the account of what was answered."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fakekernel import FAR, PUNCH, FakeKernel, entries, overlaps
from shadow import Shadow

from aiofs.dataplane import fault_counts, set_faults
from aiofs.faults import MAX_NUMBER, Fault, Kind, Plan

SECTOR = 512
PAGE = 4096
SIZE = 64 * SECTOR + 100
"""Bytes of an image: the last block is not whole."""
RETRIES = 64
"""serve.c's TRIES_MAX: the most often that one step of one request is tried."""

STRUCK, SHARING, BESIDE = 10, 11, 12
"""The nodes of the images: two behind the faults, one on the same driver without them."""


@dataclass
class Answers:
    """What was answered of each image."""

    failed: list[tuple[int, str, int]] = field(default_factory=list)
    """Node, operation and errno of each failure, but not those that repeat the failure of an fsync."""
    poison: dict[int, int] = field(default_factory=dict)
    """By node: the errno of the first fsync that failed."""
    last_fsync: dict[int, int] = field(default_factory=dict)
    """By node: the errno of its last fsync, or 0."""
    merged: bool = False
    """The io that the first fault struck was of several requests."""
    struck: int = 0


Sent = tuple[int, Callable[[int, bytes], None]]
"""A request's unique, and what to do with its error and body."""


class Sweep:
    """One kernel and its images, on which the script is played again and again with other faults."""

    def __init__(self, kernel: FakeKernel, directory: Path, driver: str, *, direct: bool) -> None:
        self.kernel = kernel
        self.direct = direct
        self._drivers = {STRUCK: f"fault:{driver}", SHARING: f"fault:{driver}", BESIDE: driver}
        self._paths = {node: directory / f"{node}.img" for node in self._drivers}
        self._shadows: dict[int, Shadow] = {}
        self._answers = Answers()
        self._writes = 0
        self._reads: set[tuple[int, int]] = set()

    def play(self, fault: Fault) -> Answers:
        """The script once, from fresh images, with one fault; what was answered. AssertionError: a lie."""
        self._answers = Answers()
        self._writes = 0
        self._reads.clear()
        self.kernel.command(self._begin)
        set_faults(Plan((fault,)))
        self._script()
        self._answers.struck = fault_counts(Plan((fault,))).struck[0]
        self._answers.merged = self._is_merged(fault.first)
        assert overlaps() == 0
        set_faults(Plan())
        self.kernel.command(self._end)
        assert self.kernel.plane.counters()["in_flight"] == 0
        return self._answers

    async def _begin(self) -> None:
        for node, path in self._paths.items():
            path.write_bytes(pattern(node, SIZE))
            self._shadows[node] = Shadow(pattern(node, SIZE))
            await self.kernel.registering(
                path,
                node=node,
                driver=self._drivers[node],
                direct=self.direct,
                block_size=SECTOR if self.direct else 1,
            )

    async def _end(self) -> None:
        """Nothing of the images is left in work, failed fsyncs stay so, and they hold what was answered."""
        for node, path in self._paths.items():
            assert await self.kernel.unregistering(node) == self._answers.poison.get(node, 0)
            counted = self.kernel.counters(node)
            assert counted["in_flight"] == 0
            requests = sum(value for name, value in counted.items() if name.startswith("requests_"))
            assert counted["retries"] <= requests * RETRIES
            found = path.read_bytes()
            assert self._shadows[node].wrong(0, found, max(len(found), 1 << 20)) == [], f"image {node}"

    def _is_merged(self, number: int) -> bool:
        """Was operation `number` of the script, if it has so many, made of several requests?"""
        script = [entry for entry in entries() if entry.offset < FAR]
        if number > len(script):
            return False
        io = script[number - 1]
        if io.op != "read":
            return io.segments > 1
        # Merged READs share a buffer. Those of an O_DIRECT image are widened, and here never merged.
        return not self.direct and (io.offset, io.length) not in self._reads

    # -- the script --

    def _script(self) -> None:
        self._together(
            lambda: [
                *(self._write(STRUCK, i * SECTOR, SECTOR) for i in (3, 0, 1, 2)),
                *(self._write(SHARING, i * SECTOR, SECTOR) for i in (0, 1)),
                self._write(STRUCK, 16 * SECTOR, SECTOR),
            ]
        )
        self._one(self._write(BESIDE, 0, SECTOR))
        self._one(self._fsync(STRUCK))
        self._one(self._fsync(SHARING))
        self._together(
            lambda: [
                *(self._read(STRUCK, i * SECTOR, SECTOR) for i in range(4)),
                self._write(STRUCK, SECTOR, 2 * SECTOR),
                self._read(STRUCK, 2 * SECTOR, SECTOR),
                *(self._read(SHARING, i * SECTOR, SECTOR) for i in (0, 1)),
            ]
        )
        self._one(self._write(STRUCK, 5 * SECTOR + 7, 100))
        self._one(self._write(STRUCK, 6 * SECTOR + 500, 600))
        self._one(self._read(STRUCK, 5 * SECTOR + 3, 1500))
        self._one(self._write(STRUCK, SIZE - 20, 50))
        self._one(self._read(STRUCK, SIZE - 30, SECTOR))
        self._one(self._fallocate(STRUCK, PUNCH, PAGE, PAGE))
        self._one(self._fallocate(SHARING, 0, 0, PAGE))
        self._one(self._lseek(STRUCK))
        self._resize(STRUCK, 80 * SECTOR)
        self._one(self._write(STRUCK, 70 * SECTOR, SECTOR))
        for node in (STRUCK, STRUCK, BESIDE, SHARING):
            self._one(self._fsync(node))
        self._one(self._read(BESIDE, 0, 2 * SECTOR))

    def _one(self, sent: Sent) -> None:
        unique, take = sent
        take(*self.kernel.reply(unique))

    def _together(self, send: Callable[[], list[Sent]]) -> None:
        """Read by the loop in one drain, as far as it goes; taken in the order of sending."""
        taking: list[Callable[[int, bytes], None]] = []

        def uniques() -> list[int]:
            sent = send()
            taking.extend(take for _, take in sent)
            return [unique for unique, _ in sent]

        found, _ = self.kernel.together(uniques)
        for unique, take in zip(found, taking, strict=True):
            take(*self.kernel.reply(unique))

    def _fail(self, node: int, operation: str, error: int) -> None:
        if error:
            self._answers.failed.append((node, operation, -error))

    # -- the requests: sent now, judged with their answer --

    def _write(self, node: int, offset: int, length: int) -> Sent:
        # Down, where the image counts up; and from somewhere else each time.
        self._writes += 1
        data = pattern(37 * self._writes, length)[::-1]

        def take(error: int, body: bytes) -> None:
            assert error or int.from_bytes(body[:4], "little") == length
            self._shadows[node].written(offset, data, not error)
            self._fail(node, "write", error)

        return self.kernel.send_write(offset, data, node=node), take

    def _read(self, node: int, offset: int, length: int) -> Sent:
        def take(error: int, body: bytes) -> None:
            if not error:
                assert self._shadows[node].wrong(offset, body, length) == [], f"read {node} {offset} {length}"
            self._fail(node, "read", error)

        if node != BESIDE:  # which is not behind the faults
            self._reads.add((offset, length))
        return self.kernel.send_read(offset, length, node=node), take

    def _fsync(self, node: int) -> Sent:
        def take(error: int, _: bytes) -> None:
            self._answers.last_fsync[node] = -error
            poison = self._answers.poison.get(node, 0)
            if poison:
                assert error == -poison, "an fsync after one that failed"
                return
            if error:
                self._answers.poison[node] = -error
            self._fail(node, "fsync", error)

        return self.kernel.send_fsync(node=node), take

    def _fallocate(self, node: int, mode: int, offset: int, length: int) -> Sent:
        def take(error: int, _: bytes) -> None:
            if mode == PUNCH:
                self._shadows[node].written(offset, bytes(length), not error)
            self._fail(node, "fallocate", error)

        return self.kernel.send_fallocate(mode, offset, length, node=node), take

    def _lseek(self, node: int) -> Sent:
        def take(error: int, body: bytes) -> None:
            assert error or int.from_bytes(body, "little") == 0, "its first page holds data"
            self._fail(node, "lseek", error)

        return self.kernel.send_lseek(0, os.SEEK_DATA, node=node), take

    def _resize(self, node: int, size: int) -> None:
        error = 0
        try:
            self.kernel.command(lambda: self.kernel.plane.truncate(node, size))
        except OSError as refused:
            error = -(refused.errno or errno.EIO)
        self._shadows[node].resized(size, not error)
        self._fail(node, "truncate", error)


def pattern(start: int, length: int) -> bytes:
    """Bytes that count up from `start`, modulo 256: no place holds what its neighbours do."""
    first = start % 256
    return (bytes(range(256)) * (length // 256 + 2))[first : first + length]


def fault_at(number: int, kind: Kind, value: int, *, forever: bool) -> Fault:
    """A fault of operation `number` of the script, or of it and all that follow."""
    last = MAX_NUMBER if forever else number
    return Fault(kind, value, end=FAR, first=number, last=last)
