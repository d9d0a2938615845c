"""mount(8), fstab and umount(8) with aiofs: in a namespace whose /sbin has the link that the README shows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from namespace import Namespace

PROGRAM = Path(sys.executable).parent / "mount.aiofs"


@pytest.fixture
def installed(namespace: Namespace) -> Namespace:
    """A namespace in which mount(8) finds mount.aiofs."""
    if shutil.which("findmnt") is None or not PROGRAM.exists():
        pytest.skip("needs findmnt, and aiofs installed with its programs (pip install -e .)")
    namespace.install(PROGRAM, "mount.aiofs")
    return namespace


@pytest.fixture
def places(fuse: None, image_dir: Path, tmp_path: Path) -> tuple[Path, Path]:  # noqa: ARG001 -- may skip
    """A source with an image, and a mountpoint."""
    (image_dir / "a.img").write_bytes(b"content")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    return image_dir, mountpoint


def test_mount_by_type(installed: Namespace, places: tuple[Path, Path]) -> None:
    """`mount -t aiofs -o ...` is ready when it returns, findmnt shows it, umount ends it."""
    source, mountpoint = places
    installed.do("mount", "-t", "aiofs", source, mountpoint, "-o", "aio=auto,ro,nofail,x-of.mine")
    assert installed.do("cat", mountpoint / "a.img") == "content"
    shown = installed.do("findmnt", "-n", "-t", "fuse.aiofs", "-o", "SOURCE,TARGET,OPTIONS", mountpoint)
    assert shown.split()[:2] == [str(source), str(mountpoint)]
    assert shown.split()[2].startswith("ro,nosuid,nodev")
    installed.do("umount", mountpoint)
    assert installed.run("findmnt", mountpoint).returncode == 1


@pytest.mark.parametrize(
    "options", ["defaults", "noauto,nofail,_netdev,x-systemd.automount,rw", "user,cache=writeback,noatime"]
)
def test_a_line_of_fstab(
    installed: Namespace, places: tuple[Path, Path], tmp_path: Path, options: str
) -> None:
    """Mounted by its mountpoint alone; `mount -a` knows that it is mounted already."""
    source, mountpoint = places
    fstab = tmp_path / "fstab"
    fstab.write_text(f"{source} {mountpoint} aiofs {options} 0 0\n")
    installed.do("mount", "--fstab", fstab, mountpoint)
    assert installed.do("cat", mountpoint / "a.img") == "content"
    installed.do("mount", "--all", "--fstab", fstab)
    assert len(installed.do("findmnt", "-n", mountpoint).splitlines()) == 1
    shown = installed.do("findmnt", "-n", "-o", "OPTIONS", mountpoint)
    assert ("noexec" in shown) == ("user" in options)
    installed.do("umount", mountpoint)


def test_what_cannot_be_mounted_is_said(installed: Namespace, places: tuple[Path, Path]) -> None:
    """With the statuses of mount(8), and in the words of aiofs."""
    source, mountpoint = places
    done = installed.run("mount", "-t", "aiofs", source / "gone", mountpoint)
    assert done.returncode == 32
    assert f"source {source / 'gone'} does not exist" in done.stderr
    done = installed.run("mount", "-t", "aiofs", source, mountpoint, "-o", "aio=kio")
    assert done.returncode == 1
    assert "unknown AIO driver 'kio'; valid: auto io_uring" in done.stderr
    assert installed.run("findmnt", mountpoint).returncode == 1


def test_the_type_that_findmnt_shows(namespace: Namespace, places: tuple[Path, Path]) -> None:
    """`fuse.aiofs` works too, with a link of that name."""
    source, mountpoint = places
    namespace.install(PROGRAM, "mount.fuse.aiofs")
    namespace.do("mount", "-t", "fuse.aiofs", source, mountpoint, "-o", "ro")
    assert namespace.do("cat", mountpoint / "a.img") == "content"
    namespace.do("umount", mountpoint)
