"""What a new server makes of a memory file that is not as it was left: one state or the other, or a refusal.

AIOFS_SEED=n chooses other changes.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planes import FakePlane, make_ledger, make_table, node_of, run

from aiofs import ledger as layout
from aiofs.changes import Changes
from aiofs.dataplane import COUNTERS_SIZE
from aiofs.exchange import kept_exchange
from aiofs.images import ImageTable
from aiofs.ledger import Kind, Ledger, LedgerUnusable
from aiofs.nodes import ROOT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from sanitize import ledgers

SEED = int(os.environ.get("AIOFS_SEED", "2008"))
SECONDS = 3


def test_a_changed_ledger_is_refused_or_makes_sense(tmp_path: Path) -> None:
    """Whatever was changed in it. `scripts/check --sanitize --fuzz-only --fuzz 3600` looks for an hour."""
    found = ledgers.fuzz(SECONDS, SEED, tmp_path)
    assert found.problem == "", f"seed {SEED}, input {found.input}"
    assert 0 < found.refused < found.runs


def test_what_was_found_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the files of the next tree have other inode numbers: else its images would not be opened."""

    def check(table: ImageTable, _: Changes) -> None:
        if table._images:
            raise RuntimeError("an image is open")

    monkeypatch.setattr(ledgers, "_check", check)
    found = ledgers.fuzz(SECONDS, SEED, tmp_path)
    assert found.problem == "RuntimeError: an image is open"
    assert found.input
    with pytest.raises(RuntimeError, match="an image is open"):
        ledgers.replay(found.input)


# -- a kill in the middle --

State = dict[tuple[int, int], bytes]
Write = tuple[int, bytes, bool]
"""Offset in the memory file, what is stored there, whether it is stored whole."""


class _WatchedMap(mmap.mmap):
    """Notes what is stored into it."""

    writes: list[Write]

    def __setitem__(self, where: Any, data: Any) -> None:
        super().__setitem__(where, data)
        self.writes.append((where.start, bytes(data), False))

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        self.writes += ((at, bytes(4096), True) for at in range(start, start + 8192, 4096))
        super().madvise(option, start, length)


class _WatchedWords:
    """The words of the first page; each is stored whole."""

    def __init__(self, words: memoryview, writes: list[Write]) -> None:
        self._words, self._writes = words, writes

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value
        self._writes.append((8 * index, struct.pack("<Q", value), True))


def writes_of(ledger: Ledger, work: Callable[[Ledger], None]) -> list[Write]:
    """All that `work` stores, in its order."""
    watched: Any = Ledger(ledger.fd, COUNTERS_SIZE)
    watched._fold_at = ledger._fold_at
    watched._map = _WatchedMap(ledger.fd, os.fstat(ledger.fd).st_size)
    watched._map.writes = []
    watched._words = _WatchedWords(watched._words, watched._map.writes)
    work(watched)
    writes: list[Write] = watched._map.writes
    return writes


def state(fd: int) -> State:
    """What a successor finds."""
    ledger = Ledger(fd, COUNTERS_SIZE)
    return {(kind, number): payload for kind in Kind for number, payload in ledger.records(kind)}


def cuts(writes: list[Write]) -> Iterator[tuple[int, bytes]]:
    """The stores in their order, byte by byte where a kill may come between two."""
    for at, data, whole in writes:
        if whole:
            yield at, data
        else:
            yield from ((at + index, data[index : index + 1]) for index in range(len(data)))


def filled(steps: list[tuple[int, bytes | None]]) -> Ledger:
    ledger = make_ledger()
    for number, payload in steps:
        if payload is None:
            ledger.drop(Kind.NODE, number)
        else:
            ledger.put(Kind.NODE, number, payload)
    return ledger


STEP = st.tuples(st.integers(0, 5), st.none() | st.binary(max_size=20))


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=5), STEP, st.booleans())
def test_a_record_cut_anywhere_has_been_written_or_not(
    steps: list[tuple[int, bytes | None]], last: tuple[int, bytes | None], fold: bool
) -> None:
    """Never refused, never anything between; so, too, while the log is copied to its other half."""
    done = filled(steps)
    torn = filled(steps)
    done._fold_at = 0 if fold else layout._FOLD_AT
    before = state(torn.fd)
    number, payload = last

    def work(ledger: Ledger) -> None:
        if payload is None:
            ledger.drop(Kind.NODE, number)
        else:
            ledger.put(Kind.NODE, number, payload)

    writes = writes_of(done, work)
    after = state(done.fd)
    assert writes
    for at, data in cuts(writes):
        os.pwrite(torn.fd, data, at)
        assert state(torn.fd) in (before, after)
    assert state(torn.fd) == after


# -- records that no mount writes --


