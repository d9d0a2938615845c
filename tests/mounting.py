"""Servers as tests see them: processes to start, watch and clean up. conftest.py has the fixtures."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 30
"""For things that take milliseconds; a server that needs longer is taken to hang."""

_COMPLAINT = re.compile(r"aiofs: (warning|error|critical): ")

AIOFS = [sys.executable, "-m", "aiofs"]


def why_no_mounts() -> str:
    """Why nothing can be mounted on this machine; empty when it can."""
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (apt-get install fuse3)"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


def require_mounts() -> None:
    """Skip the test where nothing can be mounted, and say why."""
    reason = why_no_mounts()
    if reason:
        pytest.skip(reason)


def run_aiofs(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one aiofs command to its end."""
    return subprocess.run(
        [*AIOFS, *map(str, args)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=env
    )


def unmount(path: Path, *, lazy: bool = False) -> subprocess.CompletedProcess[str]:
    """Unmount as any user would, without aiofs."""
    return subprocess.run(
        ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def is_mounted(path: Path) -> bool:
    """The table of mounts has `path`; asks no server."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in table)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def server_of(pid: int) -> int:
    """The server under a keeper, or under what runs that; the process itself where there is none."""
    for child in children(pid):
        if b"aiofs.serve" in Path(f"/proc/{child}/cmdline").read_bytes() or children(child):
            return server_of(child)
    return pid


def kill_all(mountpoint: Path) -> None:
    """Kill the keeper, and then the server."""
    told = json.loads((mountpoint / ".aiofs/info.json").read_bytes())
    for pid in (told["pid"], told["server_pid"]):
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        wait_gone(pidfd)


def wait_gone(pidfd: int) -> None:
    """Return when the process has ended."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    assert ended.poll(30_000), "the server did not end"
    os.close(pidfd)


class MountedFs:
    """A foreground keeper and its server, in processes of their own, and their mountpoint."""

    def __init__(self, source: Path, path: Path, *args: str, under: Sequence[str] = ()) -> None:
        """`under`: the words of a command that runs the server and ends with its status, such as strace."""
        self.source = source
        self.path = path
        """The mountpoint."""
        self.log: list[str] = []
        """The lines of its stderr so far."""
        self.expected_status: int = 0
        self._allowed: list[re.Pattern[str]] = []
        self.allow("when memory is short")  # containers have few capabilities
        self._ready = threading.Event()
        self._answers = False
        self.process = subprocess.Popen(
            [*under, *AIOFS, "mount", str(source), str(path), "--foreground", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The keeper's, or that of the command it runs under."""
        return self.process.pid

    @property
    def server_pid(self) -> int:
        """The server's."""
        return server_of(self.process.pid)

    def wait_ready(self) -> None:
        """Return when the server has said that the mount answers."""
        assert self._ready.wait(TIMEOUT_S), f"not ready after {TIMEOUT_S} s; log: {self.log}"
        if not self._answers:  # its log has ended, so it has, or is about to
            raise AssertionError(f"ended with {self.process.wait(TIMEOUT_S)}; log: {self.log}")

    def allow(self, pattern: str) -> None:
        """A warning or an error that matches is no failure of the test."""
        self._allowed.append(re.compile(pattern))

    def info(self) -> dict[str, Any]:
        """What the mount tells about itself."""
        told: dict[str, Any] = json.loads((self.path / ".aiofs/info.json").read_bytes())
        return told

    def signal(self, number: signal.Signals) -> None:
        """Send the keeper a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The server's exit status, when it has ended."""
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status

    def umount(self) -> int:
        """Unmount from outside; the server's exit status, when it has ended."""
        done = unmount(self.path)
        assert done.returncode == 0, done.stderr
        return self.wait()

    def complaints(self) -> list[str]:
        """The lines of the log that are warnings, errors or tracebacks, and were not allowed."""
        bad = [line for line in self.log if not line.startswith("aiofs: ") or _COMPLAINT.match(line)]
        return [line for line in bad if not any(allowed.search(line) for allowed in self._allowed)]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.log.append(line.rstrip("\n"))
                if f" on {self.path}: AIO driver " in line:
                    self._answers = True
                    self._ready.set()
        self._ready.set()  # it has ended: wait_ready will say so

    def clean_up(self) -> list[str]:
        """Leave nothing behind; what was not as it should be."""
        wrong = []
        if self.process.poll() is None and is_mounted(self.path):
            done = unmount(self.path)
            if done.returncode != 0:
                wrong.append(f"could not be unmounted: {done.stderr.strip()}")
                unmount(self.path, lazy=True)
                self.process.terminate()
        elif self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            wrong.append("the server did not end; killed")
            for pid in {self.pid, self.server_pid}:
                os.kill(pid, signal.SIGKILL)
            status = self.wait()
        while is_mounted(self.path) and unmount(self.path, lazy=True).returncode == 0:
            wrong.append("a mount was left behind")
        if status != self.expected_status:
            wrong.append(f"the server ended with {status}, not {self.expected_status}")
        return wrong + [f"unexpected in the log: {line}" for line in self.complaints()]
