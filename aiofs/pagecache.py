"""Whether an open uses the kernel's page cache, and whether its pages may stay at the next open of the image.

The kernel's pages are right as long as the backing file is as it was when the pages began to be trusted:
at the open before. So each open records a stamp of the file (times and size) and compares it with the
one before. Any change in between, by others or through the mount itself, drops the pages once.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from typing import NamedTuple

from . import kernel
from .dataplane.system import FileStat

_MAX_STAMPS = 16384
_FINE_TICK_NS = 20_000_000
"""Times of files advance by the kernel's tick, 10 ms at most (CONFIG_HZ=100); doubled."""
_COARSE_TICK_NS = 4_000_000_000
"""FAT keeps even seconds, some others whole ones; doubled."""


def wants_direct_io(flags: int, release: str = os.uname().release) -> bool:
    """Whether an open bypasses the kernel's page cache, its reads and writes coming as they are.

    Exactly when the opener said O_DIRECT: then the kernel need not serialise writes of one file (the data
    plane adds FOPEN_PARALLEL_DIRECT_WRITES); all others profit from the cache. Not before Linux 6.6: there
    such a write leaves old pages in the cache for those who have the file open without O_DIRECT.
    """
    return bool(flags & os.O_DIRECT) and kernel.version(release) >= (6, 6)


class Stamp(NamedTuple):
    """The state of a backing file at an open."""

    generation: int
    size: int
    mtime_ns: int
    ctime_ns: int
    racy: bool
    """It changed so shortly before that a change right after may bear the same times (as in git)."""


def stamp_of(st: FileStat, now_ns: int) -> Stamp:
    """The stamp of a file that was looked at at `now_ns` (nanoseconds since 1970)."""
    changed = max(st.mtime_ns, st.ctime_ns)
    coarse = st.mtime_ns % 1_000_000_000 == 0 and st.ctime_ns % 1_000_000_000 == 0
    tick = _COARSE_TICK_NS if coarse else _FINE_TICK_NS
    return Stamp(st.birth_ns, st.size, st.mtime_ns, st.ctime_ns, racy=now_ns - changed <= tick)


class Stamps:
    """The stamps of the images that were opened, by node id; the least recently opened are dropped."""

    def __init__(self, limit: int = _MAX_STAMPS) -> None:
        self._limit = limit
        self._stamps: OrderedDict[int, Stamp] = OrderedDict()

    def unchanged(self, ino: int, st: FileStat) -> bool:
        """The file is as it was at the open before; this open is recorded.

        False for block devices: their times say nothing about their content.
        """
        if stat.S_ISBLK(st.mode):
            return False
        before = self._stamps.pop(ino, None)
        now = stamp_of(st, time.time_ns())
        self._stamps[ino] = now
        if len(self._stamps) > self._limit:
            self._stamps.popitem(last=False)
        return before is not None and not before.racy and before[:4] == now[:4]

    def forget(self, ino: int) -> None:
        """The kernel has forgotten the file, and its pages."""
        self._stamps.pop(ino, None)
