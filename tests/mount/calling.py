"""A caller of a mount whose disk fails, and the account of what it was told.

One short script of reads, writes, holes and syncs on one image, with O_DIRECT and through the page cache.
What may be read back and what must be in the file underneath follows from the answers alone (shadow.py). All
bytes are within one slot of the image, so that faults with a range can be meant for one caller. The page
cache may do a part before it meets an error: he then asks for the rest, as everybody must. With O_DIRECT it
is all or an errno.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from allocation import PUNCH, fallocate
from shadow import Shadow

K = 4096
SIZE = 16 * K + 100
"""Bytes of a slot at first: the last block is not whole."""
GROWN = 20 * K
SLOT = 32 * K
"""Bytes from one caller's range to the next."""


class Caller:
    """Plays the script once."""

    def __init__(self, path: Path, backing: Path, base: int) -> None:
        """`backing` is the file underneath; it is made here, a hole up to `base` and then SIZE bytes."""
        self.failed: list[tuple[str, int]] = []
        """What failed, and the errno."""
        self._backing = backing
        self._base = base
        self._writes = 0
        self._poison = 0
        first = pattern(1, SIZE)
        self._shadow = Shadow(first)
        with backing.open("wb") as file:
            file.seek(base)
            file.write(first)
        self._fds = {
            "direct": os.open(path, os.O_RDWR | os.O_DIRECT),
            "buffered": os.open(path, os.O_RDWR),
        }

    def play(self) -> None:
        """The script; AssertionError when an answer is not true."""
        try:
            self._script()
        finally:
            for fd in self._fds.values():
                os.close(fd)
        self.check("the backing file at the end")

    def check(self, when: str) -> None:
        """The file underneath holds what was answered."""
        with self._backing.open("rb") as file:
            file.seek(self._base)
            found = file.read()
        assert self._shadow.wrong(0, found, SLOT) == [], when

    @property
    def synced(self) -> bool:
        """Whether no fsync failed."""
        return not self._poison

    def _script(self) -> None:
        self._write("direct", 0, 2 * K)
        self._write("direct", 3 * K, 512)
        self._write("buffered", 5 * K + 7, 100)
        self._fsync("buffered")
        self._read("direct", 0, 2 * K)
        self._read("buffered", 5 * K + 3, 1500)
        self._write("buffered", 6 * K + 500, K)
        self._read("buffered", 6 * K, 3 * K)
        self._fallocate(PUNCH, K, K)
        self._seek()
        self._read("buffered", K - 10, K + 20)
        self._write("direct", SIZE - 20, 50)
        self._read("direct", SIZE - 30, K)
        self._fallocate(0, SIZE, 3 * K)
        self._truncate(GROWN)
        self._write("buffered", 18 * K, K)
        self._write("direct", 2 * K, K)
        self._fsync("direct")
        self._fsync("buffered")
        self._read("direct", 0, GROWN)

    def _told(self, what: str, call: Callable[[], object]) -> bool:
        """Whether it was done."""
        try:
            call()
        except OSError as error:
            self.failed.append((what, error.errno or errno.EIO))
            return False
        return True

    def _write(self, how: str, offset: int, length: int) -> None:
        self._writes += 1
        left = pattern(37 * self._writes, length)[::-1]

        def write() -> None:
            nonlocal left, offset
            while left:
                count = os.pwrite(self._fds[how], left, self._base + offset)
                assert count == length or (how == "buffered" and count), f"{count} of {length} bytes written"
                self._shadow.written(offset, left[:count], True)
                left, offset = left[count:], offset + count

        if not self._told(f"{how} write", write):
            self._shadow.written(offset, left, False)

    def _read(self, how: str, offset: int, length: int) -> None:
        found = b""

        def read() -> None:
            nonlocal found
            while part := os.pread(self._fds[how], length - len(found), self._base + offset + len(found)):
                found += part
                if how == "direct":
                    break

        done = self._told(f"{how} read", read)
        whole = length if done else len(found)
        assert self._shadow.wrong(offset, found, whole) == [], f"{how} read {offset} +{length}"

    def _fsync(self, how: str) -> None:
        done = self._told("fsync", lambda: os.fsync(self._fds[how]))
        if done:
            assert not self._poison, "an fsync after one that failed"
            self.check("the backing file after an fsync")
        elif self._poison:
            assert self.failed.pop() == ("fsync", self._poison), "an fsync after one that failed"
        else:
            self._poison = self.failed[-1][1]

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        done = self._told(
            "fallocate", lambda: fallocate(self._fds["buffered"], mode, self._base + offset, length)
        )
        if mode == PUNCH:
            self._shadow.written(offset, bytes(length), done)
        else:
            self._shadow.resized(max(self._shadow.size, offset + length), done)

    def _seek(self) -> None:
        def seek() -> None:
            found = os.lseek(self._fds["buffered"], self._base, os.SEEK_DATA)
            assert found == self._base, "its first page holds data"

        self._told("lseek", seek)

    def _truncate(self, size: int) -> None:
        done = self._told("truncate", lambda: os.ftruncate(self._fds["direct"], self._base + size))
        self._shadow.resized(size, done)


def pattern(start: int, length: int) -> bytes:
    """Bytes that count up from `start`, modulo 251: no place holds what its neighbours or other pages do."""
    first = start % 251
    return (bytes(range(251)) * (length // 251 + 2))[first : first + length]
