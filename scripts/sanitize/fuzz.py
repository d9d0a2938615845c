"""Fuzzing: libFuzzer with the targets of tests/harness/fuzz/, and the replay of inputs without it.

A target is a file there with one function, and a line in TARGETS. Its first inputs are made here, not kept.
An input that ends a target badly is kept in build/fuzz and printed; once it is put into
tests/harness/fuzz/found/TARGET/, it is replayed by every run of the tests.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiofs.dataplane.binding import ffi

from .build import HARNESS, Build
from .harness import ADDRESS

FUZZER_FLAGS = ("-O1", "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all")

LOOKUP, FORGET, OPEN, READ, WRITE, FSYNC, INIT, CREATE, INTERRUPT, BATCH_FORGET, FALLOCATE, LSEEK = (
    1, 2, 14, 15, 16, 20, 26, 35, 36, 42, 43, 46,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One fuzz target."""

    name: str
    seeds: Callable[[], Iterator[bytes]]
    max_bytes: int


@dataclass(frozen=True)
class Fuzzed:
    """What came of one target."""

    target: str
    runs: int
    problem: str = ""
    """What it printed when an input ended it badly."""
    inputs: tuple[Path, ...] = ()
    """Those inputs."""


# -- the first inputs --


def bodies() -> Iterator[tuple[int, bytes]]:
    """An opcode and the fixed part that belongs to it."""
    for offset, size in ((0, 4096), (100, 1), (19_999, 4096), (1 << 62, 1 << 20)):
        transfer = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
        yield READ, transfer
        yield WRITE, transfer + bytes(min(size, 4096))
    yield FSYNC, struct.pack("<QII", 0, 1, 0)
    for mode in (0, 3, 0x10, 0x11, 8):
        yield FALLOCATE, struct.pack("<QQQII", 0, 100, 9000, mode, 0)
    for whence in (3, 4, 0):
        yield LSEEK, struct.pack("<QqII", 0, 5, whence, 0)
    yield INIT, struct.pack("<IIIII", 7, 45, 131072, (1 << 30) | (1 << 22), 1 << 7) + bytes(44)
    yield LOOKUP, b"disk.img\0"
    yield FORGET, struct.pack("<Q", 1)
    yield BATCH_FORGET, struct.pack("<II", 3, 0) + bytes(48)
    for opcode in (OPEN, CREATE, INTERRUPT):
        yield opcode, bytes(16)


def replies() -> Iterator[bytes]:
    """The bodies of an INIT's, OPEN's, CREATE's and LOOKUP's answer."""
    for size in (64, 16, 144, 128):
        yield bytes(size)


def parser_seeds() -> Iterator[bytes]:
    """Messages and replies as they are on the wire."""
    for opcode, body in bodies():
        yield struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 10, 0, 0, 0, 0, 0) + body
    for body in replies():
        yield struct.pack("<IiQ", 16 + len(body), 0, 2) + body
    yield struct.pack("<IiQ", 16 + 24, 2, 0) + struct.pack("<Qqq", 10, -1, 0)


RAW_MESSAGE, MESSAGE, RAW_REPLY, REPLY, COMMAND, RAW_COMMAND = range(6)
GATHER = 0x80
"""Of a record: the loop takes no turn yet."""


def record(where: int, data: bytes, length: int | None = None) -> bytes:
    """One record of plane.c's input."""
    return struct.pack("<BH", where, len(data) if length is None else length) + data


def message(opcode: int, body: bytes, *, unique: int = 6, node: int = 0, where: int = MESSAGE) -> bytes:
    """A message; `node` 0 is an image, 1 one that has to be registered first, 2 the root, 3 nothing."""
    return record(where, bytes([opcode, node, unique]) + body, len(body))


def command(verb: int, node: int = 1, size: int = 0, flags: int = 0, block: int = 0, fds: int = 1) -> bytes:
    """A command to node 10 + `node`, for the driver `sync`; `block` is a power of two."""
    return record(COMMAND, bytes([verb, node, size, 1, flags, block, 0, fds]))


