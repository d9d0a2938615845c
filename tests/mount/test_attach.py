"""aiofs attach: how loop devices on images are set up, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attaching import Attaching, devices, refused
from loops import Loops, run
from mounting import AIOFS, MountedFs, run_aiofs
from waiting import wait_until

from aiofs import loopdevices

Mounting = Callable[..., MountedFs]
MIB = 1 << 20


# -- how a device is set up --


def test_a_device_fits_the_mount(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Direct I/O, sectors of the image's block size, requests no larger than max_write; it can be written."""
    fs = mounted(disk.parent)
    node = attach(fs.path / "disk.img")
    device = loopdevices.identify(node.name)
    assert device is not None
    assert (device.direct, device.read_only, device.size_bytes) == (True, False, 32 * MIB)
    assert device.file == ((fs.path / "disk.img").stat().st_dev, disk.stat().st_ino)
    [entry] = fs.info()["images"]
    assert device.sector_bytes == max(512, entry["block_size"])
    limit = int((loopdevices.BLOCK_DEVICES / node.name / "queue/max_sectors_kb").read_text())
    assert limit * 1024 <= fs.info()["fuse"]["max_write"]
    data = os.urandom(MIB)
    node.write_bytes(data)
    assert run_aiofs("detach", node).returncode == 0
    assert disk.read_bytes()[:MIB] == data


def test_sectors_are_as_large_as_the_image_needs(
    below: Loops, mounted: Mounting, attach: Attaching, tmp_path: Path
) -> None:
    """An image on a device of 4 KiB sectors gets the same, also through a link."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(8 * MIB))
    big = below.attach(backing, "--sector-size", "4096")
    if run("blockdev", "--getss", big).strip() != "4096":
        pytest.skip("this kernel has no loop devices with sectors of 4 KiB")
    fs = mounted(big, "--cache", "none")
    link = tmp_path / "link"
    link.symlink_to(fs.path / big.name)
    node = attach(link)
    assert run("blockdev", "--getss", node).strip() == "4096"
    run("mkfs.ext4", "-q", node)
    [entry] = fs.info()["images"]
    assert entry["counters"]["unaligned"] == 0


def test_a_read_only_device(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Of a read-only mount, or asked for; several may read."""
    fs = mounted(disk.parent, "--read-only")
    assert "(the mount is read-only); use --read-only" in refused("attach", fs.path / "disk.img")
    first = attach(fs.path / "disk.img", "--read-only")
    second = attach(fs.path / "disk.img", "--read-only")
    assert first != second
    assert (loopdevices.BLOCK_DEVICES / first.name / "ro").read_text() == "1\n"
    assert run_aiofs("detach", fs.path / "disk.img").returncode == 0
    assert devices(fs.path) == []


def test_an_image_is_attached_for_writing_once(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """The second time, also under another name, the device is named; also when the first only reads."""
    fs = mounted(disk.parent)
    os.link(disk, disk.parent / "same.img")
    reader = attach(fs.path / "disk.img", "--read-only")
    for name in ("disk.img", "same.img"):
        assert f"attached already, read-only, as {reader}" in refused("attach", fs.path / name)
    assert run_aiofs("detach", reader).returncode == 0
    writer = attach(fs.path / "disk.img")
    for flags in ([], ["--read-only"]):
        line = refused("attach", fs.path / "same.img", *flags)
        assert f"attached already, read-write, as {writer}" in line
        assert f"aiofs detach {writer}" in line
    assert len(devices(fs.path)) == 1


@pytest.mark.usefixtures("attach")
def test_of_many_at_once_one_attaches(mounted: Mounting, disk: Path) -> None:
    """Six start together on one image: one device, five refusals that name it."""
    fs = mounted(disk.parent)
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: run_aiofs("attach", fs.path / "disk.img"), range(6)))
    [won] = [one for one in done if one.returncode == 0]
    assert all(won.stdout.strip() in one.stderr for one in done if one is not won)
    assert [str(device.node) for device in devices(fs.path)] == [won.stdout.strip()]


