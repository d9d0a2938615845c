"""The command line of scripts/check --mutants."""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .mutant import Mutant
from .table import MUTANTS
from .tree import ROOT, CannotBuild, Tree, Verdict, mutate

PARALLEL = 2
"""Mutants in work at once: each is a compiler or one test, and mostly waits for neither."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build and test every mutant. 0: all were caught; 1: not all; 2: the table does not fit the sources."""
    options = _parser().parse_args(argv)
    chosen = [
        m for m in MUTANTS if not options.names or any(fnmatch.fnmatch(m.name, n) for n in options.names)
    ]
    if not chosen:
        print(
            f"no mutant is named {', '.join(options.names)}; there are:",
            *(m.name for m in MUTANTS),
            sep="\n  ",
        )
        return 2
    for mutant in chosen:
        mutate((ROOT / mutant.file).read_text(), mutant)
    with tempfile.TemporaryDirectory(prefix="aiofs-mutants-") as directory:
        sound = Tree.copy(Path(directory, "sound"))
        without = sound.run(sorted({mutant.test for mutant in chosen}))
        with ThreadPoolExecutor(PARALLEL) as pool:
            found = list(pool.map(lambda mutant: _try(sound, mutant, without[mutant.test]), chosen))
    Console(width=None if sys.stdout.isatty() else 240).print(_table(chosen, found))
    caught = sum(verdict.by_assertion for verdict in found)
    print(f"{caught} of {len(chosen)} mutants caught.")
    return 0 if caught == len(chosen) else 1


def _try(sound: Tree, mutant: Mutant, without: Verdict) -> Verdict:
    """What the test said of the mutant; an error when it does not pass without the mutation."""
    if without.outcome != "passed":
        return Verdict("error", f"without the mutation the test is {without.outcome}: {without.message}")
    path = sound.path.parent / mutant.name
    try:
        return sound.mutated(path, mutant).run([mutant.test])[mutant.test]
    except CannotBuild as error:
        return Verdict("error", f"it does not build: {error}")
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _table(mutants: Sequence[Mutant], found: Sequence[Verdict]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("mutant", "rule that it breaks", "verdict", "by"):
        table.add_column(heading, overflow="fold")
    for mutant, verdict in zip(mutants, found, strict=True):
        said = "" if verdict.by_assertion else f"\n{verdict.message or 'it passed'}"
        table.add_row(
            mutant.name, mutant.rule, _word(verdict), escape(mutant.test.partition("tests/")[2] + said)
        )
    return table


def _word(verdict: Verdict) -> str:
    if verdict.by_assertion:
        return "caught"
    return "SURVIVED" if verdict.outcome == "passed" else f"NOT JUDGED ({verdict.outcome})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/check --mutants",
        description="Builds versions of aiofs with one rule broken each. The test about the rule must fail.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants; * and ? match")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotBuild as error:
        sys.exit(f"mutants: {error}")
