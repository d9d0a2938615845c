"""--aio auto on real file systems, and under kernels that refuse things: the mount works, the bytes are
right, and the reason shown is the true one.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from loops import Loops
from mounting import AIOFS, MountedFs, run_aiofs
from tracing import traced
from working import require_driver

from aiofs.dataplane import Queue

MIB = 1 << 20
SIZE = 2 * MIB + 4096
Mounting = Callable[..., MountedFs]


def make_image(directory: Path, *, sparse: bool = False) -> Path:
    """An image of SIZE zero bytes."""
    image = directory / "a.img"
    with image.open("wb") as file:
        if sparse:
            file.truncate(SIZE)
        else:
            file.write(bytes(SIZE))
            os.fsync(file.fileno())
    return image


def decided(fs: MountedFs) -> dict[str, Any]:
    """What the mount decided for its one image, after writing to it and reading it back."""
    chosen = random.Random(7)
    expected = bytearray(SIZE)
    with (fs.path / "a.img").open("r+b", buffering=0) as file:
        for _ in range(64):
            offset, length = chosen.randrange(SIZE - 70_000), chosen.randrange(1, 70_000)
            expected[offset : offset + length] = data = chosen.randbytes(length)
            assert os.pwrite(file.fileno(), data, offset) == length
        os.fsync(file.fileno())
        assert (fs.path / "a.img").read_bytes() == expected
        [image] = fs.info()["images"]
    backing = fs.source if fs.source.is_file() else fs.source / "a.img"
    if not fs.source.is_block_device():
        assert backing.read_bytes() == expected
    else:
        assert fs.source.read_bytes()[:SIZE] == expected
    found: dict[str, Any] = image
    return found


def against(image: dict[str, Any]) -> dict[str, str]:
    """Why the drivers before the chosen one were not taken."""
    return {test["driver"]: test["reason"] for test in image["tests"] if test["verdict"] == "no"}


@pytest.mark.parametrize("sparse", [False, True], ids=["allocated", "sparse"])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_disk_file_systems_are_given_io_uring(
    below: Loops, mounted: Mounting, kind: str, sparse: bool
) -> None:
    """Known, asynchronous for reads in place: allocated or not."""
    require_driver("io_uring")
    directory = below.filesystem(kind, "disk", 320 * MIB)
    make_image(directory, sparse=sparse)
    image = decided(mounted(directory))
    assert image["driver"] == "io_uring"
    storage = next(test for test in image["tests"] if test["name"] == "storage")
    assert storage["looked_at"].startswith(f"{kind} on loop")
    assert ("linux reads what is longer" in image["driver_reason"]) == (kind == "btrfs")


def test_copy_on_write_images_are_written_by_threads(below: Loops, mounted: Mounting) -> None:
    """btrfs; one that chattr +C exempts is written by the ring. `linux` does the wide reads of both."""
    require_driver("io_uring")
    directory = below.filesystem("btrfs", "disk", 320 * MIB)
    make_image(directory)
    exempt = directory / "exempt"
    exempt.mkdir()
    subprocess.run(["chattr", "+C", exempt], check=True)
    make_image(exempt)
    reason = decided(mounted(directory))["driver_reason"]
    assert "threads write" in reason and "linux reads what is longer than a block" in reason
    reason = decided(mounted(exempt))["driver_reason"]
    assert "threads write" not in reason and "linux reads what is longer than a block" in reason


def test_wide_reads_of_btrfs_go_past_the_ring(below: Loops, mounted: Mounting, tmp_path: Path) -> None:
    """One block through io_uring_enter, more by io_submit; the bytes are right from both."""
    require_driver("io_uring")
    require_driver("linux")
    directory = below.filesystem("btrfs", "disk", 320 * MIB)
    image = make_image(directory)
    data = random.Random(2008).randbytes(MIB)
    image.write_bytes(data)
    fs = mounted(directory)
    fd = os.open(fs.path / "a.img", os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, MIB)
    try:
        with traced(fs.server_pid, "io_uring_enter,io_submit", tmp_path / "narrow.log") as narrow:
            for i in range(20):
                assert os.preadv(fd, [memoryview(memory)[:4096]], i * 8192) == 4096
                assert memory[:4096] == data[i * 8192 : i * 8192 + 4096]
        with traced(fs.server_pid, "io_uring_enter,io_submit", tmp_path / "wide.log") as wide:
            for i in range(20):
                assert os.preadv(fd, [memoryview(memory)[: 32 << 10]], i << 15) == 32 << 10
                assert memory[: 32 << 10] == data[i << 15 : (i + 1) << 15]
    finally:
        os.close(fd)
    assert len(narrow.matching("io_uring_enter")) >= 20
    assert not narrow.matching("io_submit")
    assert len(wide.matching("io_submit")) >= 20


def test_tmpfs_is_served_in_place(below: Loops, mounted: Mounting) -> None:
    """sync, because there is nothing to wait for; the fallback of the cache mode is said once."""
    directory = below.virtual("tmpfs", "memory", "size=16m")
    make_image(directory)
    fs = mounted(directory)
    image = decided(fs)
    assert (image["driver"], image["cache"]) == ("sync", "writeback")
    assert "nothing to wait for" in image["driver_reason"]
    assert len([line for line in fs.log if "--cache writeback" in line]) == 1


def test_overlayfs_is_not_given_io_uring(below: Loops, mounted: Mounting) -> None:
    """It refuses RWF_NOWAIT, so a ring would hand each request to a kernel worker."""
    base = below.ext4("base", 64 * MIB)
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    make_image(base / "lower")
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    image = decided(mounted(below.virtual("overlay", "over", options)))
    assert image["driver"] in ("linux", "threads")
    assert "overlay refuses RWF_NOWAIT" in against(image)["io_uring"]


def test_a_fuse_file_system_is_given_threads(mounted: Mounting, image_dir: Path) -> None:
    """aiofs on aiofs: not known, refuses RWF_NOWAIT, and has no unnamed files to try io_submit on."""
    make_image(image_dir)
    image = decided(mounted(mounted(image_dir).path))
    assert "fuse.aiofs refuses RWF_NOWAIT" in against(image)["io_uring"]
    if image["cache"] == "none":
        assert "no temporary file" in against(image)["linux"]
    assert image["driver"] == "threads"


def test_a_block_device_is_given_io_uring(below: Loops, mounted: Mounting, tmp_path: Path) -> None:
    """Its storage names the device."""
    require_driver("io_uring")
    device = below.attach(make_image(tmp_path))
    fs = mounted(device)
    (fs.path / device.name).open("rb").close()
    with (fs.path / device.name).open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"x" * 8192, 4096) == 8192
        os.fsync(file.fileno())
        [image] = fs.info()["images"]
    assert device.read_bytes()[4096:12288] == b"x" * 8192
    assert image["driver"] == "io_uring"
    storage = next(test for test in image["tests"] if test["name"] == "storage")
    assert storage["looked_at"].startswith(f"block device on {device.name} (loop")


# -- kernels that refuse --


def injecting(tmp_path: Path, *faults: str) -> list[str]:
    """The words of a strace that makes system calls fail; skips where there is none."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    names = ",".join(fault.partition(":")[0] for fault in faults)
    words = ["strace", "-f", "-o", str(tmp_path / "strace.log"), "-e", f"trace={names}"]
    for fault in faults:
        words += ["-e", f"inject={fault}"]
    return words


