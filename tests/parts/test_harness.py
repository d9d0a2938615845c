"""The data plane without Python, under AddressSanitizer and UBSan: a short run of scripts/check --sanitize.

AIOFS_SEED=n chooses other operations.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from sanitize import fuzz, harness
from sanitize.build import Build, CannotBuild

SEED = int(os.environ.get("AIOFS_SEED", "2008"))
OPERATIONS = 1000
"""For each driver."""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The data plane with the sanitizers in it."""
    try:
        return Build(tmp_path_factory.mktemp("sanitized"), "gcc", harness.ADDRESS.flags)
    except FileNotFoundError:
        pytest.skip("gcc is not installed")
    except CannotBuild as error:
        if "-lasan" in str(error) or "-lubsan" in str(error):
            pytest.skip(f"gcc has no sanitizers here: {error}")
        raise


def test_random_requests_touch_no_byte_that_is_not_theirs(build: Build, tmp_path: Path) -> None:
    """Every driver, and every byte that is read and written, with requests that overlap, fail and stop."""
    if os.geteuid() != 0:
        pytest.skip("only root may have socket buffers that hold a message of 1 MiB")
    ran = list(harness.run(harness.ADDRESS, build, SEED, OPERATIONS, tmp_path))
    assert [one.driver for one in ran] == harness.drivers()
    assert "\n".join(one.problem for one in ran if one.problem) == ""


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_no_known_input_ends_it(build: Build, tmp_path: Path, target: fuzz.Target) -> None:
    """The inputs from which fuzzing starts, and those that it has found and that are mended."""
    replayed = fuzz.replay(build, target, tmp_path)
    assert replayed.problem == ""
    assert replayed.runs >= len(list(target.seeds())) > 10
