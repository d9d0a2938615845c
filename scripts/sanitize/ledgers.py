"""Fuzzing the ledger: memory files as they might be, given to what a new server makes of them.

A memory file is kept here as a MemoryFile: its first page, its log, and some lookups and counters; the rest
is zero. Inputs begin with those that a mount leaves (seeds), and are changed: bytes, with and without a
checksum that is right again; fields at their extremes; records cut, doubled, moved. A change that reaches a
line of aiofs that none before it had reached is kept, to be changed further.

What must come of each: LedgerUnusable, or a state that makes sense. Nothing else.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from aiofs import ledger as layout
from aiofs.changes import Changes
from aiofs.choice import Drivers
from aiofs.config import CacheMode
from aiofs.dataplane import COUNTERS_SIZE, ImageSpec, system
from aiofs.errors import AiofsError
from aiofs.evidence import Machine
from aiofs.exchange import keep_exchange, kept_exchange
from aiofs.images import ImageTable
from aiofs.ledger import Kind, Ledger, LedgerUnusable
from aiofs.locks import Holder
from aiofs.nodes import ROOT, generation_of
from aiofs.source import Source

SLOTS = 8
"""Nodes' lookups and images' counters that an input has."""
PATIENCE_S = 5.0
"""An input that takes longer counts as a hang; the slowest state that makes sense takes a tenth of it."""
_COUNTERS_KEPT = 256
"""Bytes of each image's counters: all but the latencies, which nothing depends on."""
_EXTREMES = (
    *(0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 4095, 4096, 20479, 20480, (1 << 22) - 1, 1 << 22),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


_File = tuple[int, int]
"""What a ledger knows a file by: inode number and generation."""


@dataclass(frozen=True)
class MemoryFile:
    """What is not zero of a memory file."""

    head: bytes
    records: tuple[bytes, ...]
    """Of the log, each with its frame; damaged ones too."""
    lookups: bytes
    counters: tuple[bytes, ...]

    @classmethod
    def of(cls, ledger: Ledger) -> MemoryFile:
        """What is in a sound ledger."""
        active = ledger._words[layout._ACTIVE]
        size = ledger._words[layout._LENGTHS + active]
        log = os.pread(ledger.fd, size, layout._LOGS_AT + active * layout._LOG_BYTES)
        records = []
        while log:
            (length,) = struct.unpack_from("<I", log)
            records.append(log[: 8 + length])
            log = log[8 + length :]
        counters = (ledger.counters_place(slot) for slot in range(SLOTS))
        return cls(
            os.pread(ledger.fd, layout._PAGE, 0),
            tuple(records),
            os.pread(ledger.fd, 8 * SLOTS, layout._LOOKUPS_AT),
            tuple(bytes(memory[at : at + _COUNTERS_KEPT]) for memory, at in counters),
        )

    def sized(self) -> MemoryFile:
        """With lengths that include its log to the end."""
        head = bytearray(self.head)
        (active,) = struct.unpack_from("<Q", head, 8 * layout._ACTIVE)
        struct.pack_into("<Q", head, 8 * (layout._LENGTHS + active % 2), sum(map(len, self.records)))
        return replace(self, head=bytes(head))

    def write(self) -> int:
        """A memory file of it, whose descriptor the caller closes."""
        ledger = Ledger.create(COUNTERS_SIZE)
        (active,) = struct.unpack_from("<Q", self.head, 8 * layout._ACTIVE)
        os.pwrite(ledger.fd, self.head, 0)
        os.pwrite(ledger.fd, b"".join(self.records), layout._LOGS_AT + active % 2 * layout._LOG_BYTES)
        os.pwrite(ledger.fd, self.lookups, layout._LOOKUPS_AT)
        for slot, counted in enumerate(self.counters):
            os.pwrite(ledger.fd, counted, ledger.counters_place(slot)[1])
        return ledger.fd

    def moved(self, old: Iterable[_File], new: Iterable[_File]) -> MemoryFile:
        """With each of the `new` files in the place of the `old` one; damaged records stay as they are."""
        numbers: dict[bytes, bytes] = {}
        for before, after in zip(old, new, strict=True):
            # Records have the two side by side. Files made at once share their time of birth: never it alone.
            numbers[struct.pack("<QQ", *before)] = struct.pack("<QQ", *after)
            numbers[struct.pack("<Q", before[0])] = struct.pack("<Q", after[0])
        any_of_them = re.compile(b"|".join(map(re.escape, sorted(numbers, key=len, reverse=True))))

        def record(data: bytes) -> bytes:
            if data != framed(data[8:]):
                return data
            return framed(any_of_them.sub(lambda found: numbers[found[0]], data[8:]))

        return replace(self, records=tuple(map(record, self.records)))


def framed(body: bytes) -> bytes:
    """A record whose checksum is right."""
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


# -- a new server --


class _NoPlane:
    """A data plane that does nothing, and says that it did."""

    async def register(self, node: int, spec: ImageSpec) -> int:  # noqa: ARG002 -- as DataPlane's
        return 0

    async def unregister(self, node: int) -> int:  # noqa: ARG002
        return 0

    async def truncate(self, node: int, size: int) -> None: ...

    async def open_driver(self, driver: str) -> None: ...


def _known_by(path: Path) -> _File:
    fd = os.open(path, os.O_PATH)
    try:
        st = system.stat(fd)
        return st.ino, generation_of(st)
    finally:
        os.close(fd)


async def _nobody(_: int) -> list[Holder]:
    return []


class Server:
    """What a server does with the ledger of the one before it, on a tree of its own."""

    def __init__(self, tree: Path) -> None:
        (tree / "d/e").mkdir(parents=True)
        images = ("a.img", "b.img", "d/c.img", "d/e/d.img")
        for name in images:
            (tree / name).write_bytes(bytes(8192))
        self.files = tuple(_known_by(tree / name) for name in ("d", "d/e", *images))
        self._tree = tree
        self._machine = Machine.look()

    @contextmanager
    def table(self, ledger: Ledger) -> Iterator[ImageTable]:
        """The images and nodes of a server on this ledger, as after its death once it is left."""
        source = Source.open(self._tree, False)
        table: ImageTable | None = None
        try:
            table = ImageTable(
                source=source,
                plane=_NoPlane(),
                drivers=Drivers("sync", source, self._machine),
                cache=CacheMode.WRITEBACK,
                read_only=False,
                ledger=ledger,
                locked_by=_nobody,
            )
            yield table
        finally:
            for image in table._images.values() if table is not None else ():
                image.close()
            source.close()

    def seeds(self) -> Iterator[MemoryFile]:
        """Ledgers that mounts leave: nothing done yet, then names, images open and closed, changes."""
        ledger = Ledger.create(COUNTERS_SIZE)
        try:
            request = struct.pack("<II32x", 104, 26) + bytes(64)
            keep_exchange(ledger, (request, struct.pack("<IiQ", 80, 0, 2) + bytes(64)))
            yield MemoryFile.of(ledger)
            with self.table(ledger) as table:
                trio.run(self._work, table)
                yield MemoryFile.of(ledger)
                changes = Changes(ledger)
                changes.begin("make", [(ROOT, b"new")])
                changes.begin("remove", [(ROOT, b"b.img")], 17)
                changes.begin("rename", [(ROOT, b"x"), (ROOT, b"y")], 17, 0)
                ledger.put(Kind.FAILURE, 17, struct.pack("<I", 5) + b"b.img")
                ledger.drop(Kind.TALLY, 99)
                yield MemoryFile.of(ledger)
        finally:
            os.close(ledger.fd)

    async def _work(self, table: ImageTable) -> None:
        parent = ROOT
        for name in (b"d", b"e"):
            parent = _look_up(table, parent, name)
        _look_up(table, parent, b"d.img")
        for name, flags in ((b"a.img", os.O_RDWR), (b"b.img", os.O_RDONLY)):
            node = table.nodes.get(_look_up(table, ROOT, name))
            await table.open(node, flags)
            table._images[node.ino].counters.memory.opens = 1
            table._images[node.ino].counters.memory.requests_read = 3
        await table.release(node.ino)

    def load(self, file: MemoryFile) -> bool:
        """Be the next server on `file`. False: refused. Whatever else it raises is a finding."""
        fd = file.write()
        try:
            try:
                ledger = Ledger(fd, COUNTERS_SIZE)
                with self.table(ledger) as table:
                    changes = Changes(ledger)
                    trio.run(table.restore)
                    _check(table, changes)
                    _go_on(ledger, table, changes)
                    kept_exchange(ledger)
            except LedgerUnusable:
                return False
            except AiofsError as error:
                assert "before the mount was ready" in str(error), error
                return False
            return True
        finally:
            os.close(fd)


def _look_up(table: ImageTable, parent: int, name: bytes) -> int:
    with table.nodes.directory(parent) as dir_fd:
        node = table.nodes.seen(parent, name, table.source.stat(dir_fd, name))
    table.nodes.looked_up(node)
    return node.ino


def _check(table: ImageTable, changes: Changes) -> None:
    """The state makes sense."""
    nodes = list(table.nodes._nodes.values())
    assert all(ino == node.ino for ino, node in table.nodes._nodes.items())
    assert len({node.slot for node in nodes}) == len(nodes), "nodes share a slot"
    assert all(node.lookups >= 0 for node in nodes)
    for node in nodes:
        path = table.nodes.path(node)
        assert "\0" not in path and ".." not in path.split("/"), path
    slots = [tally.counters.slot for tally in table._tallies]
    slots += [image.counters.slot for image in table._images.values()]
    assert len(set(slots)) == len(slots), "images share their counters"
    assert all(0 <= slot < layout.MAX_COUNTERS for slot in slots)
    assert all(ino in table.nodes and image.opens > 0 for ino, image in table._images.items())
    assert all(0 < error < 4096 for error in table._failed.values())
    assert all(0 <= ino < 1 << 64 for _, inos in changes._before.values() for ino in inos)


def _go_on(ledger: Ledger, table: ImageTable, changes: Changes) -> None:
    """It can be worked with: another name, a change, a forget, a copy of the log; and loaded once more."""
    ino = _look_up(table, ROOT, b"b.img")
    changes.begin("make", [(ROOT, b"next")])
    table.forget(ino, 1)
    before = {kind: dict(ledger.records(kind)) for kind in Kind}
    ledger._fold()
    assert {kind: dict(ledger.records(kind)) for kind in Kind} == before


# -- changes --


def changed(file: MemoryFile, other: MemoryFile, draw: random.Random) -> MemoryFile:
    """One change of `file`; with what it takes from `other`, another input."""
    way = draw.randrange(10)
    if way == 0:
        return replace(
            file, head=_field(file.head, draw, 8 * (layout._PROGRESS + 2), repair=draw.random() < 0.5)
        )
    if way == 1:
        return replace(file, lookups=_field(file.lookups, draw, len(file.lookups)))
    if way == 2:
        slot = draw.randrange(SLOTS)
        counted = _field(file.counters[slot], draw, _COUNTERS_KEPT)
        return replace(file, counters=(*file.counters[:slot], counted, *file.counters[slot + 1 :]))
    records = list(file.records)
    if not records:
        return replace(file, records=other.records).sized()
    at = draw.randrange(len(records))
    if way == 3:
        del records[at]
    elif way == 4:
        records.insert(draw.randrange(len(records) + 1), draw.choice([*records, *other.records]))
    elif way == 5:
        draw.shuffle(records)
    elif way == 6:  # a kill in the middle, had the length been stored first
        records[at] = records[at][: draw.randrange(len(records[at]) + 1)]
    elif way == 7:  # bytes, and no checksum
        records[at] = _field(records[at], draw, len(records[at]))
    else:
        records[at] = framed(_body(records[at][8:], draw))
    made = replace(file, records=tuple(records))
    return made if draw.random() < 0.1 else made.sized()


def _field(data: bytes, draw: random.Random, end: int, repair: bool = False) -> bytes:
    """Another number somewhere in data[:end]; often in place of a whole word."""
    if not data:
        return data
    width = draw.choice(list(_WIDTHS))
    at = draw.randrange(max(end - width + 1, 1))
    if draw.random() < 0.5:
        at -= at % 8
    number = draw.choice(_EXTREMES) if draw.random() < 0.7 else draw.getrandbits(64)
    new = struct.pack(_WIDTHS[width], number & ((1 << 8 * width) - 1))
    made = bytearray(data)
    made[at : at + width] = new[: len(data) - at]
    if repair:
        struct.pack_into("<Q", made, 8 * layout._CHECKSUM, zlib.crc32(made[: layout._HEADER.size]))
    return bytes(made)


def _body(body: bytes, draw: random.Random) -> bytes:
    way = draw.randrange(6)
    if way == 0:
        return body[: draw.randrange(len(body) + 1)]
    if way == 1:
        return body + draw.choice((b"\0", b"/", b"[" * 100_000, b'"', draw.randbytes(30)))
    if way == 2 and len(body) > 1:  # another kind, or dropped
        return bytes([draw.choice([0, *Kind, 255]), draw.choice((0, 1, 1, 2))]) + body[2:]
    return _field(body, draw, len(body))


# -- the loop --


@dataclass
class Found:
    """What became of it."""

    runs: int = 0
    refused: int = 0
    kept: int = 0
    """Inputs, those of the beginning included."""
    lines: set[tuple[str, int]] = field(default_factory=set)
    """Of aiofs that were reached."""
    problem: str = ""
    input: Path | None = None


@contextmanager
def _silence() -> Iterator[None]:
    """Without the log's word for each image that cannot be opened again: that is no finding."""
    logger = logging.getLogger("aiofs")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class TookTooLong(Exception):
    """No OSError: aiofs must not take it for one."""


_TRACED = ("ledger.py", "nodes.py", "images.py", "tallies.py", "changes.py", "exchange.py")


@contextmanager
def _tracing(lines: set[tuple[str, int]], deadline: float) -> Iterator[None]:
    """Notes the lines of _TRACED that run, and ends what runs there after the deadline."""

    def note(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if event == "call" and not name.endswith(_TRACED):
            return None
        lines.add((name, frame.f_lineno))
        if time.monotonic() > deadline:
            raise TookTooLong(f"not done after {PATIENCE_S} s")
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(before)


def fuzz(seconds: float, seed: int, kept: Path) -> Found:
    """Look for inputs that end badly, until the first one; it goes to `kept`."""
    draw = random.Random(seed)
    found = Found()
    with tempfile.TemporaryDirectory(prefix="aiofs-ledgers-") as tree, _silence():
        server = Server(Path(tree))
        corpus = list(server.seeds())
        waiting = list(corpus)
        until = time.monotonic() + seconds
        while waiting or time.monotonic() < until:
            changes = 0 if waiting else draw.choice((1, 1, 2, 4))
            file = waiting.pop() if waiting else draw.choice(corpus)
            for _ in range(changes):
                file = changed(file, draw.choice(corpus), draw)
            lines: set[tuple[str, int]] = set()
            try:
                with _tracing(lines, time.monotonic() + PATIENCE_S):
                    found.refused += not server.load(file)
            except Exception as error:
                kept.mkdir(parents=True, exist_ok=True)
                found.problem = f"{type(error).__name__}: {error}"
                data = pickle.dumps((file, server.files))
                found.input = kept / f"ledger-{zlib.crc32(data):08x}"
                found.input.write_bytes(data)
                return found
            found.runs += 1
            if not lines <= found.lines:
                found.lines |= lines
                corpus.append(file)
        found.kept = len(corpus)
    return found


def replay(path: Path) -> bool:
    """Load an input again; False: it was refused. Raises what it raised."""
    file, files = pickle.loads(path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="aiofs-ledgers-") as tree:
        server = Server(Path(tree))
        return server.load(file.moved(files, server.files))
