"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from . import auto, chart, costs, filesystems, machine, report
from .processes import TargetError, undisturbed
from .results import Cell, Costs, Results
from .run import SLICES, Plan, measure
from .targets import TARGETS, Lab, Target
from .workloads import MIB, WORKLOADS, Workload

UNITS = {"M": MIB, "G": 1024 * MIB}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure (or read an earlier run), print, and write what was asked for. Exit status 0, 2 or 130."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.auto:
            return _measure_auto(options)
        results = _read(options.from_file) if options.from_file else _measure(options)
    except KeyboardInterrupt:
        _tell("interrupted; everything was taken down")
        return 130
    except (TargetError, OSError) as error:
        _tell(f"bench: {error}")
        return 2
    print(report.markdown(results) if options.markdown else report.text(results), end="")
    if options.svg:
        options.svg.write_text(chart.svg(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure aiofs beside the raw image, qemu-storage-daemon and nbdfuse, in one run, "
        "interleaved, all on one image of --size. It takes about 25 minutes. The results go to "
        "bench-results/DATE.json.",
        epilog="targets: "
        + " ".join(t.name for t in TARGETS)
        + "; workloads: "
        + " ".join(w.name for w in WORKLOADS),
    )
    parser.add_argument(
        "--targets", type=_target_list, default=TARGETS, metavar="A,B", help="only these; * is allowed"
    )
    parser.add_argument(
        "--workloads", type=_workload_list, default=WORKLOADS, metavar="A,B", help="only these"
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds (default 5; quick: 1)")
    parser.add_argument("--runtime", type=float, metavar="S", help="seconds per cell (default 2; quick: 0.5)")
    parser.add_argument(
        "--size", type=_size, metavar="N", help="of the image: 512M, 1G (default 1G; quick: 256M)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 round, short cells, small image: a first look"
    )
    parser.add_argument(
        "--full", action="store_true", help="also --no-merge in random workloads (3 minutes more)"
    )
    parser.add_argument("--dir", type=Path, default=Path(), help="where the image is written (default: here)")
    parser.add_argument(
        "--engine", choices=["libaio", "io_uring"], default="libaio", help="fio's engine, for all"
    )
    parser.add_argument(
        "--qemu-aio", choices=["native", "io_uring", "threads"], default="native", help="for qsd"
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="instead: --aio auto beside each driver, on ext4, xfs, btrfs and tmpfs, as root (40 minutes)",
    )
    parser.add_argument(
        "--rows",
        type=_auto_rows,
        default="*",
        metavar="A,B",
        help="with --auto, only these: btrfs/write-qd1,tmpfs/*",
    )
    parser.add_argument("--no-costs", action="store_true", help="leave out the mount of 10,000 images")
    parser.add_argument(
        "--from", dest="from_file", type=Path, metavar="JSON", help="show an earlier run again"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the chart")
    parser.add_argument(
        "--markdown", action="store_true", help="print the README's table instead of the report"
    )
    return parser


def _measure_auto(options: argparse.Namespace) -> int:
    """--auto: 1 when auto is further from the best driver than it may be."""
    size = options.size or 256 * MIB
    runtime_s = options.runtime or (0.5 if options.quick else 1.25)
    rounds = options.rounds or (1 if options.quick else 5)
    plan = Plan(auto.TARGETS, auto.WORKLOADS, rounds, runtime_s, options.engine)
    with _directory(options.dir, filesystems.space("btrfs", size)) as directory:
        found: list[auto.Row] = []
        stored = {}
        for kind, results in auto.run(directory, size, plan, options.rows, _tell):
            found += auto.rows(kind, results)
            stored[kind] = [dataclasses.asdict(cell) for cell in results.cells]
        facts = machine.facts(directory)
    path = Path("bench-results") / f"{_now()}-auto.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "filesystems": stored}, indent=1) + "\n")
    _tell(f"written: {path}")
    print(auto.markdown(found))
    print(
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; {_now()}; "
        f"{plan.rounds} rounds of {runtime_s:g} s in {SLICES} slices, shuffled, an image of {size // MIB} MiB"
    )
    return 0 if found and all(row.met for row in found) else 1


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%dT%H%M%S")


@contextlib.contextmanager
def _directory(parent: Path, needed: int) -> Iterator[Path]:
    """A directory for everything that is measured, with room for `needed` bytes."""
    parent = parent.resolve(strict=True)
    _check_space(parent, needed)
    directory = Path(tempfile.mkdtemp(prefix="aiofs-bench.", dir=parent))
    try:
        yield directory
    finally:
        with undisturbed():
            _remove_if_empty(directory)


def _measure(options: argparse.Namespace) -> Results:
    size = options.size or (256 * MIB if options.quick else 1024 * MIB)
    runtime_s = options.runtime or (0.5 if options.quick else 2.0)
    rounds = options.rounds or (1 if options.quick else 5)
    plan = Plan(options.targets, options.workloads, rounds, runtime_s, options.engine, options.full)
    if not any(plan.order(workload, 0) for workload in plan.workloads):
        places = ", ".join(sorted({t.name for t in TARGETS if t.place in {w.place for w in plan.workloads}}))
        raise TargetError(f"none of these --targets is measured in these --workloads, but {places}")
    date = _now()
    with _directory(options.dir, size) as directory:
        _tell(f"writing an image of {size // MIB:,} MiB in {directory}")
        lab = Lab(directory, size, options.qemu_aio)
        cells = list(measure(plan, lab, _tell))
        idle = None if options.no_costs else _costs(directory, plan.rounds)
        facts = machine.facts(directory)
    return _store(date, plan, size, options.qemu_aio, cells, idle, facts)


def _costs(directory: Path, rounds: int) -> Costs | None:
    _tell(f"mounting {costs.IMAGES:,} images")
    try:
        return costs.measure(directory, rounds)
    except (TargetError, OSError) as error:
        _tell(f"the mount of many images is left out: {error}")
        return None


def _store(
    date: str, plan: Plan, size: int, qemu_aio: str,
    cells: list[Cell], idle: Costs | None, facts: dict[str, str],
) -> Results:  # fmt: skip
    settings = {
        "size": size,
        "rounds": plan.rounds,
        "runtime_s": plan.runtime_s,
        "slices": SLICES,
        "engine": plan.engine,
        "qemu_aio": qemu_aio,
    }
    results = Results(date, facts, settings, cells, idle)
    path = Path("bench-results") / f"{date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    _tell(f"written: {path}")
    return results


def _read(path: Path) -> Results:
    try:
        return Results.from_json(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise TargetError(f"{path} is not a result of scripts/bench: {error!r}") from None


def _target_list(words: str) -> list[Target]:
    """The targets that match, and the baselines that their ratios need."""
    wanted = _matching(words, [target.name for target in TARGETS])
    wanted |= {target.place.baseline for target in TARGETS if target.name in wanted}
    return [target for target in TARGETS if target.name in wanted]


def _workload_list(words: str) -> list[Workload]:
    wanted = _matching(words, [workload.name for workload in WORKLOADS])
    return [workload for workload in WORKLOADS if workload.name in wanted]


def _auto_rows(words: str) -> dict[str, list[Workload]]:
    try:
        return auto.rows_named(words)
    except ValueError as error:
        names = " ".join(f"{kind}/{workload.name}" for kind, workload in auto.ROWS)
        raise argparse.ArgumentTypeError(f"{str(error)!r} is none of: {names}") from None


def _matching(words: str, names: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in words.split(","):
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise argparse.ArgumentTypeError(f"{pattern!r} is none of: {' '.join(names)}")
        found.update(matched)
    return found


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of at least 1")
    return int(word)


def _size(word: str) -> int:
    unit = UNITS.get(word[-1:].upper())
    if unit is None or not word[:-1].isdigit() or int(word[:-1]) == 0:
        raise argparse.ArgumentTypeError(f"{word!r}: give a size as 512M or 1G")
    return int(word[:-1]) * unit


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise TargetError(
            f"{directory} has {free // MIB:,} MiB free, {needed // MIB:,} MiB are needed; use --size or --dir"
        )


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        _tell(f"left behind: {directory} ({os.strerror(error.errno or 0)})")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