@pytest.fixture
def on_disk(below: Loops) -> Path:
    """A directory on ext4: the answer does not depend on where pytest has its files."""
    return below.ext4("disk", 64 * MIB)


def test_without_io_uring_an_allocated_image_is_given_linux(
    on_disk: Path, mounted: Mounting, tmp_path: Path
) -> None:
    """A seccomp filter refuses the ring; nothing in the log complains, since it was found out before."""
    require_driver("linux")
    make_image(on_disk)
    image = decided(mounted(on_disk, under=injecting(tmp_path, "io_uring_setup:error=EPERM")))
    assert image["driver"] == "linux"
    assert "seccomp" in against(image)["io_uring"]


def test_without_io_uring_a_sparse_image_is_probed(on_disk: Path, mounted: Mounting, tmp_path: Path) -> None:
    """The verdict is that of the count which is shown with it."""
    require_driver("linux")
    make_image(on_disk, sparse=True)
    image = decided(mounted(on_disk, under=injecting(tmp_path, "io_uring_setup:error=ENOSYS")))
    assert "this kernel has no io_uring" in against(image)["io_uring"]
    tried = next(test for test in image["tests"] if test["name"] == "allocation")
    waits = float(tried["reason"].removesuffix(" waits per write").rpartition(" ")[2])
    assert image["driver"] == ("linux" if waits < 0.1 else "threads")
    assert {entry.name for entry in on_disk.iterdir()} == {"a.img", "lost+found"}


def test_a_ring_that_cannot_be_entered_is_not_taken(on_disk: Path, mounted: Mounting, tmp_path: Path) -> None:
    """A filter that lets io_uring_setup pass and refuses io_uring_enter: the trial read finds out."""
    make_image(on_disk)
    image = decided(mounted(on_disk, under=injecting(tmp_path, "io_uring_enter:error=EPERM")))
    assert image["driver"] == "linux"
    assert "Operation not permitted" in against(image)["io_uring"]


def test_neither_interface_gives_threads(on_disk: Path, mounted: Mounting, tmp_path: Path) -> None:
    """Both reasons are shown."""
    make_image(on_disk)
    faults = ("io_uring_setup:error=EPERM", "io_setup:error=EAGAIN")
    image = decided(mounted(on_disk, under=injecting(tmp_path, *faults)))
    assert image["driver"] == "threads"
    assert set(against(image)) >= {"io_uring", "linux"}
    assert "fs.aio-max-nr" in against(image)["linux"]


