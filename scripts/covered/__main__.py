"""A copy of the project compiled to count, the tests run in it, and what gcovr makes of the counts.

All that the tests compile for themselves counts, too: the harness, the fuzz targets, the library of drivers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutants.tree import Tree
from rich import box
from rich.console import Console
from rich.table import Table

FLAGS = "-O0 --coverage -fprofile-update=atomic -fno-sanitize=all"
"""Atomic: several threads count. No sanitizers: their checks would count as branches."""

TIERS = ("tests/pure", "tests/parts", "tests/plane", "--ignore=tests/pure/test_style.py")
"""Without the rules of style: the copy is full of the compiler's files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0; 1 when a test failed, because then the figures mean nothing."""
    _parser().parse_args(argv)
    os.environ["AIOFS_CFLAGS"] = FLAGS
    with tempfile.TemporaryDirectory(prefix="aiofs-coverage-") as name:
        tree = Tree.copy(Path(name, "tree"))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tree.path}/tmp",
        ]
        environment = os.environ | {"PYTHONPATH": str(tree.path)}
        status = subprocess.run([*command, *TIERS], cwd=tree.path, env=environment).returncode
        report = _gcovr(tree.path)
    print_report(report["files"])
    return 1 if status else 0


def _gcovr(root: Path) -> Any:
    """gcovr's JSON. What an assertion's failure would do is no branch that a test could take."""
    out = root / "coverage.json"
    options = [
        "--filter",
        "aiofs/dataplane/",
        "--exclude",
        ".*/_plane.c",
        "--merge-mode-functions=merge-use-line-min",
    ]
    branches = ["--exclude-unreachable-branches", "--exclude-branches-by-pattern", r".*\bassert\(.*"]
    command = [sys.executable, "-m", "gcovr", "--root", str(root), *options, *branches, "--json", str(out)]
    subprocess.run([*command, str(root)], cwd=root, check=True, stderr=subprocess.DEVNULL)
    for file in (report := json.loads(out.read_text()))["files"]:
        file["text"] = (root / file["file"]).read_text().splitlines()
    return report


def print_report(files: Sequence[Any]) -> None:
    """The table, and each line that no test reached."""
    table = Table(box=box.SIMPLE)
    for heading in ("file", "lines", "covered", "branches", "covered "):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    sums = [0, 0, 0, 0]
    for file in files:
        counts = _counts(file["lines"])
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        table.add_row(file["file"], *_cells(counts))
    table.add_section()
    table.add_row("all", *_cells(sums))
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for file in files:
        missed = [line["line_number"] for line in file["lines"] if not line["count"]]
        for number in missed:
            console.print(f"{file['file']}:{number}: {file['text'][number - 1].strip()}", markup=False)
    console.print(table)


def _counts(lines: Sequence[Any]) -> list[int]:
    branches = [branch["count"] for line in lines for branch in line["branches"]]
    return [len(lines), sum(line["count"] > 0 for line in lines), len(branches), sum(n > 0 for n in branches)]


def _cells(counts: Sequence[int]) -> list[str]:
    lines, reached, branches, taken = counts
    return [str(lines), f"{reached / max(1, lines):.1%}", str(branches), f"{taken / max(1, branches):.1%}"]


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="scripts/check --coverage",
        description="Line and branch coverage of the data plane by the tests that mount nothing.",
    )


if __name__ == "__main__":
    sys.exit(main())
