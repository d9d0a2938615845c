"""Real mounts, from the first check to the last sync: how they start, and every way they end."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import MountedFs, children, is_mounted, kill_all, run_aiofs, unmount

Mounting = Callable[..., MountedFs]
CONTENT = bytes(range(256)) * 64


@pytest.fixture
def images(image_dir: Path) -> Path:
    """A source with one image."""
    (image_dir / "a.img").write_bytes(CONTENT)
    return image_dir


def pid_of(mountpoint: Path) -> int:
    """The keeper's, as the mount tells it."""
    return int(json.loads((mountpoint / ".aiofs/info.json").read_bytes())["pid"])


# -- starting --


def test_a_background_mount_is_ready_when_the_command_returns(images: Path, mountpoint: Path) -> None:
    """The image can be read at once, and the server runs in a session of its own, in /."""
    done = run_aiofs("mount", images, mountpoint)
    assert (done.returncode, done.stdout) == (0, "")
    assert "AIO driver" in done.stderr
    assert (mountpoint / "a.img").read_bytes() == CONTENT
    pid = pid_of(mountpoint)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert run_aiofs("umount", mountpoint).returncode == 0


def test_the_background_server_logs_to_its_file(images: Path, mountpoint: Path, tmp_path: Path) -> None:
    """Also when the file was named relative to the directory that the command was run in."""
    done = subprocess.run(
        [sys.executable, "-m", "aiofs", "mount", images.name, mountpoint.name, "--log-file", "log"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert run_aiofs("umount", mountpoint).returncode == 0
    assert "INFO: directory " in (tmp_path / "log").read_text()
    assert "everything is on disk" in (tmp_path / "log").read_text()


def test_a_mount_shows_in_the_table_of_mounts(mounted: Mounting, tmp_path: Path) -> None:
    """As fuse.aiofs, with the source in its full length, nosuid and nodev."""
    source = tmp_path / "a,b\\c d"
    source.mkdir()
    fs = mounted(source)
    [line] = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(fs.path) in line]
    left, right = line.split(" - ")
    assert {"nosuid", "nodev"} <= set(left.split(" ")[5].split(","))
    fstype, shown, options = right.split(" ")
    assert fstype == "fuse.aiofs"
    assert shown == str(source).replace("\\", "\\134").replace(" ", "\\040")
    assert "default_permissions" in options
    assert "max_read" not in options


def test_a_read_only_mount_refuses_writing(mounted: Mounting, images: Path) -> None:
    """With EROFS, by the kernel's own mount flag."""
    fs = mounted(images, "--read-only")
    with pytest.raises(OSError, match="Read-only file system"):
        (fs.path / "a.img").open("r+b")


def test_a_source_may_be_one_image(mounted: Mounting, images: Path) -> None:
    """It appears under its own name."""
    fs = mounted(images / "a.img")
    assert (fs.path / "a.img").read_bytes() == CONTENT
    assert fs.info()["source_kind"] == "image file"


@pytest.mark.parametrize("driver", ["io_uring", "linux", "threads", "posix", "sync"])
def test_the_driver_asked_for_serves(mounted: Mounting, images: Path, driver: str) -> None:
    """--aio, for each of the five, or a refusal that names it."""
    verdicts = run_aiofs("drivers").stdout.splitlines()
    if not any(line.split()[:2] == [driver, "yes"] for line in verdicts):
        pytest.skip(f"{driver} does not work on this machine")
    fs = mounted(images, "--aio", driver)
    assert fs.info()["driver"] == driver
    assert (fs.path / "a.img").read_bytes() == CONTENT


# -- refusing --


def test_a_mountpoint_is_not_mounted_twice(mounted: Mounting, images: Path) -> None:
    """The message says by what it is taken, and how to free it."""
    fs = mounted(images)
    done = run_aiofs("mount", images, fs.path)
    assert done.returncode == 2
    assert f"{fs.path} is already an aiofs mount, of {images}; unmount it: aiofs umount" in done.stderr


def test_a_stale_mountpoint_says_how_to_clear_it(images: Path, mountpoint: Path) -> None:
    """After SIGKILL; the command it names works, and the mountpoint can be used again."""
    assert run_aiofs("mount", images, mountpoint).returncode == 0
    kill_all(mountpoint)
    commands: list[list[str | Path]] = [["mount", images, mountpoint], ["info", mountpoint]]
    for words in commands:
        done = run_aiofs(*words)
        assert f"fusermount3 -u -z {mountpoint}" in done.stderr, done
        assert done.returncode != 0
    assert unmount(mountpoint, lazy=True).returncode == 0
    assert run_aiofs("mount", images, mountpoint).returncode == 0
    assert run_aiofs("umount", mountpoint).returncode == 0


def test_umount_clears_a_stale_mountpoint_and_does_not_call_it_well(images: Path, mountpoint: Path) -> None:
    """The server died before it had synced: status 1, but the mountpoint is free."""
    assert run_aiofs("mount", images, mountpoint).returncode == 0
    kill_all(mountpoint)
    done = run_aiofs("umount", mountpoint)
    assert done.returncode == 1
    assert "not known" in done.stderr
    assert not is_mounted(mountpoint)


def test_o_direct_where_there_is_none_is_refused_before_mounting(mountpoint: Path, tmp_path: Path) -> None:
    """--cache none on tmpfs; without it, writeback is used and said."""
    shm = Path("/dev/shm") / f"aiofs-{os.getpid()}"
    shm.mkdir()
    try:
        done = run_aiofs("mount", shm, mountpoint, "--cache", "none")
        assert done.returncode == 2
        assert "use --cache writeback" in done.stderr
        assert not is_mounted(mountpoint)
        assert run_aiofs("mount", shm, mountpoint, "--log-file", tmp_path / "log").returncode == 0
        assert run_aiofs("umount", mountpoint).returncode == 0
        assert "using --cache writeback" in (tmp_path / "log").read_text()
    finally:
        shm.rmdir()


def test_a_locked_image_is_refused_by_name(images: Path, mountpoint: Path) -> None:
    """As the only source: at mount, with the process that holds it."""
    with (images / "a.img").open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        done = run_aiofs("mount", images / "a.img", mountpoint)
    assert done.returncode == 2
    assert f"{images / 'a.img'} is locked by" in done.stderr
    assert str(os.getpid()) in done.stderr


# -- stopping --


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_mount_well(mounted: Mounting, images: Path, number: signal.Signals) -> None:
    """Unmounted, synced, status 0."""
    fs = mounted(images)
    (fs.path / "a.img").write_bytes(b"new")
    fs.signal(number)
    assert fs.wait() == 0
    assert not is_mounted(fs.path)
    assert (images / "a.img").read_bytes() == b"new"


@pytest.mark.parametrize("program", [["umount"], ["umount", "-l"], ["fusermount3", "-u"]])
def test_umount_from_outside_ends_the_server_well(
    mounted: Mounting, images: Path, program: list[str]
) -> None:
    """umount(8) and fusermount3 tell it nothing but the unmount itself."""
    if program[0] == "umount" and os.geteuid() != 0:
        pytest.skip("umount(8) is for root")
    fs = mounted(images)
    subprocess.run([*program, fs.path], check=True)
    assert fs.wait() == 0
    assert fs.log[-1].endswith("unmounted, everything is on disk")


def test_an_unmount_may_overtake_the_last_releases(mounted: Mounting, image_dir: Path) -> None:
    """Twenty images closed, the mount gone in the same moment: all is synced, nothing hangs or complains."""
    for number in range(20):
        (image_dir / f"{number}.img").touch()
    for _ in range(5):
        fs = mounted(image_dir)
        opened = [os.open(fs.path / f"{number}.img", os.O_RDWR) for number in range(20)]
        for fd in opened:
            os.write(fd, CONTENT)
        for fd in opened:
            os.close(fd)
        assert fs.umount() == 0
    assert all(path.read_bytes() == CONTENT for path in image_dir.iterdir())


def test_aiofs_umount_returns_when_the_server_has_gone(mounted: Mounting, images: Path) -> None:
    """Not a moment earlier: the process can be reaped without waiting."""
    fs = mounted(images)
    done = run_aiofs("umount", fs.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.waitid(os.P_PID, fs.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    assert fs.wait() == 0


def test_a_mount_can_be_made_again_at_once(images: Path, mountpoint: Path) -> None:
    """Everything is unlocked and free when umount has returned."""
    for _ in range(3):
        assert run_aiofs("mount", images / "a.img", mountpoint).returncode == 0
        with (mountpoint / "a.img").open("r+b") as image:
            image.write(b"x")
        assert run_aiofs("umount", mountpoint).returncode == 0


def test_a_busy_mount_says_who_holds_it(mounted: Mounting, images: Path) -> None:
    """umount ends with 1 and leaves everything as it was."""
    fs = mounted(images)
    with (fs.path / "a.img").open("rb") as held:
        done = run_aiofs("umount", fs.path)
        assert done.returncode == 1
        assert f"{fs.path} is busy, held by" in done.stderr
        assert f"pid {os.getpid()} (" in done.stderr
        assert "open file a.img" in done.stderr
        assert held.read(3) == CONTENT[:3]
    assert run_aiofs("umount", fs.path).returncode == 0


def test_a_signal_ends_a_busy_mount_too(mounted: Mounting, images: Path) -> None:
    """The log names who held it; they get errors; what was written is in the image."""
    fs = mounted(images)
    fs.allow("is busy, held by pid")
    held = os.open(fs.path / "a.img", os.O_RDWR)
    os.write(held, b"written")
    fs.signal(signal.SIGTERM)
    assert fs.wait() == 0
    assert not is_mounted(fs.path)
    with pytest.raises(OSError):
        os.fsync(held)
    with pytest.raises(OSError):  # close(2) frees the descriptor and reports that its file system has gone
        os.close(held)
    assert any(f"pid {os.getpid()}" in line for line in fs.log)
    assert (images / "a.img").read_bytes()[:7] == b"written"


def test_a_lazy_umount_detaches_a_busy_mount(mounted: Mounting, images: Path) -> None:
    """The mountpoint is free at once; the server ends when the last user has gone."""
    fs = mounted(images)
    with (fs.path / "a.img").open("rb") as held:
        assert run_aiofs("umount", "--lazy", fs.path).returncode == 0
        assert not is_mounted(fs.path)
        assert held.read() == CONTENT
        assert fs.process.poll() is None
    assert fs.wait() == 0


SYNC_FAILS = """
import sys
from aiofs.cli import main
from aiofs.images import ImageTable
async def close_all(self):
    return [OSError(5, "Input/output error", "bad.img")]
ImageTable.close_all = close_all
sys.exit(main(sys.argv[1:]))
"""


def test_umount_says_what_is_not_on_disk(images: Path, mountpoint: Path) -> None:
    """A failed sync reaches whoever unmounts, though the server is not its child: status 1 and the image."""
    mount = ["mount", "--no-survive", str(images), str(mountpoint)]
    started = subprocess.run([sys.executable, "-c", SYNC_FAILS, *mount], check=False)
    assert started.returncode == 0
    done = run_aiofs("umount", mountpoint)
    assert done.returncode == 1
    assert "not everything is on disk: bad.img: Input/output error" in done.stderr
    assert not is_mounted(mountpoint)


HANDLER_FAILS = """
import sys
import pyfuse3
from aiofs.cli import main
async def failing(*args, **kwargs):
    raise RuntimeError("a fault of pyfuse3")
pyfuse3.main = failing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("flags", [[], ["--foreground"]])
def test_a_server_that_fails_leaves_no_mount(images: Path, mountpoint: Path, flags: list[str]) -> None:
    """The control plane breaks down during the start: unmounted, status 1, and the user is told."""
    words = ["mount", "--no-survive", str(images), str(mountpoint), *flags]
    done = subprocess.run(
        [sys.executable, "-c", HANDLER_FAILS, *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "a fault of pyfuse3" in done.stderr
    assert not is_mounted(mountpoint)


def test_a_mount_on_top_is_not_unmounted_in_its_place(mounted: Mounting, images: Path) -> None:
    """A signal ends the server; what somebody mounted over it stays, and the log says what to do."""
    if os.geteuid() != 0:
        pytest.skip("mount(8) is for root")
    fs = mounted(images)
    fs.allow("tmpfs is mounted over")
    subprocess.run(["mount", "-t", "tmpfs", "none", fs.path], check=True)
    try:
        fs.signal(signal.SIGTERM)
        assert fs.wait() == 0
        assert os.statvfs(fs.path).f_files > 0  # the tmpfs answers
    finally:
        subprocess.run(["umount", fs.path], check=True)
    assert unmount(fs.path, lazy=True).returncode == 0


def test_many_signals_are_one(mounted: Mounting, images: Path) -> None:
    """The second one does not kill the server halfway."""
    fs = mounted(images)
    for _ in range(20):
        fs.signal(signal.SIGTERM)
        fs.signal(signal.SIGINT)
    assert fs.wait() == 0


def test_a_signal_during_the_start_leaves_no_mount(images: Path, mountpoint: Path) -> None:
    """Sent as soon as the mount is in the table, which is before the server is ready."""
    server = subprocess.Popen(
        [sys.executable, "-m", "aiofs", "mount", images, mountpoint, "--foreground"],
        stderr=subprocess.DEVNULL,
    )
    changes = select.poll()
    with Path("/proc/self/mounts").open() as table:
        changes.register(table, select.POLLERR | select.POLLPRI)  # proc(5): an event per change
        while not is_mounted(mountpoint):
            changes.poll(10_000)
    server.terminate()
    assert server.wait(30) in (0, 1)
    assert not is_mounted(mountpoint)


def test_nothing_of_a_server_is_left(mounted: Mounting, images: Path) -> None:
    """No child process but the keeper's server, when it runs idle."""
    fs = mounted(images)
    (fs.path / "a.img").read_bytes()
    assert children(fs.pid) == [fs.server_pid]
    assert children(fs.server_pid) == []


@pytest.mark.alone
def test_info_lists_the_mounts(mounted: Mounting, images: Path) -> None:
    """Each with its source and the server's pid; as JSON too."""
    fs = mounted(images)
    listing = run_aiofs("info")
    assert listing.returncode == 0
    assert str(fs.pid) in listing.stdout
    told = json.loads(run_aiofs("info", "--json", fs.path).stdout)
    assert (told["pid"], told["source"], told["mountpoint"]) == (fs.pid, str(images), str(fs.path))
    assert told["fuse"]["max_write"] == 1 << 20


def test_info_shows_an_open_image_and_its_counters(mounted: Mounting, images: Path) -> None:
    """After a write and its fsync, by name."""
    fs = mounted(images)
    with (fs.path / "a.img").open("r+b", buffering=0) as image:
        image.write(bytes(4096))
        os.fsync(image.fileno())
        [entry] = fs.info()["images"]
        assert entry["counters"]["requests_write"] == 1
        assert entry["counters"]["bytes_written"] == 4096
        assert entry["counters"]["requests_fsync"] == 1
        assert " a.img " in run_aiofs("info", fs.path).stdout
