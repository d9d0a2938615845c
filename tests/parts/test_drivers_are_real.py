"""Each driver does what its name says: seen from outside, in the system calls of a process that uses it.

The same way, faults are put into those calls, to see that nothing is lost and that probes say why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

WORK = """
import os, sys
from aiofs.dataplane import Io, Op, Queue
name, path = sys.argv[1:]
fd = os.open(path, os.O_RDWR | os.O_DIRECT)
import mmap
memory = memoryview(mmap.mmap(-1, 16 * 4096))
with Queue(name, 16) as queue:
    queue.attach(fd)
    for _ in range(5):
        ios = [Io(i, Op.READ, fd, i * 4096, memory[i * 4096:(i + 1) * 4096]) for i in range(16)]
        assert queue.submit(ios) == 16
        queue.flush(20)
        results = sorted((done.io.id, done.result) for done in queue.reap())
        print(results == [(i, 4096) for i in range(16)])
"""

PROBE = """
import sys
from aiofs.dataplane import drivers
print(*(status.reason for status in drivers() if status.name == sys.argv[1]))
"""


class Traced:
    """A finished process: what it printed, and its system calls."""

    def __init__(self, directory: Path, options: list[str], script: str, *args: str) -> None:
        log = directory / "strace.log"
        command = ["strace", "-f", "-qq", "-o", str(log), *options, sys.executable, "-c", script, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if "ptrace" in done.stderr and done.returncode != 0:
            pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        self.output = done.stdout
        self.calls = log.read_text().splitlines()
        self.main = self.calls[0].split()[0]
        """The thread that runs the script; its execve is the first call (when those are traced)."""

    def matching(self, pattern: str) -> list[str]:
        """The system calls in which this is found."""
        return [call for call in self.calls if re.search(pattern, call)]

    def threads(self, pattern: str) -> set[str]:
        """The ids of the threads that made them."""
        return {call.split()[0] for call in self.matching(pattern)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(16 * 4096))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # direct reads of a file with dirty pages would block
    os.close(fd)
    return path


def traced_work(name: str, image: Path, *options: str) -> Traced:
    """Five batches of 16 direct reads on one driver; every one must have come back with its bytes."""
    traced = Traced(image.parent, list(options), WORK, name, str(image))
    assert traced.output == "True\n" * 5
    return traced


def test_io_uring_enters_once_for_a_batch(image: Path) -> None:
    """Sixteen ios in one io_uring_enter, on registered files, nothing else moves data."""
    traced = traced_work("io_uring", image, "-e", "trace=io_uring_enter,io_uring_register,preadv,io_submit")
    assert len(traced.matching(r"io_uring_enter\(\d+, 16, ")) == 5
    assert traced.matching(r"IORING_REGISTER_FILES_UPDATE")
    assert not traced.matching(r"\b(preadv|io_submit)\(")


def test_linux_submits_a_batch_in_one_call(image: Path) -> None:
    """Sixteen iocbs in one io_submit, an eventfd in each, and no call to collect them."""
    traced = traced_work("linux", image, "-e", "trace=io_submit,io_getevents,preadv,io_uring_enter")
    assert len(traced.matching(r"io_submit\(0x\w+, 16, .*RESFD")) == 5
    assert not traced.matching(r"\b(preadv|io_uring_enter|io_getevents)\(")


def test_threads_reads_in_several_threads(image: Path) -> None:
    """preadv from more than one thread, none of them the one that submits."""
    traced = traced_work("threads", image, "-e", "trace=preadv,io_submit,io_uring_enter,execve")
    readers = traced.threads(r"preadv\(")
    assert len(readers) > 1
    assert traced.main not in readers
    assert not traced.matching(r"\b(io_submit|io_uring_enter)\(")


def test_posix_reads_in_glibcs_threads(image: Path) -> None:
    """glibc's pread64 from more than one thread, on more than one descriptor of the file."""
    traced = traced_work("posix", image, "-e", "trace=pread64,preadv,io_submit,io_uring_enter,execve")
    # The main thread's are the dynamic linker's.
    reads = [call for call in traced.matching(r"pread64\(\d+,") if call.split()[0] != traced.main]
    assert len({call.split()[0] for call in reads}) > 1
    assert len({call.partition("pread64(")[2].partition(",")[0] for call in reads}) > 1
    assert not traced.matching(r"\b(preadv|io_submit|io_uring_enter)\(")


def test_sync_reads_where_it_submits(image: Path) -> None:
    """Eighty preadv, all of the submitting thread."""
    traced = traced_work("sync", image, "-e", "trace=preadv,io_submit,io_uring_enter,execve")
    assert len(traced.matching(r"preadv\(")) == 80
    assert traced.threads(r"preadv\(") == {traced.main}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("linux", "io_submit:error=EAGAIN:when=2"),
        ("linux", "io_submit:error=EINTR:when=1+2"),
        ("io_uring", "io_uring_enter:error=EAGAIN:when=2"),
        ("io_uring", "io_uring_enter:error=EINTR:when=1+2"),
        ("io_uring", "io_uring_enter:error=EBUSY:when=1+3"),
        ("io_uring", "io_uring_setup:error=EINVAL:when=1"),
        ("io_uring", "io_uring_setup:error=EINVAL:when=1..2"),
        ("io_uring", "io_uring_register:error=EINVAL:when=2+"),
        ("threads", "clone,clone3:error=EAGAIN:when=2+"),
    ],
)
def test_nothing_is_lost_when_the_kernel_says_not_now(name: str, fault: str, image: Path) -> None:
    """A call refused for the moment, a feature the kernel lacks, a thread not started: all ios come back."""
    traced = traced_work(name, image, "-e", f"inject={fault}")
    assert traced.matching("INJECTED"), "the fault was never met"


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("io_uring", "io_uring_setup:error=EPERM", "seccomp"),
        ("io_uring", "io_uring_setup:error=ENOSYS", "Linux 5.6"),
        ("io_uring", "io_uring_setup:error=ENOMEM", "RLIMIT_MEMLOCK"),
        ("linux", "io_setup:error=EAGAIN", r"fs\.aio-max-nr = \d+"),
        ("linux", "io_setup:error=ENOSYS", "CONFIG_AIO"),
        ("linux", "io_setup:error=EPERM", "seccomp"),
    ],
)
def test_a_refused_probe_names_the_cause(name: str, fault: str, reason: str, tmp_path: Path) -> None:
    """The sentence names what forbids the driver, and where there is one the way out."""
    traced = Traced(tmp_path, ["-e", f"inject={fault}"], PROBE, name)
    assert re.search(reason, traced.output), traced.output