def test_many_images_at_once_get_a_device_each(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Who loses a free device to another one takes the next."""
    names = [f"{number}.img" for number in range(5)]
    for name in names:
        shutil.copyfile(disk, disk.parent / name)
    fs = mounted(disk.parent)
    with ThreadPoolExecutor(5) as pool:
        nodes = list(pool.map(lambda name: attach(fs.path / name), names))
    found = {device.node: device.path.name for device in devices(fs.path)}
    assert found == dict(zip(nodes, names, strict=True))


@pytest.mark.usefixtures("attach")
def test_partitions_are_printed(mounted: Mounting, disk: Path) -> None:
    """--partitions: the device, then its partitions; a partition in use keeps the device."""
    for tool in ("sfdisk", "partx"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install fdisk util-linux)")
    table = "label: gpt\nsize=8M\nsize=8M\n"
    subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True)
    fs = mounted(disk.parent)
    done = run_aiofs("attach", "--partitions", fs.path / "disk.img")
    assert done.returncode == 0, done
    node, *parts = done.stdout.splitlines()
    if not parts:  # a kernel that knows no such tables, and says so
        assert "the kernel sees no partitions on" in done.stderr
        run("partx", "--add", node)
        parts = [f"/dev/{name}" for name in loopdevices.partitions(devices(fs.path)[0])]
    assert parts == [f"{node}p1", f"{node}p2"]
    assert f"detach the whole device: aiofs detach {node}" in refused("detach", parts[0])
    with Path(parts[1]).open("rb"):
        assert f"{node}: pid {os.getpid()} (" in refused("detach", node, status=1)
    assert run_aiofs("detach", node).returncode == 0


# -- what is refused --


@pytest.mark.usefixtures("attach")
def test_what_cannot_be_attached_says_why(mounted: Mounting, disk: Path, tmp_path: Path) -> None:
    """Each with the thing, and the way out; nothing is attached."""
    (disk.parent / "odd.img").write_bytes(bytes(5000))
    (disk.parent / "empty.img").touch()
    (disk.parent / "guests").mkdir()
    fs = mounted(disk.parent)
    cases = {
        fs.path / "gone.img": f"No such file or directory; make it: truncate -s 10G {fs.path}/gone.img",
        fs.path / "odd.img": f"has 5000 bytes, no multiple of its sectors of 512, so its end could not be "
        f"used; make it one: truncate -s %512 {fs.path}/odd.img",
        fs.path / "empty.img": "is empty; give it a size: truncate -s 10G",
        fs.path / "guests": "is a directory; give one of the images in it",
        fs.path: "is a directory",
        disk: f"{disk} is not on an aiofs mount; mount its directory: aiofs mount {disk.parent}",
        tmp_path / "gone": f"{tmp_path}/gone does not exist; 'aiofs info' lists the aiofs mounts",
    }
    for path, says in cases.items():
        assert says in refused("attach", path)
    assert "IMAGE is empty" in refused("attach", "")
    assert devices(tmp_path) == []


def test_an_image_that_is_locked_is_refused(mounted: Mounting, attach: Attaching, disk: Path) -> None:
    """Another server has it: its device would see the image change beneath it."""
    one, two = mounted(disk.parent), mounted(disk.parent)
    two.allow("is locked by")
    node = attach(one.path / "disk.img")
    assert "another process has locked the image" in refused("attach", two.path / "disk.img")
    assert run_aiofs("detach", node).returncode == 0
    attach(two.path / "disk.img")


NO_LOOP_DEVICES = 'mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && exec "$@"'


@pytest.mark.alone
@pytest.mark.usefixtures("attach")
def test_no_free_device_is_said(mounted: Mounting, disk: Path) -> None:
    """In a container without loop devices."""
    fs = mounted(disk.parent)
    command = [*AIOFS, "attach", str(fs.path / "disk.img")]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", NO_LOOP_DEVICES, "sh", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done
    assert "no free loop device" in done.stderr
    assert "modprobe loop (in a container: start it with --device /dev/loop-control" in done.stderr
    assert devices(fs.path) == []


def without_root(*args: str | Path) -> str:
    """What an ordinary user is told; Python runs as root, which is all that the checks look at."""
    code = (
        "import os, sys; os.geteuid = lambda: 1000; from aiofs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    return done.stderr


def test_root_is_asked_for(tmp_path: Path) -> None:
    """By name, with the command."""
    line = without_root("attach", tmp_path)
    assert line == "aiofs: 'aiofs attach' needs root, because loop devices do: sudo aiofs attach ...\n"
    assert "sudo aiofs detach" in without_root("detach", tmp_path)


def test_without_losetup_it_says_what_to_install(tmp_path: Path) -> None:
    """apt-get install mount."""
    code = (
        "import os, sys, shutil; shutil.which = lambda *a, **k: None; os.geteuid = lambda: 0; "
        "from aiofs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "attach", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "losetup was not found; install it: apt-get install mount" in done.stderr


FAILS_MIDWAY = """
import sys
from aiofs import attach
from aiofs.cli import main
from aiofs.errors import AiofsError
def fail(*_):
    raise {error}
attach._finish = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("error", "status"), [("AiofsError('max_sectors_kb')", 1), ("KeyboardInterrupt", 130)]
)
def test_what_fails_midway_leaves_nothing(
    mounted: Mounting, attach: Attaching, disk: Path, error: str, status: int
) -> None:
    """After losetup has made the device: it is detached again; one that was there before stays."""
    fs = mounted(disk.parent)
    before = attach(fs.path / "disk.img", "--read-only")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FAILS_MIDWAY.format(error=error),
            "attach",
            "--read-only",
            fs.path / "disk.img",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    wait_until(lambda: len(devices(fs.path)) == 1)
    assert devices(fs.path)[0].node == before
