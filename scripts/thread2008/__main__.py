"""The command line of scripts/claims."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from aiofs.bench.results import Results
from aiofs.bench.scratch import MIB, NoScratch
from aiofs.errors import AiofsError

from .claims import Claim, claims, markdown
from .lab import Lab, Settings, Taken


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table. Exit status 0, 1, 2 or 130."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    settings = Settings(
        directory=options.dir,
        size=(64 if options.quick else 256) * MIB,
        rounds=options.rounds or (1 if options.quick else 5),
        runtime_s=0.02 if options.quick else 0.2,
        seed=options.seed,
    )
    try:
        with Lab(settings, _tell) as lab:
            _tell("comparing the drivers")
            results = lab.compare()
            taken = list(lab.take())
        found = claims(results, taken)
        path = _write(options.json, settings, results, taken, found)
    except KeyboardInterrupt:
        _tell("interrupted; nothing is left behind")
        return 130
    except (AiofsError, NoScratch, OSError) as error:
        _tell(f"claims: {error}")
        return 1
    print(markdown(found))
    print(f"\n{machine_line(results, settings)}")
    _tell(f"written: {path}")
    return 0


def machine_line(results: Results, settings: Settings) -> str:
    """Where the numbers come from."""
    machine = results.machine
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}, "
        f"{results.filesystem}, one file of {results.size // MIB} MiB, O_DIRECT, 4 KiB, "
        f"{settings.rounds} rounds of {settings.runtime_s:g} s a cell, shuffled with seed {settings.seed}; "
        f"medians; {machine['date']}"
    )


def _write(
    path: Path | None, settings: Settings, results: Results, taken: list[Taken], found: list[Claim]
) -> Path:
    if path is None:
        date = datetime.now().astimezone().strftime("%Y-%m-%dT%H%M%S")
        path = Path("bench-results") / f"claims-{date}.json"
        path.parent.mkdir(exist_ok=True)
    document: dict[str, Any] = {
        "claims": [asdict(claim) for claim in found],
        "settings": asdict(settings) | {"directory": str(settings.directory)},
        "drivers": results.to_json(),
        "cells": [_cell(t) for t in taken],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _cell(taken: Taken) -> dict[str, Any]:
    cell = asdict(taken.cell) | {"file": taken.cell.file.value, "op": taken.cell.op.name.lower()}
    return cell | {"round": taken.round, **asdict(taken.measurement)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/claims",
        description="Measure what was said of AIO in the review of a QEMU patch in 2008, on temporary files "
        "without a name. It takes 3 minutes. The numbers go to bench-results/claims-DATE.json.",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(),
        help="the file system to measure (default: the directory you are in)",
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds (default 5; quick: 1)")
    parser.add_argument("--seed", type=_positive, default=2008, metavar="N", help="of order and offsets")
    parser.add_argument("--quick", action="store_true", help="1 round of short cells: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    return parser


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of at least 1")
    return int(word)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
