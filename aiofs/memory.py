"""What keeps the server answering while memory is short.

File systems on loop devices, and swap, make memory that the kernel frees only by writing it through this
server. If that server has to wait for memory, or is killed for its own, it waits for itself, and with it
everybody who wants memory. The data plane allocates nothing while it runs, but the kernel does on its
behalf, also when a page of a request's payload is touched for the first time; so it is asked

- not to write anything back while it looks for memory for us (PR_SET_IO_FLUSHER, prctl(2), Linux 5.6),
  since that write might be one that waits for us;
- to keep what we use resident (mlockall(2) with MCL_ONFAULT, Linux 4.4): what has been touched, not the
  queue depth times 1 MiB that may be;
- to end other processes first when memory runs out (oom_score_adj, proc(5)).

The first is of a thread, and inherited by those that it starts (prctl(2)), the kernel's workers of a ring
among them, which are copies of it (kernel/fork.c). So `prepare` is for the main thread, before there are
others.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from .dataplane import system
from .errors import reason

log = logging.getLogger(__name__)

OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
NEVER = -1000
"""The oom_score_adj of a process that is never chosen (proc(5)): what waits for it would gain nothing."""

_RESOURCE = "CAP_SYS_RESOURCE"
_LOCK = "CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK"


@dataclass(frozen=True)
class Memory:
    """What is in force; the field `memory` of info.json."""

    io_flusher: bool
    locked: bool
    oom_score_adj: int


def prepare(*, again: bool = False) -> Memory:
    """Ask for all three, and say in one line of the log what was refused and what would allow it.

    `again`: a server before this one has said it.
    """
    refused: list[str] = []
    found = Memory(
        io_flusher=_become_io_flusher(refused),
        locked=_lock(refused),
        oom_score_adj=_be_spared(refused),
    )
    if refused:
        # Loop devices and swap are root's, and so is what could be done about it.
        level = logging.WARNING if os.geteuid() == 0 else logging.INFO
        log.log(
            logging.DEBUG if again else level,
            "when memory is short this mount may hang or be killed: its server was refused %s",
            ", ".join(refused),
        )
    return found


def _become_io_flusher(refused: list[str]) -> bool:
    try:
        system.become_io_flusher()
    except OSError as error:
        refused.append(f"PR_SET_IO_FLUSHER ({_needs(error, _RESOURCE, 'Linux 5.6')})")
        return False
    return True


def _lock(refused: list[str]) -> bool:
    """Only where there is no limit: one that is enough now would refuse stacks and rings later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = hard == resource.RLIM_INFINITY
    # With a limit of 0 the call is for those whom limits do not bind, and says EPERM to others (mlockall(2)).
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard if unlimited else 0, hard))
    try:
        system.lock_memory()
    except OSError as error:
        refused.append(f"locked memory ({_needs(error, _LOCK, 'Linux 4.4')})")
        return False
    finally:
        if not unlimited:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return True


def _be_spared(refused: list[str]) -> int:
    """The oom_score_adj that is in force then."""
    try:
        OOM_SCORE_ADJ.write_text(f"{NEVER}\n")
    except OSError as error:
        refused.append(f"an oom_score_adj of {NEVER} ({_needs(error, _RESOURCE, 'procfs')})")
    try:
        return int(OOM_SCORE_ADJ.read_text())
    except OSError:  # no procfs: the kernel's default
        return 0


def _needs(error: OSError, right: str, kernel: str) -> str:
    """What would have allowed it."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"needs {right}"
    if error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):
        return f"needs {kernel}"
    return reason(error)
