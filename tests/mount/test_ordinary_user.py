"""An ordinary user, who is no root in any way: everything but loop devices works, through fusermount3."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import AIOFS
from namespace import USER, Done, Namespace

Command = Callable[..., Done]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user, outside those of the tests, which are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="aiofs-user-"))
    (path / "images").mkdir()
    (path / "mnt").mkdir()
    (path / "images" / "disk.img").write_bytes(bytes(1 << 20))
    user = pwd.getpwnam(USER)
    for name in (path, *path.rglob("*")):
        os.chown(name, user.pw_uid, user.pw_gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def user(fuse: None, namespace: Namespace, home: Path) -> Iterator[Command]:  # noqa: ARG001 -- may skip
    """`user(command, ...)` runs a command as the user; what is mounted at the end is unmounted."""
    namespace.admit()

    def run(*command: str | Path) -> Done:
        return namespace.run(*command, user=USER)

    done = run(sys.executable, "-c", "import aiofs.cli, pyfuse3")
    if done.returncode != 0:
        pytest.skip(f"{USER} cannot run the Python of these tests: {done.stderr.strip()}")
    yield run
    if run("mountpoint", "-q", home / "mnt").returncode == 0:
        run("fusermount3", "-u", "-z", home / "mnt")


def test_a_user_mounts_uses_and_unmounts(user: Command, home: Path) -> None:
    """Mount, info, write, read, umount, each with status 0; the bytes are in the image."""
    mountpoint = home / "mnt"
    done = user(*AIOFS, "mount", home / "images", mountpoint)
    assert done.returncode == 0, done
    copy = ["dd", "if=/dev/urandom", f"of={mountpoint}/disk.img", "bs=64K", "count=4", "conv=notrunc,fsync"]
    assert user(*copy).returncode == 0
    seen = user("sha256sum", mountpoint / "disk.img").stdout.split()[0]
    assert seen == user("sha256sum", home / "images/disk.img").stdout.split()[0]
    told = user(*AIOFS, "info", mountpoint)
    assert told.returncode == 0, told
    assert "batches" in told.stdout
    listed = json.loads(user(*AIOFS, "info", "--json").stdout)
    assert str(mountpoint) in [mount["mountpoint"] for mount in listed]
    done = user(*AIOFS, "umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "images/disk.img").read_bytes()[: 256 << 10] != bytes(256 << 10)


def test_others_need_a_line_in_fuse_conf(user: Command, namespace: Namespace, home: Path) -> None:
    """--allow-other is refused with the file to edit, and works with the line in it."""
    conf = home / "fuse.conf"
    conf.write_text("# nothing is allowed\n")
    conf.chmod(0o644)
    namespace.do("mount", "--bind", conf, "/etc/fuse.conf")
    done = user(*AIOFS, "mount", home / "images", home / "mnt", "--allow-other")
    assert done.returncode == 2
    assert "put the line 'user_allow_other' into /etc/fuse.conf" in done.stderr
    conf.write_text("user_allow_other\n")
    done = user(*AIOFS, "mount", home / "images", home / "mnt", "--allow-other")
    assert done.returncode == 0, done
    assert namespace.do("ls", home / "mnt") == "disk.img\n"
    assert user(*AIOFS, "umount", home / "mnt").returncode == 0


def test_the_mount_of_a_user_is_closed_to_others(user: Command, namespace: Namespace, home: Path) -> None:
    """Root too is told by whom it was mounted and how."""
    assert user(*AIOFS, "mount", home / "images", home / "mnt").returncode == 0
    done = namespace.run(*AIOFS, "info", home / "mnt")
    assert done.returncode == 1
    assert "mounted by another user without --allow-other; ask as that user" in done.stderr
    assert user(*AIOFS, "umount", home / "mnt").returncode == 0


def test_a_mountpoint_of_somebody_else_is_refused(user: Command, home: Path) -> None:
    """fusermount3 lets users mount where they may write."""
    done = user(*AIOFS, "mount", home / "images", "/usr")
    assert done.returncode == 2
    assert "use a mountpoint that you may write to" in done.stderr


def test_loop_devices_are_for_root(user: Command, namespace: Namespace, home: Path) -> None:
    """A user is told so; and root, that it may not use a user's images without --allow-other."""
    image = home / "mnt" / "disk.img"
    assert user(*AIOFS, "mount", home / "images", home / "mnt").returncode == 0
    done = user(*AIOFS, "attach", image)
    assert done.returncode == 2
    assert "'aiofs attach' needs root, because loop devices do: sudo aiofs attach" in done.stderr
    done = namespace.run(*AIOFS, "attach", image)
    assert done.returncode == 2
    assert "mounted by another user without --allow-other, so root may not use its images" in done.stderr
    assert user(*AIOFS, "umount", "--detach", home / "mnt").returncode == 0
