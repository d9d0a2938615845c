"""The words of `aiofs bench`, checked. Imports nothing that takes time: `aiofs --help` lists them too."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..config import DRIVERS, CacheMode
from ..errors import BadInput

WORKLOAD_NAMES = ("randread", "read", "randwrite", "write")
CACHES = (CacheMode.NONE, CacheMode.WRITEBACK)
MAX_DEPTH = 1024
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 512, 1 << 20
MAX_BUFFER_BYTES = 256 << 20
"""Depth times block size: so much memory is written before each cell."""
MAX_ROUNDS = 100
MAX_RUNTIME_S = 600.0

DEPTHS, QUICK_DEPTHS = (1, 4, 32, 128), (1, 32)
ROUNDS, QUICK_ROUNDS = 3, 2
RUNTIME_S, QUICK_RUNTIME_S = 0.2, 0.1

DESCRIPTION = """\
Compare the AIO drivers on this machine for this image, without FUSE, through
the queue that a mount uses. Reads run on the image itself, which is not
changed; writes on a temporary file beside it, which has no name and goes with
the process. It takes about a minute; --quick: ten seconds.
"""

EPILOG = """\
what the columns say, each the median of the rounds:
  IOPS, spread  requests per second; half the way from lowest to highest round
  p50, p99      latency from submit to completion
  CPU/IO        CPU time of the process per request
  sleeps/IO     voluntary context switches per request, of all its threads
  late          share of sequential requests that reach the kernel after one
                submitted later

how the recommendation is found: in each cell (workload and depth) a driver's
IOPS is taken as a share of the best one's; the geometric mean of its shares is
its score. A driver is level with the best one when it is within 3 % of it, or
within 10 % and faster in at least one round. Of those that are level, the one
with the least CPU time per request.

examples:
  aiofs bench disk.img
  aiofs bench disk.img --quick --plot bench.svg
  aiofs bench /dev/vg0/guest --workloads randread,read --depths 1,32
  aiofs bench copy.img --destructive --runtime 1 --rounds 5 --json > bench.json

exit status: 0 measured; 1 it failed; 2 bad input; 130 Ctrl-C, 143 SIGTERM.
"""


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    image: Path
    drivers: tuple[str, ...] | None
    """None: those that work."""
    workloads: tuple[str, ...]
    depths: tuple[int, ...]
    block_size: int
    runtime_s: float
    rounds: int
    cache: CacheMode | None
    """None: O_DIRECT where it works."""
    destructive: bool
    merge: bool
    quick: bool
    seed: int
    json: bool
    plot: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `aiofs bench`."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="an image file or a block device")
    add("--drivers", metavar="A,B", help=f"of {','.join(DRIVERS)} (default: all that work)")
    add("--workloads", metavar="A,B", help=f"of {','.join(WORKLOAD_NAMES)} (default: all)")
    add("--depths", metavar="N,N", help=f"requests in flight, 1 to {MAX_DEPTH} (default {_list(DEPTHS)})")
    add("--block-size", metavar="SIZE", default="4k", help="of a request: 512 to 1m (default 4k)")
    add("--runtime", metavar="S", help=f"seconds that count in each cell (default {RUNTIME_S})")
    add("--rounds", metavar="N", help=f"times that every cell is measured (default {ROUNDS})")
    add("--cache", metavar="MODE", help="none or writeback (default: none where O_DIRECT works)")
    add(
        "--merge",
        action="store_true",
        help="merge adjacent requests that are submitted together, as mounts do",
    )
    add("--destructive", action="store_true", help="write on the image itself: ITS CONTENT IS LOST")
    add("--quick", action="store_true", help=f"depths {_list(QUICK_DEPTHS)}, {QUICK_ROUNDS} short rounds")
    add("--seed", metavar="N", help="of order and offsets, to repeat a run (default: another one each time)")
    add("--json", action="store_true", help="print JSON, for programs")
    add("--plot", metavar="FILE.svg", help="write a chart")


def request(arguments: argparse.Namespace, image: Path) -> Request:
    """What the words ask for. BadInput names the wrong one."""
    quick: bool = arguments.quick
    depths = _depths(arguments.depths, QUICK_DEPTHS if quick else DEPTHS)
    block_size = _block_size(arguments.block_size)
    if depths[-1] * block_size > MAX_BUFFER_BYTES:
        raise BadInput(
            f"queue depth {depths[-1]} with blocks of {arguments.block_size} needs "
            f"{depths[-1] * block_size >> 20:,} MiB of memory, more than {MAX_BUFFER_BYTES >> 20}; "
            "use a smaller --depths or --block-size"
        )
    return Request(
        image=image,
        drivers=_names("AIO driver", arguments.drivers, DRIVERS),
        workloads=_names("workload", arguments.workloads, WORKLOAD_NAMES) or WORKLOAD_NAMES,
        depths=depths,
        block_size=block_size,
        runtime_s=_seconds(arguments.runtime, QUICK_RUNTIME_S if quick else RUNTIME_S),
        rounds=_number("rounds", arguments.rounds, QUICK_ROUNDS if quick else ROUNDS, MAX_ROUNDS),
        cache=_cache(arguments.cache),
        destructive=arguments.destructive,
        merge=arguments.merge,
        quick=quick,
        seed=_number("seed", arguments.seed, 1 + int.from_bytes(os.urandom(2), "big"), 2**32),
        json=arguments.json,
        plot=_plot(arguments.plot),
    )


def _list(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _names(what: str, words: str | None, valid: tuple[str, ...]) -> tuple[str, ...] | None:
    if words is None:
        return None
    for word in words.split(","):
        if word not in valid:
            raise BadInput(f"unknown {what} '{word}'; valid: {' '.join(valid)}")
    return tuple(name for name in valid if name in words.split(","))


def _whole(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else None


def _number(what: str, word: str | None, default: int, most: int) -> int:
    if word is None:
        return default
    number = _whole(word)
    if number is None or not 1 <= number <= most:
        raise BadInput(f"{what} '{word}' is not a number from 1 to {most}")
    return number


def _depths(words: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if words is None:
        return default
    return tuple(sorted({_number("queue depth", word, 1, MAX_DEPTH) for word in words.split(",")}))


def _block_size(word: str) -> int:
    unit = {"k": 1 << 10, "m": 1 << 20}.get(word[-1:].lower(), 1)
    number = _whole(word if unit == 1 else word[:-1])
    size = (number or 0) * unit
    if not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE or size & (size - 1):
        raise BadInput(f"block size '{word}' is not a power of two from {MIN_BLOCK_SIZE} to 1m; try 4k")
    return size


def _seconds(word: str | None, default: float) -> float:
    if word is None:
        return default
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not 0.01 <= seconds <= MAX_RUNTIME_S:  # not a number is neither
        raise BadInput(f"runtime '{word}' is not a number of seconds from 0.01 to {MAX_RUNTIME_S:g}")
    return seconds


def _cache(word: str | None) -> CacheMode | None:
    if word is None:
        return None
    if word not in CACHES:
        raise BadInput(f"cache mode '{word}' is not measured; use none (O_DIRECT) or writeback")
    return CacheMode(word)


def _plot(word: str | None) -> Path | None:
    if word is None:
        return None
    path = Path(word).absolute()
    if path.suffix != ".svg":
        raise BadInput(f"--plot {word} must end in .svg")
    if not path.parent.is_dir():
        raise BadInput(
            f"--plot {word}: directory {path.parent} does not exist; make it: mkdir -p {path.parent}"
        )
    return path
