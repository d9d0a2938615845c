"""What kernel and pyfuse3 agreed on at INIT, kept for the servers that follow: the kernel sends INIT once."""

from __future__ import annotations

import struct

from .errors import AiofsError
from .ledger import Kind, Ledger


def keep_exchange(ledger: Ledger, exchange: tuple[bytes, bytes]) -> None:
    """Have a successor know what kernel and pyfuse3 agreed on."""
    request, reply = exchange
    ledger.put(Kind.INIT, 0, struct.pack("<I", len(request)) + request + reply)


def kept_exchange(ledger: Ledger) -> tuple[bytes, bytes]:
    """The kernel's INIT and the answer it got.

    AiofsError: the mount never was ready. LedgerUnusable.
    """
    for exchange in ledger.restored(Kind.INIT, _unpack):
        return exchange
    raise AiofsError("the first server died before the mount was ready")


_INIT = 26
_IN_HEADER = struct.Struct("<II 32x")
"""Of fuse_in_header: len, opcode."""
_OUT_HEADER = struct.Struct("<Ii 8x")
"""Of fuse_out_header: len, error."""


def _unpack(_: int, record: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from("<I", record)
    request, reply = record[4 : 4 + length], record[4 + length :]
    if _IN_HEADER.unpack_from(request) != (len(request), _INIT):
        raise ValueError("it is not the kernel's INIT")
    if _OUT_HEADER.unpack_from(reply) != (len(reply), 0):
        raise ValueError("it is no answer to INIT")
    negotiated(reply)
    return request, reply


_INIT_OUT = struct.Struct("<16x 4I 2H 2I 2H I")
"""fuse_out_header, then of fuse_init_out: major, minor, max_readahead, flags, max_background,
congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2."""


def negotiated(reply: bytes) -> tuple[int, ...]:
    """What an answer to INIT agrees on; not what a restart with another queue depth may change."""
    fields: tuple[int, ...] = _INIT_OUT.unpack_from(reply)
    return fields[:4] + fields[6:]
