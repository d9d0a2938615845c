"""Servers are killed, and nobody notices: not who reads, writes or names files, not a file system."""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attaching import Attaching
from killing import kill_repeatedly, killed_meanwhile, taken_over
from loops import Loops, run
from mounting import MountedFs, is_mounted, kill_all, run_aiofs, unmount
from tracing import traced
from waiting import wait_until

from aiofs import survival

Mounting = Callable[..., MountedFs]
MIB = 1 << 20
FIO = ("fio", "--name=survivor", "--bs=4k", "--iodepth=32", "--ioengine=libaio", "--direct=1")
VERIFY = (
    "--rw=randwrite",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_backlog=256",
    "--verify_state_save=0",
)

pytestmark = pytest.mark.skipif(
    bool(survival.why_not(os.uname().release)), reason=survival.why_not(os.uname().release) or "it can"
)


@pytest.fixture
def disk(image_dir: Path) -> Path:
    """An image of 32 MiB."""
    path = image_dir / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    return path


def verified(path: Path) -> subprocess.Popen[str]:
    """fio, writing and verifying a file until it is told to stop."""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed (apt-get install fio)")
    words = [*FIO, *VERIFY, f"--filename={path}", "--size=32M", "--time_based", "--runtime=600"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stopped(fio: subprocess.Popen[str]) -> None:
    """It ends when asked to, and has found nothing wrong."""
    fio.send_signal(signal.SIGINT)
    said, _ = fio.communicate(timeout=60)
    assert fio.returncode in (0, 128), said[-3000:]  # 128: it was told to stop
    assert "err= 0" in said, said[-3000:]
    assert "verify" not in said.replace("survivor", ""), said[-3000:]


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_fio_sees_no_error_while_servers_are_killed(
    mounted: Mounting, disk: Path, driver: str, cache: str, need_direct: Callable[[str], str]
) -> None:
    """Nothing lost, nothing stale, no error: random writes at depth 32, each read back."""
    fs = mounted(disk.parent, "--aio", driver, "--cache", need_direct(cache))
    fio = verified(fs.path / "disk.img")
    try:
        kill_repeatedly(fs, 3, lambda: fio.poll() is None)
        stopped(fio)
    finally:
        fio.kill()
    told = fs.info()
    assert told["restarts"] == 3
    assert told["server_pid"] == fs.server_pid
    [counters] = [image["counters"] for image in (*told["images"], *told["closed"])]
    assert counters["errors"] == 0


def test_a_block_device_is_claimed_again(mounted: Mounting, below: Loops, disk: Path) -> None:
    """O_EXCL lasts as long as any I/O of the dead server: the next one waits for it, and may write."""
    device = below.attach(disk, "--direct-io=on")
    fs = mounted(device)
    fio = verified(fs.path / device.name)
    try:
        kill_repeatedly(fs, 5, lambda: fio.poll() is None)
        stopped(fio)
    finally:
        fio.kill()


def test_a_file_system_on_a_loop_device_goes_on(
    mounted: Mounting, disk: Path, attach: Attaching, loops: Loops
) -> None:
    """ext4: files are written, synced and read back over a dozen kills; its journal finds nothing wrong."""
    fs = mounted(disk.parent)
    device = attach(fs.path / "disk.img")
    run("mkfs.ext4", "-q", device)
    there = loops.mount(device, "there")
    with killed_meanwhile(fs, at_least=12):
        written = {}
        for number in range(60):
            path = there / f"{number % 7}"
            written[path] = os.urandom(200_000)
            path.write_bytes(written[path])
            with path.open("rb") as file:
                os.fsync(file.fileno())
            if number % 10 == 0:
                run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
            assert path.read_bytes() == written[path]
    options = [
        line.split()[3] for line in Path("/proc/mounts").read_text().splitlines() if str(there) in line
    ]
    assert options[0].startswith("rw")
    assert all(path.read_bytes() == content for path, content in written.items())
    loops.umount(there)
    run("e2fsck", "-f", "-n", device)


def test_names_are_made_and_removed_exactly_once(mounted: Mounting, image_dir: Path) -> None:
    """No EEXIST for a file that was made, no ENOENT for one that was removed, each change done once."""
    fs = mounted(image_dir)
    with killed_meanwhile(fs, at_least=12):
        for number in range(150):
            one, two = fs.path / f"one{number}", fs.path / f"two{number}"
            os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            one.rename(two)
            os.link(two, one)
            two.unlink()
            directory = fs.path / f"d{number}"
            directory.mkdir()
            one.rename(directory / "kept")
            if number % 3:
                (directory / "kept").unlink()
                directory.rmdir()
    left = sorted(str(path.relative_to(image_dir)) for path in image_dir.rglob("*"))
    expected = itertools.chain.from_iterable((f"d{n}", f"d{n}/kept") for n in range(0, 150, 3))
    assert left == sorted(expected)


def test_open_files_stay_open_and_close(mounted: Mounting, image_dir: Path) -> None:
    """Through three servers: a descriptor goes on, and its last close closes the image."""
    for name in ("a", "b"):
        (image_dir / name).write_bytes(b"before")
    fs = mounted(image_dir)
    with (fs.path / "a").open("r+b", buffering=0) as one, (fs.path / "a").open("rb", buffering=0) as two:
        for number in range(3):
            kill_repeatedly(fs, 1, lambda: True)
            one.seek(0)
            one.write(b"after %d" % number)
            os.fsync(one.fileno())
            two.seek(0)
            assert two.read() == b"after %d" % number
        [image] = fs.info()["images"]
        assert (image["path"], image["opens"], image["writable"]) == ("a", 2, True)
        assert image["counters"]["requests_write"] == 3
        one.close()
        wait_until(lambda: fs.info()["images"][0]["opens"] == 1)
    wait_until(lambda: not fs.info()["images"])
    assert (image_dir / "a").read_bytes() == b"after 2"
    kill_repeatedly(fs, 1, lambda: True)
    [closed] = fs.info()["closed"]
    assert closed["counters"]["requests_write"] == 3
    assert (fs.path / "b").read_bytes() == b"before"


def test_renamed_and_linked_files_are_found_again(mounted: Mounting, image_dir: Path) -> None:
    """By the names that they have now, in directories that have moved."""
    (image_dir / "d").mkdir()
    (image_dir / "d/a").write_bytes(b"mine")
    fs = mounted(image_dir)
    with (fs.path / "d/a").open("rb", buffering=0) as file:
        os.link(fs.path / "d/a", fs.path / "other")
        (fs.path / "d").rename(fs.path / "e")
        (fs.path / "e/a").rename(fs.path / "e/b")
        kill_repeatedly(fs, 1, lambda: True)
        assert file.read() == b"mine"
        (fs.path / "e/b").unlink()
        kill_repeatedly(fs, 1, lambda: True)
        file.seek(0)
        assert file.read() == b"mine"
        assert os.fstat(file.fileno()).st_nlink == 1
    assert {path.name for path in fs.path.iterdir()} == {"e", "other"}


def test_a_removed_file_lives_on_while_it_is_open(mounted: Mounting, image_dir: Path) -> None:
    """Through two servers; its room is given back at the last close."""
    (image_dir / "a").write_bytes(b"mine")
    fs = mounted(image_dir)
    held = len(list(Path(f"/proc/{fs.pid}/fd").iterdir()))
    with (fs.path / "a").open("r+b", buffering=0) as file, (fs.path / "b").open("x+b", buffering=0) as new:
        (fs.path / "a").unlink()
        (fs.path / "c").write_bytes(b"theirs")
        new.write(b"new")
        (fs.path / "c").rename(fs.path / "b")
        for _ in range(2):
            kill_repeatedly(fs, 1, lambda: True)
            new.seek(0)
            file.seek(0)
            assert (file.read(), new.read()) == (b"mine", b"new")
        file.seek(0)
        file.write(b"yours")
        file.seek(0)
        assert file.read() == b"yours"
        assert (fs.path / "b").read_bytes() == b"theirs"
        assert run_aiofs("restart", fs.path, "--aio", "threads").returncode == 0
        file.seek(0)
        assert file.read() == b"yours"
    wait_until(lambda: len(list(Path(f"/proc/{fs.pid}/fd").iterdir())) == held)
    assert [path.name for path in image_dir.iterdir()] == ["b"]


def test_a_failed_fsync_stays_failed(mounted: Mounting, disk: Path, tmp_path: Path) -> None:
    """Also with the next server, until all have closed the image: then it begins anew."""
    fs = mounted(disk.parent, "--aio", "threads")
    fs.expected_status = 1
    fs.allow("not on disk: .*disk.img: Input/output error")
    fd = os.open(fs.path / "disk.img", os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * 4096, 0)
        inject = "fdatasync:error=EIO"
        with traced(fs.server_pid, "fdatasync", tmp_path / "strace.log", "-e", f"inject={inject}"):
            failed(fd)
        failed(fd)
        kill_repeatedly(fs, 2, lambda: True)
        failed(fd)
        [image] = fs.info()["images"]
        assert image["sticky_error"] == errno.EIO
    finally:
        os.close(fd)
    wait_until(lambda: not fs.info()["images"])
    fd = os.open(fs.path / "disk.img", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def failed(fd: int) -> None:
    """fsync says EIO."""
    with pytest.raises(OSError) as caught:
        os.fsync(fd)
    assert caught.value.errno == errno.EIO


def test_an_image_that_has_gone_is_named(mounted: Mounting, image_dir: Path) -> None:
    """Removed underneath while the server is down: its users get errors, the others go on."""
    for name in ("a", "b"):
        (image_dir / name).write_bytes(b"here")
    fs = mounted(image_dir)
    fs.allow("a was open and cannot be opened again")
    with (fs.path / "a").open("r+b", buffering=0) as lost, (fs.path / "b").open("rb", buffering=0) as kept:
        (image_dir / "a").unlink()
        kill_repeatedly(fs, 1, lambda: True)
        with pytest.raises(OSError):
            lost.write(b"into nothing")
        assert kept.read() == b"here"
    assert any("/a was open and cannot be opened again" in line for line in fs.log)


def test_the_keeper_is_small(mounted: Mounting, image_dir: Path) -> None:
    """Under 20 MiB resident, after a restart too."""
    fs = mounted(image_dir)
    kill_repeatedly(fs, 2, lambda: True)
    status = Path(f"/proc/{fs.pid}/status").read_text()
    [resident] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
    assert resident < 20 << 10, f"{resident} KiB"


def test_without_its_keeper_a_mount_goes_on_to_its_end(mounted: Mounting, image_dir: Path) -> None:
    """The keeper is killed: a warning; the mount works, says that it has none, and ends well."""
    (image_dir / "a").write_bytes(b"here")
    fs = mounted(image_dir)
    server = fs.server_pid
    pidfd = os.pidfd_open(server)
    fs.expected_status = -signal.SIGKILL
    fs.allow("the keeper of .* has died: the mount goes on")
    os.kill(fs.pid, signal.SIGKILL)
    wait_until(lambda: fs.info()["keeper"] is None)
    told = fs.info()
    assert (told["pid"], told["server_pid"]) == (server, server)
    assert (fs.path / "a").read_bytes() == b"here"
    refusal = run_aiofs("restart", fs.path)
    assert refusal.returncode == 2
    assert "has no keeper" in refusal.stderr
    assert run_aiofs("umount", fs.path).returncode == 0
    assert select.select([pidfd], [], [], 0)[0], "umount returned before the server had gone"
    os.close(pidfd)


def test_a_mount_killed_whole_can_be_made_again(image_dir: Path, mountpoint: Path) -> None:
    """Keeper and server at once: what is left says how to be cleared; no lock and no memory stays."""
    (image_dir / "a").write_bytes(b"here")
    assert run_aiofs("mount", image_dir, mountpoint).returncode == 0
    held = os.open(mountpoint / "a", os.O_RDWR)
    kill_all(mountpoint)
    again = run_aiofs("mount", image_dir, mountpoint)
    assert again.returncode == 2
    assert f"fusermount3 -u -z {mountpoint}" in again.stderr
    assert unmount(mountpoint, lazy=True).returncode == 0
    os.close(held)
    assert run_aiofs("mount", image_dir, mountpoint).returncode == 0
    os.close(os.open(mountpoint / "a", os.O_RDWR))
    assert run_aiofs("umount", mountpoint).returncode == 0


NO_SUCCESSOR = """
import sys
from aiofs import keeper
from aiofs.cli import main
start = keeper.Program.start
servers = []
def first_only(program):
    servers.append(program)
    if len(servers) > 1:
        program.python = "/bin/false"
    return start(program)
keeper.Program.start = first_only
keeper._PAUSE_S = 0.01
sys.exit(main(sys.argv[1:]))
"""


def mounted_by(keeper: str, source: Path, mountpoint: Path) -> subprocess.Popen[str]:
    """A mount whose keeper is a script, in the foreground."""
    words = [sys.executable, "-c", keeper, "mount", str(source), str(mountpoint), "--foreground"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mounted(mountpoint))
    return process


def test_a_mount_whose_servers_cannot_start_is_given_up(image_dir: Path, mountpoint: Path) -> None:
    """After five in a row: who waits gets an error, the mount is gone, and the status is not 0."""
    (image_dir / "a").write_bytes(b"here")
    keeper = mounted_by(NO_SUCCESSOR, image_dir, mountpoint)
    held = os.open(mountpoint / "a", os.O_RDONLY | os.O_DIRECT)
    server = json.loads((mountpoint / ".aiofs/info.json").read_bytes())["server_pid"]
    os.kill(server, signal.SIGKILL)
    with pytest.raises(OSError) as caught:
        os.preadv(held, [memoryview(bytearray(4096))], 0)
    os.close(held)
    assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
    _, said = keeper.communicate(timeout=30)
    assert keeper.returncode == 1
    assert "5 servers in a row ended without having answered anything" in said
    assert not is_mounted(mountpoint)


FIRST_UNHEARD = """
import sys
from aiofs import keeper
from aiofs.cli import main
serves = keeper.Keeper._serves
heard = []
def but_of_the_first(self, server):
    heard.append(server)
    if len(heard) > 1:
        serves(self, server)
keeper.Keeper._serves = but_of_the_first
sys.exit(main(sys.argv[1:]))
"""


def test_a_first_server_that_dies_as_soon_as_it_serves_is_followed(image_dir: Path, mountpoint: Path) -> None:
    """The mount has answered, but the keeper has not heard so."""
    (image_dir / "a").write_bytes(b"here")
    keeper = mounted_by(FIRST_UNHEARD, image_dir, mountpoint)
    server = json.loads((mountpoint / ".aiofs/info.json").read_bytes())["server_pid"]
    os.kill(server, signal.SIGKILL)
    assert (mountpoint / "a").read_bytes() == b"here"
    keeper.terminate()
    _, said = keeper.communicate(timeout=30)
    assert keeper.returncode == 0, said
    assert "starting another one" in said
    assert not is_mounted(mountpoint)


def test_a_mount_that_shall_not_survive_does_not(mounted: Mounting, image_dir: Path) -> None:
    """--no-survive: one process, which is the mount."""
    fs = mounted(image_dir, "--no-survive")
    fs.expected_status = -signal.SIGKILL
    told = fs.info()
    assert (told["pid"], told["server_pid"], told["keeper"]) == (fs.pid, fs.pid, None)
    os.kill(fs.pid, signal.SIGKILL)
    fs.wait()
    with pytest.raises(OSError) as caught:
        (fs.path / "a").stat()
    assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
    assert unmount(fs.path, lazy=True).returncode == 0


def test_a_signal_while_the_server_is_down_ends_the_mount(mounted: Mounting, disk: Path) -> None:
    """The keeper remembers it, and has the next server unmount."""
    fs = mounted(disk.parent)
    fs.allow("died")
    taken = taken_over(fs)
    os.kill(fs.server_pid, signal.SIGKILL)
    fs.signal(signal.SIGTERM)
    assert fs.wait() == 0
    assert not is_mounted(fs.path)
    assert taken_over(fs) in (taken, taken + 1)
