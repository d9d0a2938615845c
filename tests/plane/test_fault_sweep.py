"""Every operation of a script fails in turn, once and from then on for ever, until there is none left.

Each caller is told the truth: what was answered as done is there, what failed says why, images beside it are
untouched, and nothing is left in work. The way is SQLite's: "fail operation N, for every N".
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel
from sweeping import BESIDE, SHARING, Answers, Sweep, fault_at

from aiofs.dataplane import driver_names
from aiofs.faults import HALF, Kind

FAULTS = {
    "EIO": (Kind.ERROR, errno.EIO),
    "ENOSPC": (Kind.ERROR, errno.ENOSPC),
    "EAGAIN": (Kind.ERROR, errno.EAGAIN),
    "EINTR": (Kind.ERROR, errno.EINTR),
    "short": (Kind.SHORT, HALF),
    "nothing": (Kind.SHORT, 0),
}
OPERATIONS_MAX = 1000
"""More than the script has, with all its retries."""


@pytest.fixture(params=driver_names())
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where an fsync costs nothing; elsewhere if there is none."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as made:
        yield Path(made)


def takes_direct(directory: Path) -> bool:
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


def sweep(
    directory: Path,
    driver: str,
    fault: str,
    judge: Callable[[Answers, str, bool], None],
    *,
    merge: bool = True,
    direct: bool = False,
    step: int = 1,
) -> None:
    """Fail operation 1, 1 + step, .. until there is none of that number; once, then for ever."""
    kernel = FakeKernel(queue_depth=8, merge=merge)
    try:
        played = Sweep(kernel, directory, driver, direct=direct)
        for forever in (False, True):
            for number in range(1, OPERATIONS_MAX, step):
                answers = played.play(fault_at(number, *FAULTS[fault], forever=forever))
                if not answers.struck:
                    break
                judge(answers, fault, forever)
            assert not answers.struck
            assert answers.failed == []
            assert number > 10
    finally:
        kernel.close()


def truthful(answers: Answers, fault: str, forever: bool) -> None:
    """Were the right requests answered with the right errno?"""
    told = {error for _, _, error in answers.failed}
    assert BESIDE not in {node for node, _, _ in answers.failed}
    if fault == "nothing":
        # For ever: a write may fail by the reads of its edges.
        at_last = {errno.EIO} if forever else set()
        assert {error for _, op, error in answers.failed if op == "write"} <= {errno.ENOSPC, *at_last}
        assert {error for _, op, error in answers.failed if op != "write"} <= at_last
    elif fault in ("short", "EAGAIN", "EINTR"):
        # For ever: half of a block of an O_DIRECT image is no progress, however often.
        assert told <= ({errno.EIO} if forever else set())
    else:
        assert told <= {FAULTS[fault][1]}
        if not forever:
            assert len(answers.failed) == (0 if answers.merged else 1)
    if forever and FAULTS[fault][0] is Kind.ERROR:
        assert answers.last_fsync[SHARING], "the last operation of the script"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_caller_gets_a_true_answer(memory: Path, driver: str, fault: str) -> None:
    """Buffered images, merged requests."""
    sweep(memory, driver, fault, truthful)


@pytest.mark.parametrize("fault", FAULTS)
def test_so_does_he_of_an_image_in_whole_blocks(
    memory: Path, tmp_path: Path, driver: str, fault: str
) -> None:
    """O_DIRECT images, nothing merged: unaligned requests are padded, their edges read and written back."""
    directory = memory if takes_direct(memory) else tmp_path
    if not takes_direct(directory):
        pytest.skip(f"no O_DIRECT on {directory}")
    sweep(directory, driver, fault, truthful, merge=False, direct=True)
