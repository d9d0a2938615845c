"""The threads of a process, as /proc shows them while they come and go."""

from __future__ import annotations

import contextlib
from pathlib import Path


def of_each_thread(pid: int | str, name: str) -> dict[Path, str]:
    """One file of each thread's directory, by that directory, but for threads that end meanwhile."""
    texts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            texts[task] = (task / name).read_text()
    return texts


def is_asleep(thread_id: int | str) -> bool:
    """Now (proc_pid_stat(5), field 3); one that has ended is not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{thread_id}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    return False


def tasks_named(name: str) -> list[Path]:
    """The directories of this process's threads that are called so."""
    return [task for task, comm in of_each_thread("self", "comm").items() if comm.strip() == name]
