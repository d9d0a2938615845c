"""Drivers called as C calls them: the sources built as a plain library, the headers read as its interface.

What `aiofs.dataplane.Queue` hides (vectors, edges, the accepted prefix of one driver) is visible here.
"""

from __future__ import annotations

import re
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cffi import FFI

from aiofs.dataplane.build import added_flags

SOURCES = Path(__file__).resolve().parents[2] / "aiofs" / "dataplane"

READ, WRITE, FSYNC, TRUNCATE, FALLOCATE, SEEK = range(6)

PATIENCE_S = 20
"""How long an edge may take before it counts as lost."""

NAMES = ("io_uring", "linux", "threads", "posix", "sync")
FAULTY = tuple(f"fault:{name}" for name in NAMES)
"""The same with faults put before them; without a plan there are none."""


class Drivers:
    """The library: every driver of the table, freshly built."""

    def __init__(self, directory: Path) -> None:
        path = directory / "drivers.so"
        sources = [
            *(SOURCES / f"{room}.c" for room in ("queue", "populate", "ring")),
            *sorted(SOURCES.glob("drivers/*.c")),
        ]
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", f"-I{SOURCES}", *added_flags()]
        command = ["cc", *flags, *map(str, sources), "-o", str(path), "-luring", "-laio"]
        subprocess.run(command, check=True)
        self.ffi: Any = FFI()
        self.ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };")
        for header in ("io.h", "driver.h"):
            text = re.sub(r"(?m)^#.*$", "", (SOURCES / header).read_text())
            # cffi cannot read a constant out of a library, but it can read a variable.
            self.ffi.cdef(text.replace("extern const int", "extern int"))
        self.ffi.cdef((SOURCES / "api.h").read_text())
        self.lib: Any = self.ffi.dlopen(str(path))

    def names(self) -> list[str]:
        """In the order of the table."""
        table = self.lib.aiofs_driver_table
        return [self.ffi.string(table[i].name).decode() for i in range(self.lib.aiofs_driver_table_count)]

    def open(self, name: str, depth: int) -> Instance:
        """An open instance; use it as a context manager."""
        return Instance(self, self.lib.driver_by_name(name.encode()), depth)


class Io:
    """One io and the memory it needs: `memory` is what it reads into or writes from, a buffer per segment."""

    def __init__(
        self,
        ffi: FFI,
        op: int,
        fd: int,
        file: int,
        offset: int,
        memory: Sequence[Any],
        length: int = 0,
        mode: int = 0,
    ) -> None:
        self.memory = memory
        self._pinned = [ffi.from_buffer("char[]", buffer) for buffer in memory]
        self._iov = ffi.new("struct iovec[]", max(1, len(memory)))
        for segment, pinned in zip(self._iov, self._pinned, strict=False):
            segment.iov_base, segment.iov_len = pinned, len(pinned)
        values = {"op": op, "fd": fd, "file": file, "offset": offset, "length": length, "mode": mode}
        self.c: Any = ffi.new("struct io *", {**values, "iov": self._iov, "iovcnt": len(memory)})

    @property
    def result(self) -> int:
        """Bytes, or -errno; valid once reaped."""
        return int(self.c.result)

    @property
    def data(self) -> bytes:
        """The segments' bytes, joined."""
        return b"".join(bytes(buffer) for buffer in self.memory)


