"""scripts/claims on a real file: one run of the shortest kind, and `posix` on one descriptor."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from aiofs.dataplane import Queue

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from thread2008 import __main__ as command_line
from thread2008.cells import cells
from thread2008.lab import one_descriptor


def descriptors_of(path: Path) -> int:
    """How many descriptors of this process are open on a file."""
    there = path.stat()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            opened = link.stat()
        except OSError:  # the one that iterdir had
            continue
        found += (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
    return found


def test_posix_can_be_left_with_one_descriptor(tmp_path: Path) -> None:
    """Eight lanes without the limit, one with it, eight again after it."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDONLY)

    def lanes() -> int:
        with Queue("posix", 4) as queue:
            queue.attach(fd)
            return descriptors_of(path)

    with one_descriptor():
        alone = lanes()
    assert (alone, lanes()) == (1, 8)
    os.close(fd)


def test_the_shortest_run_answers_every_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the file system of the tests; nothing is left in the directory but the numbers."""
    numbers = tmp_path / "claims.json"
    status = command_line.main(["--quick", "--dir", str(tmp_path), "--json", str(numbers)])
    out, errors = capsys.readouterr()
    if status == 1 and "cannot open a temporary file" in errors:
        pytest.skip(f"no O_DIRECT in {tmp_path}")
    assert status == 0, errors
    assert out.count("\n| ") == 7
    told = json.loads(numbers.read_text())
    assert len(told["claims"]) == 6
    assert len(told["cells"]) == len(list(cells()))
    assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]
