"""Which tasks are stuck, as the kernel's own detector of hung tasks means it: in uninterruptible sleep
(state D), and not once awake meanwhile (their context switches are as many as before).

And the disk that they wait for has done nothing meanwhile: on a machine with much other work it is slow, and
a task that its throttling makes wait is not stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class _Sleep:
    """One sleep in state D."""

    progress: str
    """The task's switches, and what its disk has done: reads and writes that have ended."""
    since_s: float


class Watch:
    """Looks at tasks again and again; remembers the longest sleep in state D that it saw."""

    def __init__(self, watched: Callable[[int, str], bool], disk: Path) -> None:
        """`watched(pid, name)`: whether the tasks of a process, or a task of the kernel, are of interest.

        `disk`: the block device that they use.
        """
        self._watched = watched
        self._disk = Path("/sys/block", disk.name, "stat")
        self._asleep: dict[str, _Sleep] = {}
        self.seen: set[str] = set()
        """The names of the processes that were watched."""
        self.longest_s = 0.0
        self.where = ""
        """Who slept longest, and where in the kernel."""

    def look(self) -> None:
        """Once; to be called several times a second."""
        now = time.monotonic()
        ended = _read(self._disk).split()[0:5:4]
        asleep = {}
        for task, name, switches in self._in_state_d():
            before = self._asleep.get(task)
            progress = f"{switches} {ended}"
            same = before if before is not None and before.progress == progress else None
            asleep[task] = same or _Sleep(progress, now)
            slept_s = now - asleep[task].since_s
            if slept_s > self.longest_s:
                self.longest_s, self.where = slept_s, f"{name}\n{_read(PROC / task / 'stack')}"
        self._asleep = asleep

    def all_tasks(self) -> str:
        """Where in the kernel every task of interest is, stuck or not: who waits for whom."""
        told = []
        for process in PROC.glob("[0-9]*"):
            name = _read(process / "comm").strip()
            if name and self._watched(int(process.name), name):
                told += [
                    f"{name} {_read(task / 'comm').strip()} ({task.name})\n{_read(task / 'stack')}"
                    for task in process.glob("task/*")
                ]
        return "\n".join(told)

    def _in_state_d(self) -> Iterator[tuple[str, str, str]]:
        for process in PROC.glob("[0-9]*"):
            name = _read(process / "comm").strip()
            if not name or not self._watched(int(process.name), name):
                continue
            self.seen.add(name)
            for task in process.glob("task/*"):
                status = dict(line.split(":", 1) for line in _read(task / "status").splitlines())
                if status.get("State", "").strip().startswith("D"):
                    switches = status["voluntary_ctxt_switches"] + status["nonvoluntary_ctxt_switches"]
                    yield str(task.relative_to(PROC)), f"{name} ({task.name})", switches


def _read(path: Path) -> str:
    """A file of /proc; empty when the task has gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