class Instance:
    """One open driver. Every wait is for an edge of its event descriptor; a lost edge fails the test."""

    def __init__(self, drivers: Drivers, driver: Any, depth: int) -> None:
        self.ffi = drivers.ffi
        self.driver = driver
        out = self.ffi.new("struct aio **")
        error = driver.open(out, depth)
        assert error == 0, f"open: {error}"
        self.aio = out[0]
        self._files: dict[int, int] = {}
        self._owned: dict[int, Io] = {}
        self._epoll = select.epoll()
        self._epoll.register(driver.event_fd(self.aio), select.EPOLLIN | select.EPOLLET)

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._owned and kind is None:
            self.finish(len(self._owned))
        self._epoll.close()
        if not self._owned:
            for fd in list(self._files):
                self.detach(fd)
            self.driver.close(self.aio)

    def can(self, op: int) -> bool:
        """Is it among the driver's operations?"""
        return bool(self.driver.operations & (1 << op))

    def attach(self, fd: int) -> None:
        """Announce a descriptor."""
        file = self.driver.attach(self.aio, fd)
        assert file >= 0, f"attach: {file}"
        self._files[fd] = file

    def detach(self, fd: int) -> None:
        """Take the announcement back."""
        self.driver.detach(self.aio, self._files.pop(fd))

    def read(self, fd: int, offset: int, *lengths: int) -> Io:
        """A read into new segments of these lengths."""
        return self._io(READ, fd, offset, [bytearray(length) for length in lengths])

    def read_into(self, fd: int, offset: int, *memory: Any) -> Io:
        """A read into memory of the caller's."""
        return self._io(READ, fd, offset, memory)

    def write(self, fd: int, offset: int, *data: bytes | memoryview) -> Io:
        """A write of these segments."""
        return self._io(WRITE, fd, offset, data)

    def fsync(self, fd: int) -> Io:
        """An fdatasync."""
        return self._io(FSYNC, fd, 0, [])

    def truncate(self, fd: int, size: int) -> Io:
        """An ftruncate."""
        return self._io(TRUNCATE, fd, size, [])

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Io:
        """A fallocate."""
        return self._io(FALLOCATE, fd, offset, [], length, mode)

    def seek(self, fd: int, offset: int, whence: int) -> Io:
        """An lseek."""
        return self._io(SEEK, fd, offset, [], mode=whence)

    def _io(self, op: int, fd: int, offset: int, memory: Sequence[Any], length: int = 0, mode: int = 0) -> Io:
        return Io(self.ffi, op, fd, self._files[fd], offset, memory, length, mode)

    def submit(self, *ios: Io) -> int:
        """One batch; the accepted prefix."""
        accepted = int(self.driver.submit(self.aio, [io.c for io in ios], len(ios)))
        for io in ios[:accepted]:
            self._owned[int(self.ffi.cast("uintptr_t", io.c))] = io
        return accepted

    def waits(self) -> bool:
        """Has it submit_and_wait?"""
        return bool(self.driver.submit_and_wait != self.ffi.NULL)

    def submit_and_wait(self, io: Io, fds: Sequence[int]) -> int:
        """One io, and sleep; the mask of descriptors that can be read."""
        mask = int(self.driver.submit_and_wait(self.aio, io.c, self.ffi.new("int[]", fds)))
        assert mask >= 0, "there was room for it"
        self._owned[int(self.ffi.cast("uintptr_t", io.c))] = io
        return mask

    def reap(self, limit: int = 64) -> list[Io]:
        """What has finished. KeyError when it gives back what it does not own."""
        out = self.ffi.new("struct io *[]", limit)
        n = self.driver.reap(self.aio, out, limit)
        return [self._owned.pop(int(self.ffi.cast("uintptr_t", out[i]))) for i in range(n)]

    def cancel(self, io: Io) -> bool:
        """True: taken back."""
        if self.driver.cancel(self.aio, io.c) != 0:
            return False
        del self._owned[int(self.ffi.cast("uintptr_t", io.c))]
        return True

    def edge(self, timeout_s: float = PATIENCE_S) -> bool:
        """Wait for an edge."""
        return bool(self._epoll.poll(timeout_s))

    def finish(self, n: int) -> list[Io]:
        """Reap n ios, sleeping as driver.h says one may: reap until fewer than asked come, then wait."""
        done: list[Io] = []
        while len(done) < n:
            some = self.reap()
            done += some
            if len(some) < 64 and len(done) < n:
                assert self.edge(), f"lost edge: {len(self._owned)} ios have not come back"
        return done

    def run(self, *ios: Io) -> list[int]:
        """Submit all and finish them; their results in the order given."""
        waiting = list(ios)
        done: list[Io] = []
        while waiting:
            accepted = self.submit(*waiting)
            del waiting[:accepted]
            done += self.finish(1) if waiting else self.finish(len(self._owned))
        assert len(done) == len(ios)
        return [io.result for io in ios]
