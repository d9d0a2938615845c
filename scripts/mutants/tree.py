"""A copy of the project's sources, built, with or without a mutation, and the running of tests in it.

Only what a mutation touches is compiled anew. Knows nothing of which mutants there are, or of what a verdict
on them means.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aiofs.dataplane.build import CFLAGS, LIBRARIES, added_flags, write_glue

from .mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "bench-results", "*.egg-info", "*.so", "*.o", "__pycache__", "_plane.c"
)

LEFT_BY_TESTS = ("tmp", "report.xml", "__pycache__")

TEST_S = 120
"""How long the tests of one run may take. One that waits for an answer gives up after 20 s."""


class CannotBuild(Exception):
    """The compiler's words, or why the mutation does not apply."""


@dataclass(frozen=True)
class Verdict:
    """What became of one test."""

    outcome: str
    """passed, failed (in the test itself), error (before or after it), skipped, missing."""
    message: str = ""
    """The first line of what it said."""

    @property
    def by_assertion(self) -> bool:
        """It failed because something was not as it should be, not because it could not be run."""
        return self.outcome == "failed" and self.message.startswith(
            ("AssertionError", "assert", "Failed: DID")
        )


class Tree:
    """One copy of the sources."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plane = path / "aiofs" / "dataplane"

    @classmethod
    def copy(cls, path: Path) -> Tree:
        """The project as it is, built."""
        tree = cls(path)
        shutil.copytree(ROOT, path, ignore=NOT_COPIED, symlinks=True)
        write_glue(tree._plane / "_plane.c")
        tree._compile(sorted([*tree._plane.glob("*.c"), *tree._plane.glob("drivers/*.c")]))
        tree._link()
        return tree

    def mutated(self, path: Path, mutant: Mutant) -> Tree:
        """A copy of this tree with one mutation, built. CannotBuild when it does not apply or compile."""
        shutil.copytree(self.path, path, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BY_TESTS))
        tree = Tree(path)
        target = path / mutant.file
        target.write_text(mutate(target.read_text(), mutant))
        if target.suffix == ".h":
            tree._compile(sorted([*tree._plane.glob("*.c"), *tree._plane.glob("drivers/*.c")]))
        elif target.suffix == ".c":
            tree._compile([target])
        if target.suffix in (".c", ".h"):
            tree._link()
        return tree

    def _compile(self, sources: Sequence[Path]) -> None:
        include = [f"-I{self._plane}", f"-I{sysconfig.get_path('include')}"]
        command = ["cc", *CFLAGS, *added_flags(), "-w", "-fPIC", *include, "-c"]

        def compile_one(source: Path) -> None:
            _call([*command, str(source), "-o", str(source.with_suffix(".o"))])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources))

    def _link(self) -> None:
        module = self._plane / f"_plane{sysconfig.get_config_var('EXT_SUFFIX')}"
        module.unlink(missing_ok=True)
        objects = sorted(map(str, [*self._plane.glob("*.o"), *self._plane.glob("drivers/*.o")]))
        libraries = [f"-l{name}" for name in LIBRARIES]
        _call(["cc", "-shared", *added_flags(), *objects, "-o", str(module), *libraries])

    def run(self, tests: Sequence[str]) -> dict[str, Verdict]:
        """The verdict of each test (pytest's node id)."""
        report = self.path / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        environment = os.environ | {
            "PYTHONPATH": str(self.path),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.path),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, f"--basetemp={self.path / 'tmp'}", *tests],
                cwd=self.path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TEST_S,
            )
        except subprocess.TimeoutExpired:
            return dict.fromkeys(tests, Verdict("error", f"not done after {TEST_S} s"))
        if not report.exists():
            return dict.fromkeys(tests, Verdict("error", f"pytest ended with {done.returncode}"))
        found = verdicts(ET.parse(report))
        missing = Verdict(
            "missing", "there is no such test" if done.returncode == 4 else "it did not come to its turn"
        )
        return {test: found.get(test, missing) for test in tests}


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(done.stderr)


def mutate(text: str, mutant: Mutant) -> str:
    """The text with the mutation; CannotBuild unless its place is there exactly once."""
    count = text.count(mutant.old)
    if count != 1:
        raise CannotBuild(f"{mutant.name}: {mutant.file} holds {mutant.old!r} {count} times, not once")
    return text.replace(mutant.old, mutant.new)


def verdicts(report: ET.ElementTree[ET.Element]) -> dict[str, Verdict]:
    """By node id, from pytest's XML report."""
    found = {}
    for case in report.iter("testcase"):
        ident = f"{case.get('file')}::{case.get('name')}"
        verdict = Verdict("passed")
        for tag, outcome in (("skipped", "skipped"), ("error", "error"), ("failure", "failed")):
            told = case.find(tag)
            if told is not None:
                verdict = Verdict(outcome, (told.get("message") or "").strip().split("\n")[0])
        found[ident] = verdict
    return found
