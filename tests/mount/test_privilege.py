"""What a server may still do once it serves, and that it is enough for whoever uses the mount."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loops import Loops
from mounting import AIOFS, MountedFs, is_mounted, run_aiofs, unmount
from namespace import USER, Namespace
from tasks import of_each_thread
from waiting import wait_until

from aiofs import keeper, privilege, survival

Mounting = Callable[..., MountedFs]
WRITING = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "IPC_LOCK"}
READING = {"DAC_READ_SEARCH", "IPC_LOCK"}
ALONE = {"SYS_ADMIN", "SYS_PTRACE"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no capabilities to keep")
needs_keeper = pytest.mark.skipif(
    bool(survival.why_not(os.uname().release)), reason=survival.why_not(os.uname().release) or "it can"
)


def statuses(pid: int) -> list[dict[str, str]]:
    """What /proc tells of each thread of a process."""
    texts = of_each_thread(pid, "status").values()
    return [{k: v.strip() for k, v in (line.split(":", 1) for line in text.splitlines())} for text in texts]


def named(mask: str) -> set[str]:
    """The names of a set of capabilities."""
    number = int(mask, 16)
    return {name for bit, name in enumerate(privilege._NAMES) if number >> bit & 1}


def of_every_thread(pid: int, *fields: str) -> set[str]:
    """The names of the capabilities that any thread has in one of these sets."""
    return {name for status in statuses(pid) for field in fields for name in named(status[field])}


def mine() -> set[str]:
    """What this process has: a container may lack some."""
    return of_every_thread(os.getpid(), "CapPrm")


def rings_for_all() -> None:
    """Skip where the kernel wants SYS_ADMIN of who makes a ring."""
    if privilege._rings_are_for_administrators():
        pytest.skip("kernel.io_uring_disabled=1: SYS_ADMIN is kept")


@needs_root
@pytest.mark.parametrize("aio", ["threads", "auto"])
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param((), WRITING, marks=needs_keeper),
        pytest.param(("--read-only",), READING, marks=needs_keeper),
        (("--no-survive",), WRITING | ALONE),
        (("--no-survive", "--read-only"), READING | ALONE),
    ],
    ids=lambda words: " ".join(sorted(words)),
)
def test_every_thread_has_what_its_options_need(
    mounted: Mounting, image_dir: Path, args: tuple[str, ...], expected: set[str], aio: str
) -> None:
    """Those capabilities, in every set, and no way to others; info says so."""
    rings_for_all()
    (image_dir / "a").write_bytes(bytes(1 << 16))
    fs = mounted(image_dir, "--aio", aio, *args)
    with (fs.path / "a").open("rb") as image:
        image.read()
        server = fs.info()["server_pid"]
        assert len(statuses(server)) > 1
        assert of_every_thread(server, "CapPrm") == expected & mine()
        assert of_every_thread(server, "CapEff") == expected & mine()
        assert of_every_thread(server, "CapBnd") <= expected
        assert of_every_thread(server, "CapInh", "CapAmb") == set()
        assert {status["NoNewPrivs"] for status in statuses(server)} == {"1"}
    told = fs.info()["privileges"]
    assert (told["no_new_privs"], set(told["capabilities"]), told["note"]) == (True, expected & mine(), "")
    assert "; it can gain no others" in run_aiofs("info", fs.path).stdout


@needs_root
@needs_keeper
def test_the_next_server_has_no_more(mounted: Mounting, image_dir: Path) -> None:
    """It is started by the keeper, which keeps everything, and gives up the same."""
    rings_for_all()
    fs = mounted(image_dir)
    fs.allow("died")
    assert of_every_thread(fs.pid, "CapPrm") == mine()
    os.kill(fs.server_pid, signal.SIGKILL)
    server = fs.info()["server_pid"]
    assert of_every_thread(server, "CapPrm", "CapBnd") == WRITING & mine()


@needs_root
@needs_keeper
def test_a_block_device_takes_less(mounted: Mounting, below: Loops, tmp_path: Path) -> None:
    """Nothing is made on it, so no group is inherited."""
    rings_for_all()
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(1 << 20)
    fs = mounted(below.attach(backing))
    assert of_every_thread(fs.server_pid, "CapPrm") == (WRITING - {"FSETID"}) & mine()
    with (fs.path / next(iter(os.listdir(fs.path)))).open("r+b") as image:  # noqa: PTH208 -- a name
        image.write(b"written")
        os.fsync(image.fileno())
    assert backing.read_bytes()[:7] == b"written"


# -- it is enough --


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A source, and a mountpoint, that everybody can reach."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    home = Path(tempfile.mkdtemp(prefix="aiofs-shared-"))
    home.chmod(0o755)
    for name in ("images", "mnt"):
        (home / name).mkdir()
        (home / name).chmod(0o755)
    user = pwd.getpwnam(USER)
    own = home / "images" / "own"
    own.mkdir(mode=0o700)
    os.chown(own, user.pw_uid, user.pw_gid)
    (home / "images" / "sticky").mkdir()
    (home / "images" / "sticky").chmod(0o1777)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def shared(open_home: Path, mounted: Mounting) -> MountedFs:
    """A mount of root's that everybody may use."""
    return mounted(open_home / "images", "--allow-other", path=open_home / "mnt")


