"""One writer for an image: what a mount says when another process has it, and what others are told."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import TIMEOUT_S, MountedFs
from waiting import wait_until

Mounting = Callable[..., MountedFs]
MIB = 1 << 20

HOLDER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(image_dir: Path) -> Path:
    path = image_dir / "a.img"
    path.write_bytes(bytes(MIB))
    (image_dir / "b.img").write_bytes(bytes(MIB))
    return path


@contextmanager
def running(command: list[str], sign: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed `sign`, until the block ends; it ends with its stdin."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert sign in process.stdout.readline()
        yield process
    finally:
        process.communicate(timeout=TIMEOUT_S)


def holder(image: Path) -> list[str]:
    """A process that locks the image as aiofs and QEMU do."""
    return [sys.executable, "-c", HOLDER, str(image)]


def qemu(image: Path, *options: str) -> list[str]:
    """qemu-io with the image open; skips where it is not installed."""
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed (apt-get install qemu-utils)")
    return ["qemu-io", *options, "-f", "raw", str(image)]


def assert_refused(fs: MountedFs, pid: int) -> None:
    """Opening for writing is EBUSY, and the log names the image and the process; b.img is fine."""
    fs.allow("is locked by")
    with pytest.raises(OSError) as caught:
        os.close(os.open(fs.path / "a.img", os.O_RDWR))
    assert caught.value.errno == errno.EBUSY
    wait_until(lambda: any("a.img is locked by" in line and str(pid) in line for line in fs.log))
    (fs.path / "b.img").write_bytes(b"fine")


def test_a_locked_image_is_refused_and_its_holder_named(mounted: Mounting, image: Path) -> None:
    """While the lock is held; the moment it is gone the image opens."""
    fs = mounted(image.parent)
    with running(holder(image), "locked") as process:
        assert_refused(fs, process.pid)
    with (fs.path / "a.img").open("r+b", buffering=0) as ours:
        assert ours.write(b"ours") == 4


def test_an_image_in_use_by_qemu_is_refused_and_qemu_named(mounted: Mounting, image: Path) -> None:
    """QEMU's own locks of image bytes count as well."""
    fs = mounted(image.parent)
    command = qemu(image)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        assert "1 MiB" in process.stdout.readline()  # it answers: the image is open and locked
        assert_refused(fs, process.pid)
    finally:
        process.communicate("quit\n", timeout=TIMEOUT_S)
    with (fs.path / "a.img").open("r+b", buffering=0) as ours:
        assert ours.write(b"ours") == 4


def test_qemu_refuses_an_image_that_the_mount_writes(mounted: Mounting, image: Path) -> None:
    """Its image locks meet ours; when the mount has closed the image, QEMU opens it."""
    fs = mounted(image.parent)
    command = [*qemu(image), "-c", "read 0 4k"]

    def try_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    with (fs.path / "a.img").open("r+b", buffering=0):
        refused = try_it()
    assert refused.returncode != 0
    assert "lock" in refused.stderr
    assert fs.umount() == 0
    assert try_it().returncode == 0


def test_two_mounts_do_not_write_one_image(mounted: Mounting, image: Path) -> None:
    """The second is refused, and names the first's server; both go on with what is free."""
    first, second = mounted(image.parent), mounted(image.parent)
    with (first.path / "a.img").open("r+b", buffering=0) as held:
        assert_refused(second, first.server_pid)
        assert held.write(b"first") == 5
    assert image.read_bytes()[:5] == b"first"


def test_readers_share_an_image(mounted: Mounting, image: Path) -> None:
    """Two mounts that only read it do not lock each other out."""
    first, second = mounted(image.parent), mounted(image.parent)
    with (first.path / "a.img").open("rb") as one, (second.path / "a.img").open("rb") as other:
        assert one.read() == other.read() == bytes(MIB)
