"""Shortage of memory: what the server asks the kernel for, and what it has before it needs it."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounting import MountedFs
from tasks import of_each_thread
from working import require_driver

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
LENGTHS = (4096, 16384, 65536, MIB)
PF_MEMALLOC_NOIO = 0x00080000  # linux/sched.h: what PR_SET_IO_FLUSHER sets of a task


def status_kib(fs: MountedFs, name: str) -> int:
    """A field of the server's /proc/PID/status that is in KiB."""
    [line] = [line for line in status_lines(fs) if line.startswith(f"{name}:")]
    return int(line.split()[1])


def status_lines(fs: MountedFs) -> list[str]:
    """The server's /proc/PID/status."""
    return Path(f"/proc/{fs.server_pid}/status").read_text().splitlines()


def loop_faults(fs: MountedFs) -> int:
    """How often the data plane's thread has touched memory that was not there (proc(5), minflt)."""
    [loop] = [stat for stat in of_each_thread(fs.server_pid, "stat").values() if "(aiofs-loop)" in stat]
    return int(loop.rpartition(")")[2].split()[7])


def flushers(fs: MountedFs) -> set[bool]:
    """Whether the tasks of the server are I/O flushers: of all of them, each answer once."""
    stats = of_each_thread(fs.server_pid, "stat").values()
    return {bool(int(stat.rpartition(")")[2].split()[6]) & PF_MEMALLOC_NOIO) for stat in stats}


def test_info_tells_what_the_kernel_has_granted(mounted: Mounting, disk: Path) -> None:
    """Each of the three is as /proc shows it, the flag in every thread; what is missing is logged, once."""
    fs = mounted(disk.parent)
    with (fs.path / "disk.img").open("r+b") as file:
        file.write(os.urandom(MIB))
    told = fs.info()["memory"]
    assert flushers(fs) == {told["io_flusher"]}
    assert (status_kib(fs, "VmLck") > 0) == told["locked"]
    assert int(Path(f"/proc/{fs.server_pid}/oom_score_adj").read_text()) == told["oom_score_adj"]
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
    limits_now = Path(f"/proc/{fs.server_pid}/limits").read_text()
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


def write_and_read(pool: ThreadPoolExecutor, fd: int, length: int, size: int) -> None:
    """128 direct writes of so many bytes, then reads, as many at once as the pool has threads."""
    pages = [mmap.mmap(-1, length)]
    at = [i * length % size for i in range(128)]
    assert set(pool.map(lambda offset: os.pwritev(fd, pages, offset), at)) == {length}
    assert set(pool.map(lambda offset: os.preadv(fd, pages, offset), at)) == {length}


@pytest.mark.parametrize("name", ["io_uring", "linux", "threads"])
def test_the_loop_touches_no_memory_for_the_first_time(mounted: Mounting, disk: Path, name: str) -> None:
    """Short and long requests, more at once than ever before: no page fault of the thread that serves."""
    fs = mounted(disk.parent, "--aio", require_driver(name))
    fd = os.open(fs.path / "disk.img", os.O_RDWR | os.O_DIRECT)
    try:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(64) as many:
            for length in LENGTHS:  # pages of code are not what this is about
                write_and_read(one, fd, length, disk.stat().st_size)
            before = loop_faults(fs)
            for length in LENGTHS:
                write_and_read(many, fd, length, disk.stat().st_size)
            assert loop_faults(fs) == before
    finally:
        os.close(fd)
