"""The parser of FUSE messages: what it accepts is sound, and it looks at nothing else."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from aiofs.dataplane.binding import ffi, lib

READ, WRITE, FSYNC, INTERRUPT, FALLOCATE, LSEEK = 15, 16, 20, 36, 43, 46
KINDS = ["read", "write", "fsync", "fallocate", "lseek", "other", "ignored", "refused"]
MAX = 1 << 20


def parse(data: bytes) -> tuple[str, int, int, int, int]:
    """kind, unique, node, offset, length"""
    out = ffi.new("aiofs_message *")
    assert lib.aiofs_parse(data, len(data), out) == 0
    return KINDS[out.kind], out.unique, out.node, out.offset, out.length


def mode_of(data: bytes) -> int:
    out = ffi.new("aiofs_message *")
    assert lib.aiofs_parse(data, len(data), out) == 0
    return int(out.mode)


def message(opcode: int, body: bytes, *, unique: int = 6, node: int = 3, length: int | None = None) -> bytes:
    total = 40 + len(body) if length is None else length
    return struct.pack("<IIQQIIIHH", total, opcode, unique, node, 0, 0, 0, 0, 0) + body


def transfer(offset: int, size: int, data: bytes = b"") -> bytes:
    """fuse_read_in, or fuse_write_in with its data."""
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0) + data


u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    """Whatever comes, the parser ends, and reads no byte behind the message (a guard page is there)."""
    kind, *_ = parse(data)
    if len(data) < 40 or struct.unpack_from("<I", data)[0] != len(data):
        assert kind == "refused"


@given(u64, u64, u64, u32)
def test_a_read_is_accepted_exactly_when_it_is_sound(unique: int, node: int, offset: int, size: int) -> None:
    """READ: at most 1 MiB, ending before 2**63; and its fields come through."""
    parsed = parse(message(READ, transfer(offset, size), unique=unique, node=node))
    if size <= MAX and offset <= (1 << 63) - 1 - size:
        assert parsed == ("read", unique, node, offset, size)
    else:
        assert parsed[:3] == ("refused", unique, node)


@given(u64, st.integers(0, 300), st.integers(0, 300))
def test_a_write_is_accepted_exactly_when_it_holds_what_it_says(offset: int, size: int, held: int) -> None:
    """WRITE: as READ, and the data's length is the size."""
    kind, *_ = parse(message(WRITE, transfer(offset, size, bytes(held))))
    sound = size == held and offset <= (1 << 63) - 1 - size
    assert kind == ("write" if sound else "refused")


@given(u64, u64, u32)
@example(0, 0, 0)
@example((1 << 63) - 2, 1, 0)
@example(1, (1 << 63) - 1, 0)
def test_an_fallocate_is_accepted_exactly_when_it_has_a_range(offset: int, length: int, mode: int) -> None:
    """FALLOCATE: at least a byte, ending before 2**63; whatever the mode, which comes through."""
    parsed = parse(message(FALLOCATE, struct.pack("<QQQII", 0, offset, length, mode, 0)))
    if 0 < length <= (1 << 63) - 1 - offset:
        assert parsed == ("fallocate", 6, 3, offset, length)
        assert mode_of(message(FALLOCATE, struct.pack("<QQQII", 0, offset, length, mode, 0))) == mode
    else:
        assert parsed[0] == "refused"


@given(st.integers(-(1 << 63), (1 << 63) - 1), u32)
def test_every_lseek_is_accepted(offset: int, whence: int) -> None:
    """LSEEK carries what its caller said, a negative offset too; judging it is for later."""
    data = message(LSEEK, struct.pack("<QqII", 0, offset, whence, 0))
    assert parse(data) == ("lseek", 6, 3, offset, 0)
    assert mode_of(data) == whence


@given(st.sampled_from([READ, WRITE, FSYNC, FALLOCATE, LSEEK]), st.integers(0, 39))
def test_a_message_cut_short_is_refused(opcode: int, size: int) -> None:
    """A data request without all its fixed fields is refused."""
    kind, *_ = parse(message(opcode, bytes(size)))
    whole = {FSYNC: (16, "fsync"), LSEEK: (24, "lseek")}
    needed, name = whole.get(opcode, (40, ""))
    assert kind == (name if size >= needed else "refused")


@given(
    st.integers(0, 200).filter(lambda o: o not in (READ, WRITE, FSYNC, INTERRUPT, FALLOCATE, LSEEK)),
    st.binary(max_size=100),
)
def test_everything_else_is_for_the_control_plane(opcode: int, body: bytes) -> None:
    """Opcodes that the data plane does not know are none of its business."""
    assert parse(message(opcode, body))[0] == "other"


@given(st.binary(max_size=100), u32)
def test_the_length_must_be_the_size(body: bytes, length: int) -> None:
    """A header that lies about the length is refused, whatever the opcode."""
    kind, *_ = parse(message(1, body, length=length))
    assert (kind == "other") == (length == 40 + len(body))