def as_user(script: str, where: Path) -> None:
    """Run a shell script as an ordinary user, in a directory; it must not fail."""
    user = pwd.getpwnam(USER)
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_users_work_with_their_files(shared: MountedFs) -> None:
    """In a directory of their own: made, written, read, moved, linked and removed; theirs underneath, too."""
    as_user(
        """
        umask 077; echo one > a; test "$(cat a)" = one; chmod 640 a; touch -d 2001-02-03 a; truncate -s 4096 a
        mkdir sub; mv a sub/b; ln sub/b c; rm sub/b; rmdir sub; test "$(stat -c %s c)" = 4096
        """,
        shared.path / "own",
    )
    st = (shared.source / "own/c").stat()
    user = pwd.getpwnam(USER)
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (user.pw_uid, user.pw_gid, 0o640)
    assert st.st_mtime > 1e9


def test_set_id_bits_stay_with_their_group(shared: MountedFs) -> None:
    """A set-group-id directory of a user's stays one, and what is made in it."""
    as_user("mkdir d; chmod 2770 d; mkdir d/inner", shared.path / "own")
    for name in ("own/d", "own/d/inner"):
        assert (shared.source / name).stat().st_mode & stat.S_ISGID, name


def test_files_in_a_sticky_directory_are_their_owners(shared: MountedFs) -> None:
    """Moved and removed by who made them."""
    as_user("echo x > f; mv f g; rm g", shared.path / "sticky")
    assert list((shared.source / "sticky").iterdir()) == []


def test_root_gives_files_away(shared: MountedFs) -> None:
    """chown and chmod of a file of another user, through the mount."""
    as_user("umask 077; echo x > f", shared.path / "own")
    file = shared.path / "own/f"
    os.chown(file, 12345, 12346)
    file.chmod(0o604)
    st = (shared.source / "own/f").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (12345, 12346, 0o604)


