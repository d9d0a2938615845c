"""Each driver, serving a mount, makes the system calls that its name promises and no other's."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import MountedFs
from tracing import Calls, traced
from working import require_driver

pytestmark = pytest.mark.skipif(
    shutil.which("fio") is None, reason="fio is not installed (apt-get install fio)"
)

SIZE = 8 << 20
CALLS = "io_uring_enter,io_submit,pread64,pwrite64,preadv,pwritev,preadv2,pwritev2"
PLAIN = r"\b(pread64|pwrite64|preadv|pwritev|preadv2|pwritev2)\(\d+<[^>]*a\.img>"
Mounting = Callable[..., MountedFs]


@pytest.fixture
def calls_of(
    mounted: Mounting, image_dir: Path, tmp_path: Path, need_direct: Callable[[str], str]
) -> Callable[[str], Calls]:
    """`calls_of(driver)`: the system calls of its server under fio at depth 32, reading and writing."""

    def calls_of(driver: str) -> Calls:
        (image_dir / "a.img").write_bytes(bytes(SIZE))
        cache = need_direct("none")
        fs = mounted(image_dir, "--aio", require_driver(driver), "--cache", cache, "--no-merge")
        with held_open(fs.path / "a.img"), traced(fs.server_pid, CALLS, tmp_path / "strace.log") as calls:
            load(fs.path / "a.img")
        return calls

    return calls_of


@contextmanager
def held_open(path: Path) -> Iterator[None]:
    """The image stays open, so that opening it is not among what is traced."""
    fd = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(fd)


def load(path: Path) -> None:
    """400 random requests of 4 KiB, 32 at once."""
    words = ["--bs=4k", "--iodepth=32", "--iodepth_batch=16", "--number_ios=400", f"--size={SIZE}"]
    command = ["fio", "--name=load", f"--filename={path}", "--rw=randrw", "--direct=1", "--ioengine=libaio"]
    subprocess.run([*command, *words], capture_output=True, timeout=60, check=True)


def batch_sizes(calls: Calls, pattern: str) -> list[int]:
    """The number in the pattern's group, of each call."""
    found = [re.search(pattern, line) for line in calls.lines]
    return [int(match[1]) for match in found if match]


def test_io_uring_enters_with_batches(calls_of: Callable[[str], Calls]) -> None:
    """io_uring_enter with more than one entry, and no call that reads or writes by itself."""
    calls = calls_of("io_uring")
    sizes = batch_sizes(calls, r"io_uring_enter\(\d+(?:<[^>]*>)?, (\d+)")
    assert max(sizes) > 1
    assert not calls.matching(PLAIN)
    assert not calls.matching(r"io_submit\(")


def test_linux_submits_more_than_one_iocb(calls_of: Callable[[str], Calls]) -> None:
    """io_submit with several iocbs, and no call that reads or writes by itself."""
    calls = calls_of("linux")
    assert max(batch_sizes(calls, r"io_submit\(0x\w+, (\d+)")) > 1
    assert not calls.matching(PLAIN)
    assert not calls.matching(r"io_uring_enter\(")


@pytest.mark.parametrize("driver", ["threads", "posix"])
def test_pools_read_and_write_in_several_threads(calls_of: Callable[[str], Calls], driver: str) -> None:
    """Reads and writes of the image from more than one thread, and neither kind of kernel AIO."""
    calls = calls_of(driver)
    assert len(calls.threads(r"\bp?read(64|v|v2)\(\d+<[^>]*a\.img>")) > 1
    assert len(calls.threads(r"\bp?write(64|v|v2)\(\d+<[^>]*a\.img>")) > 1
    assert not calls.matching(r"\b(io_submit|io_uring_enter)\(")


def test_sync_does_all_in_one_thread(calls_of: Callable[[str], Calls]) -> None:
    """Reads and writes of the image are those of the data plane's own thread."""
    calls = calls_of("sync")
    assert len(calls.threads(PLAIN)) == 1
    assert len(calls.matching(PLAIN)) >= 400
    assert not calls.matching(r"\b(io_submit|io_uring_enter)\(")


def test_a_read_that_comes_alone_is_one_call_of_the_driver(
    mounted: Mounting, image_dir: Path, tmp_path: Path, need_direct: Callable[[str], str]
) -> None:
    """io_uring: it is submitted, slept on and collected by one io_uring_enter."""
    (image_dir / "a.img").write_bytes(bytes(SIZE))
    cache = need_direct("none")
    fs = mounted(image_dir, "--aio", require_driver("io_uring"), "--cache", cache)
    fd = os.open(fs.path / "a.img", os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, 4096)
    count = 200
    try:
        with traced(fs.server_pid, "io_uring_enter,writev", tmp_path / "strace.log") as calls:
            for i in range(count):
                assert os.preadv(fd, [memory], i * 4096) == 4096
    finally:
        os.close(fd)
    together = calls.matching(r"io_uring_enter\(\d+(<[^>]*>)?, [1-9]\d*, 1, IORING_ENTER_GETEVENTS")
    # Not while the loop looks for work, which goes by how long requests take; traced, they take longer.
    assert len(together) > count / 10, f"{len(together)} of {len(calls.matching('io_uring_enter'))}"
