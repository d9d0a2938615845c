"""The ledger: what must not be forgotten when a server dies, in a memory file that its keeper holds.

Three parts, in one sealed file that costs memory only where it is written:

- records: small texts by kind and number, of which the newest counts. A log of them is appended to; when it
  has grown to twice what is live in it, the live ones are copied to the other half of its room.
- lookups: how often the kernel looked up each node, by the slot that the node's record names.
- counters: one aiofs_image_counters for each image, by the slot that the image's record names. The data
  plane writes them, the errno of a failed fsync among them, before it answers.

A server may be killed between any two instructions. So a record counts only when the length of the log
includes it, and lengths, like lookups and the choice of the half, are single words, stored whole. What
another version wrote is recognised by the format number and the sizes, what was damaged by checksums.

Used by one thread at a time. Knows nothing of nodes and images.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from .errors import AiofsError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

FORMAT = 2
"""Goes up with every change of this layout or of what the records hold."""
MAX_NODES = 1 << 22
MAX_COUNTERS = 20480
_MAGIC = b"aiofs\0lg"
_PAGE = 4096
_LOG_BYTES = 64 << 20
_FOLD_AT = 1 << 20
"""A log shorter than this is not worth being copied."""

_HEADER = struct.Struct("<8sIIQQQ")  # magic, format, counters' size, nodes, counters, bytes of each log
_FRAME = struct.Struct("<II")  # bytes of the body, crc32 of it
_BODY = struct.Struct("<BBQ")  # kind, 1: live or 0: dropped, number

_CHECKSUM, _ACTIVE, _LENGTHS, _FULL, _PROGRESS = 8, 9, 10, 12, 13
"""Words (of 8 bytes) of the first page, after the header."""

_LOOKUPS_AT = _PAGE
_LOGS_AT = _LOOKUPS_AT + 8 * MAX_NODES
_COUNTERS_AT = _LOGS_AT + 2 * _LOG_BYTES
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Kind(enum.IntEnum):
    """What a record is about; its number is..."""

    INIT = 1
    """0: the kernel's INIT, and the answer it got"""
    NODE = 2
    """a node id"""
    IMAGE = 3
    """the node id of an open image"""
    TALLY = 4
    """the node id of an image that was open earlier"""
    CHANGE = 5
    """any: a change of names that was begun lately"""
    FAILURE = 6
    """the node id of an image whose fsync had failed when it was closed"""


class LedgerUnusable(AiofsError):
    """The memory file is of another version, damaged, or was too small for all that had to be kept."""