def test_a_named_driver_is_never_replaced(on_disk: Path, mountpoint: Path, tmp_path: Path) -> None:
    """--aio io_uring where it is refused: status 2, the failed test, and what would work."""
    make_image(on_disk)
    words = [*injecting(tmp_path, "io_uring_setup:error=EPERM"), *AIOFS]
    done = subprocess.run(
        [*words, "mount", str(on_disk), str(mountpoint), "--aio", "io_uring"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "AIO driver io_uring does not work here" in done.stderr
    assert "linux threads posix sync" in done.stderr


@contextmanager
def contexts_used_up(room: int) -> Iterator[None]:
    """Other contexts have used up fs.aio-max-nr, but for `room`."""
    limit, used = (Path(f"/proc/sys/fs/{name}") for name in ("aio-max-nr", "aio-nr"))
    with ExitStack() as stack:
        while (left := int(limit.read_text()) - int(used.read_text()) - room) > 0:
            stack.enter_context(Queue("linux", min(left, 4096)))
        yield


@pytest.mark.alone
def test_used_up_contexts_are_named(on_disk: Path, mounted: Mounting, tmp_path: Path) -> None:
    """fs.aio-max-nr and fs.aio-nr stand in the reason, with their values."""
    make_image(on_disk)
    with contexts_used_up(room=0):
        image = decided(mounted(on_disk, under=injecting(tmp_path, "io_uring_setup:error=EPERM")))
    assert image["driver"] == "threads"
    limit = Path("/proc/sys/fs/aio-max-nr").read_text().strip()
    assert f"fs.aio-max-nr = {limit} is used up" in against(image)["linux"]


@pytest.mark.alone
def test_a_driver_refused_after_its_tests_is_gone_without(
    on_disk: Path, mounted: Mounting, tmp_path: Path
) -> None:
    """There is room for the tests' contexts and none for the mount's: one warning, and on with threads."""
    make_image(on_disk)
    with contexts_used_up(room=40):
        fs = mounted(on_disk, under=injecting(tmp_path, "io_uring_setup:error=EPERM"))
        fs.allow("AIO driver linux failed to start: .*; going on without it")
        image = decided(fs)
    assert image["driver"] == "threads"
    assert "failed to start" in against(image)["linux"]
    assert len([line for line in fs.log if "failed to start" in line and "warning" in line]) == 1


@pytest.mark.alone
def test_io_uring_switched_off_by_the_administrator_is_named(on_disk: Path, mounted: Mounting) -> None:
    """kernel.io_uring_disabled = 2; tried where it may be set, and set back."""
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    if not os.access(switch, os.W_OK):
        pytest.skip(f"{switch} cannot be written here")
    make_image(on_disk)
    before = switch.read_text()
    try:
        switch.write_text("2")
        image = decided(mounted(on_disk))
    finally:
        switch.write_text(before)
    assert image["driver"] == "linux"
    assert "kernel.io_uring_disabled = 2" in against(image)["io_uring"]


def test_no_locked_memory_is_no_obstacle_to_newer_kernels(on_disk: Path, mounted: Mounting) -> None:
    """RLIMIT_MEMLOCK 0: rings are not counted from Linux 5.12 on."""
    require_driver("io_uring")
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed (apt-get install util-linux)")
    make_image(on_disk)
    image = decided(mounted(on_disk, under=["prlimit", "--memlock=0:0"]))
    assert image["driver"] == "io_uring"
    memory = next(test for test in image["tests"] if test["name"] == "locked memory")
    assert "not counted" in memory["reason"]


# -- what people see --


def test_info_shows_the_tests_of_open_images(on_disk: Path, mounted: Mounting) -> None:
    """The table of `aiofs probe`, for a live mount."""
    make_image(on_disk)
    fs = mounted(on_disk)
    with (fs.path / "a.img").open("rb"):
        [image] = fs.info()["images"]
        shown = run_aiofs("info", fs.path).stdout
    assert f"driver {image['driver']}: " in shown
    for test in image["tests"]:
        assert test["name"].split()[0] in shown
    assert max(map(len, shown[shown.index("driver io_") :].splitlines())) <= 80


def test_ten_thousand_images_are_not_probed_one_by_one(mounted: Mounting, image_dir: Path) -> None:
    """A mount decides for an image when it is opened, not before."""
    for index in range(200):
        (image_dir / f"{index}.img").write_bytes(bytes(4096))
    fs = mounted(image_dir, "--log-level", "debug")
    assert len(list(fs.path.iterdir())) == 200
    assert fs.info()["images"] == []
    assert not any(": AIO driver io_uring (" in line for line in fs.log)
