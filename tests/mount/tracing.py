"""strace attached to a server at work: its system calls, and those of all its threads."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 30


class Calls:
    """The system calls of one period; filled when the period has ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def matching(self, pattern: str) -> list[str]:
        """The calls in which the pattern is found."""
        return [line for line in self.lines if re.search(pattern, line)]

    def threads(self, pattern: str) -> set[str]:
        """The ids of the threads that made them."""
        return {line.split()[0] for line in self.matching(pattern)}


@contextmanager
def traced(pid: int, names: str, log: Path, *more: str) -> Iterator[Calls]:
    """The system calls `names` (as `strace -e trace=` takes them) of a process during the block.

    `more` words for strace, such as `-e inject=...`.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={names}", *more, "-p", str(pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    calls = Calls()
    try:
        assert strace.stderr is not None
        first = strace.stderr.readline()
        if "attached" not in first:
            pytest.skip(f"strace may not trace here: {first.strip()}")
        yield calls
    finally:
        strace.send_signal(signal.SIGINT)  # it detaches
        strace.communicate(timeout=TIMEOUT_S)
    calls.lines = log.read_text(errors="replace").splitlines()
