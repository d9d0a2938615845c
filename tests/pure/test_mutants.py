"""scripts/check --mutants: the table fits the sources, and only a failed assertion counts as a catch."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from mutants.mutant import Mutant
from mutants.table import MUTANTS
from mutants.tree import ROOT, CannotBuild, mutate, verdicts


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_has_its_place_and_its_test(mutant: Mutant) -> None:
    """What it changes is in the file exactly once, and the test that must catch it is there."""
    text = (ROOT / mutant.file).read_text()
    assert mutate(text, mutant) != text
    path, _, test = mutant.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text()


def test_each_test_is_collected_under_its_name() -> None:
    """Parameters included: a test that gets some has another name from then on."""
    paths = sorted({mutant.test.partition("::")[0] for mutant in MUTANTS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert {mutant.test for mutant in MUTANTS} - set(done.stdout.splitlines()) == set()


def test_each_mutant_has_a_name_of_its_own() -> None:
    """By which it can be chosen."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["", "x = 1\nx = 1\n"])
def test_a_place_that_is_not_there_once_is_refused(text: str) -> None:
    """A table that has rotted says so, and names the entry."""
    mutant = replace(MUTANTS[0], old="x = 1", new="x = 2")
    with pytest.raises(CannotBuild, match=mutant.name):
        mutate(text, mutant)


SAMPLE = """
import pytest
def test_passes(): pass
def test_asserts(): assert 1 == 2
def test_misses_an_error():
    with pytest.raises(OSError): pass
def test_crashes(): raise OSError("no")
def test_is_skipped(): pytest.skip("not here")
@pytest.fixture
def broken(): assert False
def test_cannot_begin(broken): pass
"""


def test_only_an_assertion_of_the_test_itself_counts(tmp_path: Path) -> None:
    """Not a crash, not a fixture that failed, not a skip: those say nothing of the rule."""
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    done = subprocess.run([*command, "--junitxml=report.xml"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 1
    found = verdicts(ET.parse(tmp_path / "report.xml"))
    told = {name.partition("::test_")[2]: (v.outcome, v.by_assertion) for name, v in found.items()}
    assert told == {
        "passes": ("passed", False),
        "asserts": ("failed", True),
        "misses_an_error": ("failed", True),
        "crashes": ("failed", False),
        "is_skipped": ("skipped", False),
        "cannot_begin": ("error", False),
    }
