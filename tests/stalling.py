"""Memory whose first touch blocks, by userfaultfd(2): an io into it runs for as long as a test wants it to.

A read whose buffer is such a page blocks inside preadv, whatever the file, until `release`.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct

import pytest

# asm/unistd.h; linux/userfaultfd.h.
SYSCALL = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
UFFD_API = 0xAA
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_ZEROPAGE = 0xC020AA04
REGISTER_MODE_MISSING = 1
EVENT_PAGEFAULT = 0x12

PATIENCE_S = 20


class StallingMemory:
    """`pages` pages; page i is `page(i)`. Skips the test where the kernel does not let us."""

    def __init__(self, pages: int) -> None:
        if SYSCALL is None:
            pytest.skip(f"the number of userfaultfd(2) on {platform.machine()} is not known here")
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.syscall(SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            pytest.skip(f"userfaultfd is refused: {os.strerror(ctypes.get_errno())}; it needs root")
        self._pages = pages
        self._map = mmap.mmap(-1, pages * mmap.PAGESIZE)
        anchor = ctypes.c_char.from_buffer(self._map)
        self._start = ctypes.addressof(anchor)
        del anchor
        fcntl.ioctl(self._fd, UFFDIO_API, struct.pack("QQQ", UFFD_API, 0, 0))
        area = struct.pack("QQQQ", self._start, pages * mmap.PAGESIZE, REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(self._fd, UFFDIO_REGISTER, area)
        self._released: set[int] = set()

    def page(self, index: int) -> memoryview:
        """One page, to be read into."""
        return memoryview(self._map)[index * mmap.PAGESIZE : (index + 1) * mmap.PAGESIZE]

    def next_stall(self) -> int:
        """Wait until somebody touches a page for the first time and blocks; its index."""
        assert select.select([self._fd], [], [], PATIENCE_S)[0], "nobody touched the memory"
        event, address = struct.unpack("B15xQ8x", os.read(self._fd, 32))
        assert event == EVENT_PAGEFAULT
        return int(address - self._start) // mmap.PAGESIZE

    def release(self, index: int) -> None:
        """Let who waits for this page go on; a page that nobody has touched yet will not block any more."""
        if index not in self._released:
            self._released.add(index)
            where = self._start + index * mmap.PAGESIZE
            fcntl.ioctl(self._fd, UFFDIO_ZEROPAGE, bytearray(struct.pack("QQQq", where, mmap.PAGESIZE, 0, 0)))

    def close(self) -> None:
        """Let everybody go on."""
        for index in range(self._pages):
            self.release(index)
        os.close(self._fd)
