"""The ledger: what a server that is killed between any two instructions leaves for the next one."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofs import ledger as module
from aiofs.ledger import Kind, Ledger, LedgerUnusable

SIZE = 4480
"""Of an image's counters, here."""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger.create(SIZE)
    yield made
    os.close(made.fd)


def successor(ledger: Ledger) -> Ledger:
    """The same memory as another process sees it."""
    return Ledger(ledger.fd, SIZE)


def left(ledger: Ledger, kind: Kind = Kind.NODE) -> dict[int, bytes]:
    """What a successor finds."""
    return dict(successor(ledger).records(kind))


def lock_a_page(ledger: Ledger, offset: int) -> None:
    """As mlockall(2) of a server does: what madvise(2) then refuses, it refuses for one locked page."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(ledger._map, offset))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mlock(ctypes.c_void_p(address), 4096) == 0, os.strerror(ctypes.get_errno())


def test_the_newest_record_counts(ledger: Ledger) -> None:
    """Of each kind and number; a dropped one is gone."""
    ledger.put(Kind.NODE, 7, b"first")
    ledger.put(Kind.IMAGE, 7, b"an image")
    ledger.put(Kind.NODE, 8, b"")
    ledger.put(Kind.NODE, 7, b"second")
    assert left(ledger) == {8: b"", 7: b"second"}
    assert left(ledger, Kind.IMAGE) == {7: b"an image"}
    ledger.drop(Kind.NODE, 7)
    assert left(ledger) == {8: b""}
    ledger.put(Kind.NODE, 7, b"third")
    assert left(ledger) == {8: b"", 7: b"third"}


Step = tuple[Kind, int, bytes | None]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(Kind),
        st.integers(0, 2**64 - 1) | st.integers(0, 3),
        st.none() | st.binary(max_size=300),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 20))
def test_it_is_a_map_that_survives(steps: list[Step], fold_at: int) -> None:
    """Whatever is put and dropped, and however often the log is copied to its other half."""
    ledger = Ledger.create(SIZE)
    try:
        model: dict[tuple[Kind, int], bytes] = {}
        for kind, number, payload in steps:
            ledger._fold_at = min(ledger._fold_at, fold_at * 100)
            if payload is None:
                ledger.drop(kind, number)
                model.pop((kind, number), None)
            else:
                ledger.put(kind, number, payload)
                model[kind, number] = payload
        found = {(kind, number): text for kind in Kind for number, text in successor(ledger).records(kind)}
        assert found == model
    finally:
        os.close(ledger.fd)


def test_the_log_is_bounded_by_what_is_live(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million changes of a few records stay within the room of a few thousand."""
    monkeypatch.setattr(module, "_FOLD_AT", 4096)
    ledger._fold_at = 4096
    for round_ in range(20_000):
        ledger.put(Kind.NODE, round_ % 10, struct.pack("<Q", round_))
    assert os.fstat(ledger.fd).st_blocks * 512 < 1 << 20
    assert left(ledger) == {round_ % 10: struct.pack("<Q", round_) for round_ in range(19_990, 20_000)}


def test_a_record_that_was_not_finished_does_not_count(ledger: Ledger) -> None:
    """It is written first, and counted in then: killed in between, nothing has happened."""
    ledger.put(Kind.NODE, 1, b"whole")
    length = ledger._words[module._LENGTHS]
    at = module._LOGS_AT + length
    ledger._map[at : at + 10] = b"x" * 10
    assert left(ledger) == {1: b"whole"}
    ledger.put(Kind.NODE, 2, b"next")
    assert left(ledger) == {1: b"whole", 2: b"next"}


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_damage_is_noticed(where: int, change: int) -> None:
    """Any changed byte of the log: no record is read that was not put."""
    ledger = Ledger.create(SIZE)
    try:
        for number in range(5):
            ledger.put(Kind.NODE, number, b"%d" % number * 9)
        at = module._LOGS_AT + where % ledger._words[module._LENGTHS]
        ledger._map[at] ^= change
        with pytest.raises(LedgerUnusable, match="damaged"):
            left(ledger)
    finally:
        os.close(ledger.fd)


@pytest.mark.parametrize(
    ("word", "value", "says"),
    [
        (0, 0, "damaged"),
        (module._CHECKSUM, 1, "damaged"),
        (module._ACTIVE, 2, "damaged"),
        (module._LENGTHS, 1 << 40, "damaged"),
        (module._FULL, 1, "more names"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(ledger: Ledger, word: int, value: int, says: str) -> None:
    """Before anything else is looked at."""
    ledger._words[word] = value
    with pytest.raises(LedgerUnusable, match=says):
        successor(ledger)


def test_another_format_is_refused_by_its_number(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a newer version of aiofs sees this one's."""
    monkeypatch.setattr(module, "FORMAT", 99)
    with pytest.raises(LedgerUnusable, match="of format 2, this aiofs has 99"):
        successor(ledger)


def test_other_counters_are_another_format(ledger: Ledger) -> None:
    """The data plane of another version would write past them."""
    with pytest.raises(LedgerUnusable):
        Ledger(ledger.fd, SIZE + 64)


def test_its_size_is_sealed(ledger: Ledger) -> None:
    """Nobody can take the memory away under a server."""
    for size in (0, os.fstat(ledger.fd).st_size + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(ledger.fd, size)


def test_a_ledger_that_is_full_is_given_up(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with a warning; the server goes on, and a successor refuses."""
    monkeypatch.setattr(module, "_LOG_BYTES", 8192)
    for number in range(300):
        ledger.put(Kind.NODE, number, b"x" * 100)
    [warning] = [record.getMessage() for record in caplog.records]
    assert "would not survive" in warning


def test_what_is_written_in_place_is_shared(ledger: Ledger) -> None:
    """Lookups, counters, and the number of answers."""
    ledger.lookups[5] = 77
    memory, at = ledger.counters_place(3)
    memory[at : at + 4] = b"abcd"
    memory, at = ledger.progress_place()
    memory[at : at + 16] = struct.pack("<QQ", 13, 12)
    other = successor(ledger)
    assert other.lookups[5] == 77
    assert module.progress(ledger.fd) == (13, 12)
    memory, at = other.counters_place(3)
    _, after = other.counters_place(4)
    assert memory[at : at + 4] == b"abcd"
    assert after - at >= SIZE
    assert not any(memory[at + 4 : after + SIZE])


def test_a_log_in_locked_memory_folds(ledger: Ledger) -> None:
    """Every record of many is there, those too at which the log was folded, both ways; nothing is raised."""
    for half in (0, 1):
        lock_a_page(ledger, module._LOGS_AT + half * module._LOG_BYTES)
    ledger._fold_at = 4096
    for number in range(20_000):
        ledger.put(Kind.NODE, number % 100, number.to_bytes(4, "little") * 64)
        if number % 1000 < 100:
            assert left(ledger)[number % 100] == number.to_bytes(4, "little") * 64
    assert left(ledger) == {n % 100: n.to_bytes(4, "little") * 64 for n in range(19_900, 20_000)}