@pytest.mark.parametrize(
    ("kind", "number", "payload"),
    [
        (Kind.NODE, 17, b"short"),
        (Kind.NODE, ROOT, struct.pack("<QI?", 0, 1, True)),
        (Kind.NODE, 2**64 - 1, struct.pack("<QI?", 0, 1, True)),
        (Kind.NODE, 17, struct.pack("<QI?", 0, 0, True)),
        (Kind.NODE, 17, struct.pack("<QI?", 0, layout.MAX_NODES, True)),
        (Kind.NODE, 17, struct.pack("<QI?QH", 0, 1, True, ROOT, 9) + b"short"),
        (Kind.NODE, 17, struct.pack("<QI?QH", 0, 1, True, ROOT, 2) + b".."),
        (Kind.IMAGE, 17, b"short"),
        (Kind.IMAGE, 17, struct.pack("<QIQ?", 0, layout.MAX_COUNTERS, 1, True)),
        (Kind.TALLY, 17, b"short"),
        (Kind.TALLY, 17, struct.pack("<QIH", 0, layout.MAX_COUNTERS, 0)),
        (Kind.FAILURE, 17, b""),
        (Kind.FAILURE, 17, struct.pack("<I", 1 << 31)),
        (Kind.CHANGE, 0, b"no JSON"),
        (Kind.CHANGE, 0, b"[" * 100_000),
        (Kind.CHANGE, 0, b"[[17], []]"),
        (Kind.CHANGE, 0, b'["make", []]'),
        (Kind.CHANGE, 0, b'[["rename", [1, "a"], [1, "b"]], [17]]'),
        (Kind.CHANGE, 0, b'[["remove", [1, "a"]], ["17"]]'),
        (Kind.CHANGE, 0, b'[["remove", [1, "../a"]], [17]]'),
        (Kind.CHANGE, 0, b'[["remove", [1, 2]], [17]]'),
        (Kind.INIT, 0, b""),
        (Kind.INIT, 0, bytes(200)),
        (Kind.INIT, 0, struct.pack("<III", 40, 40, 26) + bytes(32) + struct.pack("<Ii8x", 16, 0)),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    images: Path, kind: Kind, number: int, payload: bytes
) -> None:
    """By its name; before it is worked with, as with memory behind the end of the counters."""
    ledger = make_ledger()
    ledger.put(kind, number, payload)
    with pytest.raises(LedgerUnusable, match=f"damaged: its record {kind.name} {number}: "):
        make_table(images, FakePlane(), ledger=ledger)
        Changes(ledger)
        kept_exchange(ledger)


def test_nodes_with_one_count_of_lookups_are_refused(images: Path) -> None:
    """As a record that was doubled under another number would make them."""
    ledger = make_ledger()
    for ino in (17, 18):
        ledger.put(Kind.NODE, ino, struct.pack("<QI?", 0, 1, True))
    with pytest.raises(LedgerUnusable, match="two nodes"):
        make_table(images, FakePlane(), ledger=ledger)


def test_a_node_far_behind_the_others_costs_nothing(images: Path) -> None:
    """The only ones left of millions: what is free between them takes no memory, and is used again."""
    (images / "b.img").touch()
    ledger = make_ledger()
    for ino, slot in ((2**63, 2), (2**63 + 1, layout.MAX_NODES - 1)):
        ledger.put(Kind.NODE, ino, struct.pack("<QI?", 0, slot, True))
    tracemalloc.start()
    try:
        table = make_table(images, FakePlane(), ledger=ledger)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert [node_of(table, name).slot for name in (b"a.img", b"b.img")] == [1, 3]
    table.source.close()


def test_images_with_the_same_counters_are_refused(images: Path) -> None:
    """One open, one closed."""
    ledger = make_ledger()
    ledger.put(Kind.IMAGE, 17, struct.pack("<QIQ?", 0, 3, 1, True))
    ledger.put(Kind.TALLY, 18, struct.pack("<QIH", 0, 3, 0))
    with pytest.raises(LedgerUnusable, match="two images"):
        make_table(images, FakePlane(), ledger=ledger)


def test_lookups_that_cannot_be_are_refused(images: Path) -> None:
    """They could not be counted on from."""
    ledger = make_ledger()
    ledger.put(Kind.NODE, 17, struct.pack("<QI?", 0, 1, True))
    ledger.lookups[1] = (1 << 64) - 1
    with pytest.raises(LedgerUnusable, match="too many lookups"):
        make_table(images, FakePlane(), ledger=ledger)


def test_an_errno_that_cannot_be_is_refused(images: Path) -> None:
    """Before any image has been opened: the next server finds the ledger as it was."""
    ledger = make_ledger()
    ledger.put(Kind.IMAGE, 17, struct.pack("<QIQ?", 0, 0, 1, True))
    table = make_table(images, FakePlane(), ledger=ledger)
    table._tallies.in_slot(0).memory.sticky_error = 1
    with pytest.raises(LedgerUnusable, match="errno -1"):
        run(table.restore)
    table.source.close()
    assert dict(ledger.records(Kind.IMAGE))


def test_directories_that_are_each_others_parents_have_no_path(images: Path) -> None:
    """As two looks may find them, between which others have moved them: ESTALE, and no endless walk."""
    (images / "d/e").mkdir(parents=True)
    table = make_table(images, FakePlane())
    outer = node_of(table, b"d")
    inner = node_of(table, b"e", outer.ino)
    outer.add_name(inner.ino, b"d", 1)
    with pytest.raises(OSError, match="has been moved") as caught:
        table.nodes.path_of(inner.ino, b"f")
    assert caught.value.errno == errno.ESTALE
    table.source.close()