def plane_seeds() -> Iterator[bytes]:
    """Each kind of message with its answer, then what they do together."""
    for opcode, body in bodies():
        yield message(opcode, body) + message(opcode, body, node=2)
        gathered = b"".join(message(opcode, body, where=MESSAGE | GATHER, unique=u) for u in (6, 8, 10))
        yield gathered + message(FSYNC, bytes(16))
    for opcode, body in zip((INIT, OPEN, CREATE, LOOKUP), replies(), strict=True):
        asked = dict(bodies())[opcode]
        yield message(opcode, asked, node=2) + record(REPLY, bytes([6, 0]) + body, len(body))
        yield message(opcode, asked, node=2) + record(REPLY, bytes([6, 0xFE]), 0)
    for flags, block in ((0, 0), (1, 9), (1, 12), (16, 0), (2, 0), (8, 0), (3, 3)):
        served = command(1, flags=flags, block=block, fds=7 if flags == 0 else 3)
        for opcode, body in bodies():
            yield served + message(opcode, body, node=1) + command(3, size=2) + command(2)
    yield command(3, size=3) + command(3, node=0, size=2) + command(4) + record(RAW_COMMAND, bytes(5))
    yield message(BATCH_FORGET, struct.pack("<II", (1 << 32) - 1, 0) + bytes(32))  # more than it holds
    yield record(RAW_MESSAGE, bytes(20)) + record(RAW_REPLY, bytes(7))
    yield record(MESSAGE, bytes([BATCH_FORGET, 2, 6]) + struct.pack("<II", 3000, 0), 8 + 3000 * 16)


COUNTERS_HEAD = ffi.offsetof("aiofs_image_counters", "latency")
"""Bytes of an image's counters that successor.c takes from its input."""


def successor_seeds() -> Iterator[bytes]:
    """INITs of several sizes, answered and not, with counters that begin, go on and are at their end."""
    init = struct.pack("<IIQQIIIHH", 104, INIT, 2, 0, 0, 0, 0, 0, 0) + dict(bodies())[INIT]
    assert len(init) == 104
    for flags in (0, 4, 5, 6, 7, 8, 12):
        for error, count in ((0, 0), (5, 1), (4095, (1 << 64) - 1)):
            counted = struct.pack("<Q", count) * ((16 + COUNTERS_HEAD) // 8)
            for size in (len(init), 60, 0):
                head = struct.pack("<HBH", size, flags, error) + counted
                yield head + init[:size] + bytes(64)


TARGETS = (
    Target("parser", parser_seeds, 300),
    Target("plane", plane_seeds, 4000),
    Target("successor", successor_seeds, 700),
)


# -- replay and fuzzing --


def write_seeds(target: Target, directory: Path) -> list[Path]:
    """The first inputs, as files; those that once ended it badly are among them."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (directory / f"seed{number:03}").write_bytes(seed)
    for found in (HARNESS / "fuzz" / "found" / target.name).glob("*"):
        (directory / f"found-{found.name}").write_bytes(found.read_bytes())
    return sorted(directory.iterdir())


def replay(build: Build, target: Target, directory: Path) -> Fuzzed:
    """Run a target once with each of its first inputs, without libFuzzer."""
    inputs = write_seeds(target, directory / target.name)
    program = build.target(target.name, HARNESS / "fuzz" / "replay.c")
    done = _call([str(program), *map(str, inputs)], 300)
    problem = done.stdout if done.returncode else ""
    return Fuzzed(target.name, len(inputs), problem)


def fuzz(build: Build, target: Target, directory: Path, kept: Path, seconds: int) -> Fuzzed:
    """Let libFuzzer look for inputs that end the target badly; those go to `kept`."""
    corpus = directory / target.name
    write_seeds(target, corpus)
    program = build.target(target.name)
    kept.mkdir(parents=True, exist_ok=True)
    before = set(kept.iterdir())
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    done = _call(
        [str(program), *options, f"-artifact_prefix={kept}/{target.name}-", str(corpus)], seconds + 120
    )
    runs = [line.split()[-1] for line in done.stdout.splitlines() if "number_of_executed_units" in line]
    problem = done.stdout if done.returncode else ""
    new = tuple(sorted(set(kept.iterdir()) - before))
    return Fuzzed(target.name, int(runs[0]) if runs else 0, problem, new)


def _call(command: list[str], timeout_s: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **ADDRESS.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
    )
