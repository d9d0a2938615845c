"""Shortage of memory: what the server asks the kernel for, and what it is granted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import MountedFs

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
PF_MEMALLOC_NOIO = 0x00080000  # linux/sched.h: what PR_SET_IO_FLUSHER sets of a task


def status_kib(fs: MountedFs, name: str) -> int:
    """A field of the server's /proc/PID/status that is in KiB."""
    [line] = [line for line in status_lines(fs) if line.startswith(f"{name}:")]
    return int(line.split()[1])


def status_lines(fs: MountedFs) -> list[str]:
    """The server's /proc/PID/status."""
    return Path(f"/proc/{fs.pid}/status").read_text().splitlines()


def flushers(fs: MountedFs) -> set[bool]:
    """Whether the tasks of the server are I/O flushers: of all of them, each answer once."""
    tasks = Path(f"/proc/{fs.pid}/task").glob("*/stat")
    return {bool(int(task.read_text().rpartition(")")[2].split()[6]) & PF_MEMALLOC_NOIO) for task in tasks}


def test_info_tells_what_the_kernel_has_granted(mounted: Mounting, disk: Path) -> None:
    """Each of the three is as /proc shows it, the flag in every thread; what is missing is logged, once."""
    fs = mounted(disk.parent)
    with (fs.path / "disk.img").open("r+b") as file:
        file.write(os.urandom(MIB))
    told = fs.info()["memory"]
    assert flushers(fs) == {told["io_flusher"]}
    assert (status_kib(fs, "VmLck") > 0) == told["locked"]
    assert int(Path(f"/proc/{fs.pid}/oom_score_adj").read_text()) == told["oom_score_adj"]
    warnings = [line for line in fs.log if "when memory is short" in line]
    complete = told == {"io_flusher": True, "locked": True, "oom_score_adj": -1000}
    assert len(warnings) == (0 if complete else 1)


def test_what_is_refused_is_named_in_one_line(mounted: Mounting, disk: Path) -> None:
    """Without the capabilities: each of the three with what it needs; the limit on locked memory stays."""
    if os.geteuid() != 0:
        pytest.skip("giving up capabilities is for root")
    without = "-sys_resource,-ipc_lock"
    limits = ["prlimit", f"--memlock={4 * MIB}:{8 * MIB}"]
    caps = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
    fs = mounted(disk.parent, under=[*limits, *caps])
    assert fs.info()["memory"]["io_flusher"] is False
    assert fs.info()["memory"]["locked"] is False
    assert status_kib(fs, "VmLck") == 0
    limits_now = Path(f"/proc/{fs.pid}/limits").read_text()
    assert re.search(rf"Max locked memory +{4 * MIB} +{8 * MIB} ", limits_now)
    [line] = [line for line in fs.log if "when memory is short" in line]
    assert line.startswith("aiofs: warning: ")
    for part in (
        "PR_SET_IO_FLUSHER (needs CAP_SYS_RESOURCE)",
        "locked memory (needs CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK)",
        "oom_score_adj of -1000 (needs CAP_SYS_RESOURCE)",
    ):
        assert part in line


def test_only_what_was_touched_is_resident(mounted: Mounting, disk: Path) -> None:
    """Locked memory is not all that could be: room for 4,096 requests of 1 MiB takes none until they come."""
    fs = mounted(disk.parent, "--queue-depth", "4096")
    if not fs.info()["memory"]["locked"]:
        pytest.skip("locked memory is not granted here")
    assert status_kib(fs, "VmLck") * 1024 > 4096 * MIB
    assert status_kib(fs, "VmRSS") < 60 * 1024
