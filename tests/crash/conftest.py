"""Fixtures of the tests with power failures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import require_mounts
from recording import Recorder

Recording = Callable[[int], Recorder]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recording]:
    """`recorder(seed)` mounts a recording disk. Name it before `mounted`: that mount ends before it."""
    require_mounts()
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    for tool in ("mkfs.ext4", "e2fsck", "losetup", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install mount e2fsprogs)")
    made: list[Recorder] = []

    def start(seed: int) -> Recorder:
        recorder = Recorder(tmp_path, seed)
        made.append(recorder)
        recorder.wait_ready()
        return recorder

    yield start
    for recorder in made:
        recorder.clean_up()
