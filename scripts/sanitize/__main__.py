"""The command line of scripts/check --sanitize."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import fuzz, harness, ledgers
from .build import ROOT, Build, CannotBuild

KEPT = ROOT / "build" / "fuzz"
"""Inputs that ended a target badly."""
LEDGER = "ledger"
TARGETS = (LEDGER, *(target.name for target in fuzz.TARGETS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, or one part. 0: nothing was found; 1: something was; 2: it could not be built."""
    options = _parser().parse_args(argv)
    if options.replay_ledger:
        print("loaded" if ledgers.replay(options.replay_ledger) else "refused")
        return 0
    with tempfile.TemporaryDirectory(prefix="aiofs-sanitize-") as name:
        directory = Path(name)
        try:
            sound = True
            if not options.fuzz_only:
                sound = _sanitize(options, directory)
            wanted = options.target or TARGETS
            if LEDGER in wanted:
                sound &= _fuzz_ledgers(options.fuzz, options.seed)
            sound &= _fuzz(
                [target for target in fuzz.TARGETS if target.name in wanted], options.fuzz, directory
            )
            return 0 if sound else 1
        except CannotBuild as error:
            print(error, file=sys.stderr)
            return 2


def _sanitize(options: argparse.Namespace, directory: Path) -> bool:
    files = directory / "images"
    files.mkdir()
    sound = True
    for sanitizer in harness.SANITIZERS:
        operations = options.operations or sanitizer.operations
        print(
            f"== {sanitizer.name}: seed {options.seed}, {operations} operations for each driver", flush=True
        )
        build = Build(directory / sanitizer.name, "gcc", sanitizer.flags)
        for ran in harness.run(sanitizer, build, options.seed, operations, files):
            if ran.left_out:
                print(f"{ran.driver:14} left out: {ran.left_out}")
            elif ran.problem:
                sound = False
                print(f"{ran.driver:14} FAILED\n{ran.problem}")
            else:
                print(f"{ran.driver:14} nothing found, {ran.seconds:.1f} s", flush=True)
    return sound


def _fuzz(targets: Sequence[fuzz.Target], seconds: int, directory: Path) -> bool:
    sound = True
    if not targets:
        return sound
    print(f"== fuzzing: {seconds} s for each target", flush=True)
    build = Build(directory / "fuzzer", "clang", fuzz.FUZZER_FLAGS, ("-fsanitize=fuzzer",))
    for target in targets:
        done = fuzz.fuzz(build, target, directory, KEPT, seconds)
        if done.problem:
            sound = False
            print(f"{done.target:9} FAILED\n{done.problem}")
            for path in done.inputs:
                print(f"input kept as {path.relative_to(ROOT)}: {path.read_bytes().hex()}")
                print(f"a regression test as tests/harness/fuzz/found/{done.target}/NAME")
        else:
            print(f"{done.target:9} nothing found in {done.runs:,} runs", flush=True)
    return sound


def _fuzz_ledgers(seconds: int, seed: int) -> bool:
    print(f"== ledgers: seed {seed}, {seconds} s", flush=True)
    found = ledgers.fuzz(seconds, seed, KEPT)
    if found.input is not None:
        path = found.input.relative_to(ROOT)
        print(f"ledger    FAILED after {found.runs:,} runs\n{found.problem}")
        print(f"input kept; again: scripts/check --sanitize --replay-ledger {path}", flush=True)
        return False
    told = f"{found.refused:,} refused, {found.kept} inputs kept, {len(found.lines)} lines reached"
    print(f"ledger    nothing found in {found.runs:,} runs: {told}", flush=True)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/check --sanitize",
        description="The data plane without Python: every driver under ASan with UBSan, TSan and valgrind, "
        "and fuzzed.",
    )
    parser.add_argument(
        "--seed", type=int, default=2008, help="of the random operations (default: %(default)s)"
    )
    parser.add_argument("--operations", type=int, help="for each driver (default: some seconds' worth)")
    parser.add_argument(
        "--fuzz", type=int, default=10, metavar="SECONDS", help="for each target (default: %(default)s)"
    )
    parser.add_argument("--fuzz-only", action="store_true", help="no sanitizers")
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        help="fuzz this one only; may be repeated (default: all)",
    )
    parser.add_argument(
        "--replay-ledger",
        type=Path,
        metavar="FILE",
        help="load a memory file that fuzzing has kept; nothing else",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
