"""Processes and mounts that the benchmark makes: started, watched and ended one by one, by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

WAIT_S = 30.0


class TargetError(Exception):
    """A target cannot be measured here; the message says why."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait: used while things are taken down. May be nested."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def running(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, asked to end afterwards (SIGTERM), and killed when it does not.

    It has a session of its own, so that Ctrl-C reaches only the benchmark, which then ends things in order.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def run_logged(command: Sequence[str | Path], log: Path) -> None:
    """Run to the end; TargetError with what it printed when it fails.

    The output goes to a file: a server that goes into the background would keep a pipe open.
    """
    with log.open("wb") as output:
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
        ).returncode
    if status != 0:
        raise TargetError(f"{command[0]} ended with status {status}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]


def wait_until(ready: Callable[[], bool], what: str, child: subprocess.Popen[bytes], log: Path) -> None:
    """Look until `ready`; TargetError when the child ends first or time runs out."""
    deadline = time.monotonic() + WAIT_S
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            raise TargetError(f"{what} did not come up: {_last_line(log)}")
        time.sleep(0.01)


def mounted(path: Path) -> bool:
    """A mount is on `path`, a directory or a file. Reads the table only: a dead server cannot block it."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1] == str(path) for line in lines)


def unmount_leftover(path: Path) -> None:
    """Take away a mount that its server left behind; quiet when there is none."""
    if mounted(path):
        subprocess.run(["fusermount3", "-u", "-z", path], stderr=subprocess.DEVNULL, check=False)


def processes_about(path: Path) -> list[int]:
    """Ids of processes that have `path` as an argument, and of their children: a keeper and its server."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(path).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
                    found += map(int, (entry / "task" / entry.name / "children").read_text().split())
    return sorted(set(found))


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time of the processes in seconds, all threads, user and system (proc(5), stat 14 and 15)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Sequence[int]) -> float:
    """Resident memory of the processes in MiB (proc(5), VmRSS)."""
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kib += int(line.split()[1])
    return kib / 1024