class Ledger:
    """One mount's ledger, as its servers see it; the keeper only holds the descriptor."""

    def __init__(self, fd: int, counters_size: int) -> None:
        """Attach the memory file `fd`, which stays the caller's. `counters_size`: of aiofs_image_counters.

        LedgerUnusable, OSError.
        """
        self.fd = fd
        self._stride = -(-counters_size // 64) * 64
        size = _size(self._stride)
        if os.fstat(fd).st_size != size:
            raise LedgerUnusable("the memory of the mount is of another version's size")
        self._map = mmap.mmap(fd, size)
        self._words = memoryview(self._map)[:_PAGE].cast("Q")
        self.lookups = memoryview(self._map)[_LOOKUPS_AT:_LOGS_AT].cast("Q")
        """By slot; written by whoever owns the node of that slot."""
        self._check(_header(self._stride))
        self._fold_at = _FOLD_AT

    @classmethod
    def create(cls, counters_size: int) -> Ledger:
        """An empty one; its `fd` is the new owner's to close."""
        fd = os.memfd_create("aiofs-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stride = -(-counters_size // 64) * 64
        os.ftruncate(fd, _size(stride))
        header = _header(stride)
        os.pwrite(fd, header, 0)
        os.pwrite(fd, struct.pack("<Q", zlib.crc32(header)), 8 * _CHECKSUM)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd, counters_size)

    def _check(self, expected: bytes) -> None:
        header = self._map[: _HEADER.size]
        if header[:8] != _MAGIC or self._words[_CHECKSUM] != zlib.crc32(header):
            raise LedgerUnusable("the memory of the mount is damaged")
        if header != expected:
            version = _HEADER.unpack(header)[1]
            raise LedgerUnusable(f"the memory of the mount is of format {version}, this aiofs has {FORMAT}")
        if self._words[_FULL]:
            raise LedgerUnusable("the mount has had more names than its memory holds")
        active = self._words[_ACTIVE]
        if active > 1 or self._words[_LENGTHS + active] > _LOG_BYTES:
            raise LedgerUnusable("the memory of the mount is damaged")

    # -- records --

    def put(self, kind: Kind, number: int, payload: bytes) -> None:
        """Keep a record, in place of the one of this kind and number that there may be."""
        self._append(_BODY.pack(kind, 1, number) + payload)

    def drop(self, kind: Kind, number: int) -> None:
        """Keep no record of this kind and number."""
        self._append(_BODY.pack(kind, 0, number))

    def records(self, kind: Kind) -> Iterator[tuple[int, bytes]]:
        """The live records of a kind: number and payload, in the order in which they were put.

        LedgerUnusable: damaged.
        """
        for body in self._live():
            found, _, number = _BODY.unpack_from(body)
            if found == kind:
                yield number, bytes(body[_BODY.size :])

    def restored(self, kind: Kind, unpack: Callable[[int, bytes], _T]) -> Iterator[_T]:
        """What `unpack` makes of each live record of a kind, in the order in which they were put.

        `unpack` gets number and payload, and raises ValueError or struct.error where they make no sense: a
        checksum tells that a record is the one that was written, not that it was right. LedgerUnusable.
        """
        for number, payload in self.records(kind):
            try:
                made = unpack(number, payload)
            except (ValueError, struct.error) as error:
                about = f"its record {kind.name} {number}"
                raise LedgerUnusable(f"the memory of the mount is damaged: {about}: {error}") from error
            yield made

    def _append(self, body: bytes) -> None:
        record = _FRAME.pack(len(body), zlib.crc32(body)) + body
        length = self._words[_LENGTHS + self._words[_ACTIVE]]
        if length + len(record) > self._fold_at:
            length = self._fold()
        if length + len(record) > _LOG_BYTES:
            self._give_up()
            return
        active = self._words[_ACTIVE]
        at = _LOGS_AT + active * _LOG_BYTES + length
        self._map[at : at + len(record)] = record
        self._words[_LENGTHS + active] = length + len(record)

    def _live(self) -> list[memoryview]:
        """The bodies of the live records of the log, the ones put first in front."""
        active = self._words[_ACTIVE]
        start = _LOGS_AT + active * _LOG_BYTES
        there = memoryview(self._map)[start : start + self._words[_LENGTHS + active]]
        newest: dict[bytes, memoryview] = {}
        at = 0
        while at < len(there):
            if len(there) - at < _FRAME.size:
                raise LedgerUnusable("the memory of the mount is damaged")
            size, checksum = _FRAME.unpack_from(there, at)
            body = there[at + _FRAME.size : at + _FRAME.size + size]
            if len(body) != size or size < _BODY.size or zlib.crc32(body) != checksum:
                raise LedgerUnusable("the memory of the mount is damaged")
            kind, live, number = _BODY.unpack_from(body)
            key = _BODY.pack(kind, 1, number)
            newest.pop(key, None)
            if live:
                newest[key] = body
            at += _FRAME.size + size
        return list(newest.values())

    def _fold(self) -> int:
        """Copy what is live to the other half, and go on there. Returns the new log's length in bytes."""
        active = self._words[_ACTIVE]
        other = 1 - active
        at = start = _LOGS_AT + other * _LOG_BYTES
        for body in self._live():
            record = _FRAME.pack(len(body), zlib.crc32(body)) + body
            self._map[at : at + len(record)] = record
            at += len(record)
        self._words[_LENGTHS + other] = at - start
        self._words[_ACTIVE] = other
        self._fold_at = min(max(_FOLD_AT, 2 * (at - start)), _LOG_BYTES)
        # Refused where the server's memory is locked (EINVAL, madvise(2)): the old half stays, for next time.
        with suppress(OSError):
            self._map.madvise(mmap.MADV_REMOVE, _LOGS_AT + active * _LOG_BYTES, _LOG_BYTES)
        return at - start

    def _give_up(self) -> None:
        if not self._words[_FULL]:
            self._words[_FULL] = 1
            log.warning("more names than the mount's memory holds: it would not survive the server's death")

    # -- what is written in place --

    # Not as memoryviews: cffi's reference to one may outlive it when both are garbage of one cycle.

    def counters_place(self, slot: int) -> tuple[mmap.mmap, int]:
        """Where one image's counters are, as memory and offset.

        `slot`: 0 .. MAX_COUNTERS - 1; ValueError for others, because the data plane writes there unasked.
        """
        if not 0 <= slot < MAX_COUNTERS:
            raise ValueError(f"there are no counters {slot}, only {MAX_COUNTERS}")
        return self._map, _COUNTERS_AT + slot * self._stride

    def progress_place(self) -> tuple[mmap.mmap, int]:
        """Where the data plane counts what it was asked and has answered, as memory and offset."""
        return self._map, 8 * _PROGRESS


def progress(fd: int) -> tuple[int, int]:
    """How many requests the servers of the ledger in `fd` have been asked, and have answered."""
    asked, answered = struct.unpack("<QQ", os.pread(fd, 16, 8 * _PROGRESS))
    return asked, answered


def _size(stride: int) -> int:
    return -(-(_COUNTERS_AT + MAX_COUNTERS * stride) // _PAGE) * _PAGE


def _header(stride: int) -> bytes:
    return _HEADER.pack(_MAGIC, FORMAT, stride, MAX_NODES, MAX_COUNTERS, _LOG_BYTES)
