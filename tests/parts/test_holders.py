"""holders.py: who uses a mount, found without asking its file system. Any mount will do: a tmpfs here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiofs import mounttable
from aiofs.holders import holders_of
from aiofs.mounttable import Mount

HOLD = """
import mmap, os, sys
what, where = sys.argv[1:]
if what == "cwd":
    os.chdir(where)
elif what == "file":
    held = open(where + "/a.img")
elif what == "map":
    fd = os.open(where + "/a.img", os.O_RDONLY)
    held = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    os.close(fd)
    # mmap keeps a duplicate of the descriptor: only the mapping is to be left.
    os.closerange(3, 64)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A small file system with one file in it."""
    path = tmp_path / "fs"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    (path / "a.img").write_bytes(bytes(4096))
    found = mounttable.mount_at(path)
    assert found is not None
    yield found
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def hold(mount: Mount) -> Iterator[Callable[[str], int]]:
    """`hold(how)` starts a process that holds the mount; its pid."""
    children = []

    def start(how: str) -> int:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD, how, str(mount.mountpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        return child.pid

    yield start
    for child in children:
        child.communicate()


@pytest.mark.parametrize(
    ("how", "text"),
    [("cwd", "working directory"), ("file", "open file a.img"), ("map", "memory map of a.img")],
)
def test_a_process_that_holds_the_mount_is_named(
    mount: Mount, hold: Callable[[str], int], how: str, text: str
) -> None:
    """With its pid, its name and what it holds."""
    pid = hold(how)
    [line] = holders_of(mount).lines()
    assert line.startswith(f"pid {pid} (python")
    assert line.endswith(f"): {text}")


def test_an_unused_mount_has_no_holders(mount: Mount) -> None:
    """Nothing is found, and nothing is made up."""
    assert holders_of(mount).lines() == []


def test_a_mount_inside_is_a_holder(mount: Mount) -> None:
    """A nested mount keeps the outer one busy."""
    inner = mount.mountpoint / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        assert holders_of(mount).lines() == [f"mount {inner}: tmpfs inside it"]
    finally:
        subprocess.run(["umount", inner], check=True)


def test_a_loop_device_is_a_holder(mount: Mount) -> None:
    """It holds its backing file without any process."""
    image = mount.mountpoint / "a.img"
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        assert f"{device}: loop device on a.img" in holders_of(mount).lines()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