def test_a_read_only_mount_reads_what_belongs_to_others(mounted: Mounting, image_dir: Path) -> None:
    """An image of mode 600 of another user, in a directory of theirs."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give files away")
    (image_dir / "own").mkdir(mode=0o700)
    (image_dir / "own/a").write_bytes(b"theirs")
    (image_dir / "own/a").chmod(0o600)
    for path in (image_dir / "own/a", image_dir / "own"):
        os.chown(path, 12345, 12345)
    fs = mounted(image_dir, "--read-only")
    assert (fs.path / "own/a").read_bytes() == b"theirs"


# -- an ordinary user --


@pytest.fixture
def home(namespace: Namespace) -> Iterator[Path]:
    """A directory of the user, who has what it takes to mount."""
    namespace.admit()
    path = Path(tempfile.mkdtemp(prefix="aiofs-user-"))
    for name in ("images", "mnt"):
        (path / name).mkdir()
    for inside in (path, *path.rglob("*")):
        os.chown(inside, pwd.getpwnam(USER).pw_uid, pwd.getpwnam(USER).pw_gid)
    yield path
    namespace.run("umount", "--lazy", path / "mnt")
    shutil.rmtree(path)


@pytest.mark.parametrize("survive", [pytest.param(True, marks=needs_keeper), False])
@pytest.mark.usefixtures("fuse")
def test_an_ordinary_users_server_has_none(namespace: Namespace, home: Path, survive: bool) -> None:
    """With a keeper it cannot gain any; without one it must, to unmount. Told to end, it unmounts."""
    options = [] if survive else ["--no-survive"]
    done = namespace.run(*AIOFS, "mount", home / "images", home / "mnt", *options, user=USER)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"{USER} cannot run the Python of these tests: {done.stderr.strip()}")
    assert done.returncode == 0, done
    told = json.loads(namespace.run("cat", home / "mnt/.aiofs/info.json", user=USER).stdout)
    server, privileges = told["server_pid"], told["privileges"]
    assert of_every_thread(server, "CapPrm", "CapEff", "CapInh", "CapAmb") == set()
    assert {status["NoNewPrivs"] for status in statuses(server)} == {"1" if survive else "0"}
    assert (privileges["capabilities"], privileges["no_new_privs"]) == ([], survive)
    shown = namespace.run(*AIOFS, "info", home / "mnt", user=USER).stdout
    assert ("it can gain no others" if survive else "it needs fusermount3, which is set-user-id") in shown
    os.kill(server, signal.SIGTERM)
    wait_until(lambda: namespace.run("mountpoint", "-q", home / "mnt").returncode != 0)
    wait_until(lambda: not Path(f"/proc/{told['pid']}/task/{told['pid']}/children").exists())


# -- what the keeper does for it --


@needs_root
@needs_keeper
def test_without_its_keeper_a_server_says_how_its_mount_is_cleared(
    mounted: Mounting, image_dir: Path
) -> None:
    """It may not unmount itself; told to end, it ends, and names the command."""
    rings_for_all()
    fs = mounted(image_dir)
    fs.expected_status = -signal.SIGKILL
    server = fs.server_pid
    fs.allow("the keeper of .* has died")
    fs.allow(f"cannot unmount .* has died; clear it: fusermount3 -u -z {fs.path}")
    os.kill(fs.pid, signal.SIGKILL)
    wait_until(lambda: fs.info()["keeper"] is None)
    os.kill(server, signal.SIGTERM)
    fs.wait()
    wait_until(lambda: not Path(f"/proc/{server}/fd").exists() or not os.listdir(f"/proc/{server}/fd"))  # noqa: PTH208
    assert any("clear it: fusermount3 -u -z" in line for line in fs.log), fs.log
    assert unmount(fs.path, lazy=True).returncode == 0
    assert not is_mounted(fs.path)


def connect(told: dict[str, Any]) -> socket.socket:
    """A connection to the keeper of a mount."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(30)
    client.connect("\0" + told["keeper"])
    return client


@needs_keeper
def test_connections_to_the_keeper_have_a_limit(mounted: Mounting, image_dir: Path) -> None:
    """One more is refused with a reason; when they have gone, a restart works."""
    fs = mounted(image_dir)
    waiting = [connect(fs.info()) for _ in range(keeper.CLIENTS)]
    with connect(fs.info()) as refused:
        assert json.loads(refused.recv(4096))["text"] == "too many others want it restarted"
    for client in waiting:
        client.close()
    wait_until(lambda: run_aiofs("restart", fs.path).returncode == 0)


# -- what users of the mount can make it hold --


def test_open_directories_have_a_limit(mounted: Mounting, image_dir: Path) -> None:
    """A quarter of the server's descriptors, then ENFILE; images open, and others when one closes."""
    (image_dir / "a").write_bytes(b"here")
    fs = mounted(image_dir, under=("prlimit", "--nofile=400:400"))
    held: list[int] = []
    try:
        with pytest.raises(OSError) as caught:
            while len(held) <= 400:
                held.append(os.open(fs.path, os.O_RDONLY | os.O_DIRECTORY))
        assert (caught.value.errno, len(held)) == (errno.ENFILE, 100)
        assert (fs.path / "a").read_bytes() == b"here"
        os.close(held.pop())
        wait_until(lambda: _opens(fs.path))
    finally:
        for fd in held:
            os.close(fd)


def _opens(directory: Path) -> bool:
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        return False
    return True


def test_open_info_files_have_a_limit(mounted: Mounting, image_dir: Path) -> None:
    """Each keeps its content: 256 at once, then ENFILE."""
    fs = mounted(image_dir)
    held: list[int] = []
    try:
        with pytest.raises(OSError) as caught:
            while len(held) <= 256:
                held.append(os.open(fs.path / ".aiofs/info.json", os.O_RDONLY))
        assert (caught.value.errno, len(held)) == (errno.ENFILE, 256)
    finally:
        for fd in held:
            os.close(fd)
    wait_until(lambda: run_aiofs("info", fs.path).returncode == 0)
