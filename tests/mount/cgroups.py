"""A memory cgroup for what one test starts, below the group that the tests run in; version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path

from waiting import wait_until

MOUNTS = Path("/proc/self/mounts")
JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


class NoMemoryGroup(Exception):
    """There is none to be had here; says why."""


class MemoryGroup:
    """Processes that share a limit on what they use, their part of the page cache included."""

    def __init__(self, limit_bytes: int) -> None:
        parent, version = _parent()
        self._path = parent / f"aiofs-test-{os.getpid()}"
        names = {1: ("memory.limit_in_bytes", "-1"), 2: ("memory.max", "max")}
        self._limit, self._unlimited = names[version]
        try:
            self._path.mkdir()
        except OSError as error:
            raise NoMemoryGroup(f"cannot make a cgroup in {parent}: {error.strerror}") from None
        try:
            (self._path / self._limit).write_text(str(limit_bytes))
        except OSError as error:
            self._path.rmdir()
            raise NoMemoryGroup(f"cannot limit memory in {parent}: {error.strerror}") from None

    @property
    def joined(self) -> tuple[str, ...]:
        """Words to put before those of a command that is to run in the group."""
        return ("sh", "-c", JOIN, str(self._path))

    def times_at_limit(self) -> int:
        """How often somebody in it wanted memory when there was none left."""
        if (self._path / "memory.failcnt").exists():
            return int((self._path / "memory.failcnt").read_text())
        events = dict(line.split() for line in (self._path / "memory.events").read_text().splitlines())
        return int(events["max"])

    def kills(self) -> int:
        """How often the kernel has ended a process in it, for its memory."""
        name = "memory.oom_control" if (self._path / "memory.oom_control").exists() else "memory.events"
        events = dict(line.split() for line in (self._path / name).read_text().splitlines())
        return int(events.get("oom_kill", 0))  # since Linux 4.13

    def lift(self) -> None:
        """Give what is in it all the memory it wants."""
        (self._path / self._limit).write_text(self._unlimited)

    def close(self) -> None:
        """Remove it; its processes must have ended."""
        wait_until(lambda: not (self._path / "cgroup.procs").read_text())
        self._path.rmdir()


def _parent() -> tuple[Path, int]:
    """The nearest group in which memory can be limited, and the version of cgroups."""
    mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for _, where, kind, options, *_ in mounts:
            own = Path(where + path)
            limits = "memory" in controllers.split(",") and "memory" in options.split(",")
            if kind == "cgroup" and limits and own.is_dir():
                return own, 1
            if kind == "cgroup2" and not controllers:
                for group in (own, *own.parents):
                    if _passes_memory_on(group):
                        return group, 2
    raise NoMemoryGroup("memory cgroups are not to be had here")


def _passes_memory_on(group: Path) -> bool:
    """Version 2: children of the group have limits on memory."""
    known = group / "cgroup.subtree_control"
    return known.exists() and "memory" in known.read_text().split()
