"""mount.aiofs: the words of mount(8), and its exit statuses, without mounting anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiofs import mount, mounthelper
from aiofs.config import CacheMode, MountConfig
from aiofs.errors import AiofsError, BadInput


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[MountConfig]:
    """What would have been mounted."""
    asked: list[MountConfig] = []

    def run(config: MountConfig) -> int:
        asked.append(config)
        return 0

    monkeypatch.setattr(mount, "run", run)
    return asked


def test_the_words_of_mount_are_understood(mounts: list[MountConfig]) -> None:
    """As mount(8) calls it: source, directory, then options, and the type."""
    words = ["/srv/images", "/mnt/vdisk", "-n", "-v", "-o", "ro,aio=linux,cache=none", "-t", "fuse.aiofs"]
    assert mounthelper.main(words) == 0
    expected = MountConfig(
        Path("/srv/images"), Path("/mnt/vdisk"), aio="linux", cache=CacheMode.NONE, read_only=True
    )
    assert mounts == [expected]


@pytest.mark.parametrize(
    "generic",
    [
        "defaults,nofail,_netdev,noauto,auto",
        "user,users,owner,group,nouser,user=joe",
        "suid,nosuid,dev,nodev,async,sync,dirsync",
        "atime,noatime,relatime,norelatime,strictatime,nostrictatime,diratime,nodiratime,lazytime",
        "x-systemd.automount,x-systemd.requires=/srv,X-mount.mkdir,comment=of mine",
        "",
        ",,",
    ],
)
def test_options_of_every_file_system_are_dropped(mounts: list[MountConfig], generic: str) -> None:
    """They are for mount(8) and systemd, or change nothing here."""
    assert mounthelper.main(["/a", "/b", "-o", generic]) == 0
    assert mounts == [MountConfig(Path("/a"), Path("/b"))]


def test_noexec_is_kept(mounts: list[MountConfig]) -> None:
    """It protects from something, so it is not dropped; `user,exec` is as fstab has it."""
    assert mounthelper.main(["/a", "/b", "-o", "noexec,nosuid,nodev,user"]) == 0
    assert mounthelper.main(["/a", "/b", "-o", "noexec,user,exec"]) == 0
    assert [config.noexec for config in mounts] == [True, False]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "usage: mount.aiofs SOURCE DIR"),
        (["/a"], "usage: mount.aiofs SOURCE DIR"),
        (["/a", ""], "usage: mount.aiofs SOURCE DIR"),
        (["/a", "/b", "/c"], "usage: mount.aiofs SOURCE DIR"),
        (["/a", "/b", "-x"], "option -x not recognized"),
        (["/a", "/b", "-o"], "option -o requires argument"),
        (["/a", "/b", "-o", "bogus"], "unknown option -o bogus; valid: aio="),
        (["/a", "/b", "-o", "autofoo"], "unknown option -o autofoo"),
        (["/a", "/b", "-o", "ro,aio=kio"], "unknown AIO driver 'kio'"),
        (["/a", "/b", "-o", "remount,ro"], "cannot be remounted"),
        (["/a", "/b", "-N", "/proc/1/ns/mnt"], "nsenter --mount=/proc/1/ns/mnt"),
    ],
)
def test_wrong_words_are_status_1(
    mounts: list[MountConfig], capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    """One line, and nothing is mounted."""
    assert mounthelper.main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("mount.aiofs: ")
    assert says in told
    assert told.count("\n") == 1
    assert mounts == []


def test_sloppy_takes_words_that_nobody_knows(mounts: list[MountConfig]) -> None:
    """-s; a known word with a wrong value stays wrong."""
    assert mounthelper.main(["/a", "/b", "-s", "-o", "bogus,ro"]) == 0
    assert mounthelper.main(["/a", "/b", "-s", "-o", "aio=kio"]) == 1
    assert [config.read_only for config in mounts] == [True]


def test_a_fake_mount_is_only_checked(mounts: list[MountConfig]) -> None:
    """-f: right words are 0, wrong ones 1."""
    assert mounthelper.main(["/a", "/b", "-f"]) == 0
    assert mounthelper.main(["/a", "/b", "-f", "-o", "bogus"]) == 1
    assert mounts == []


@pytest.mark.parametrize(
    ("error", "status"), [(BadInput("no"), 32), (AiofsError("no"), 32), (OSError(12, "no"), 2)]
)
def test_what_cannot_be_mounted_is_status_32(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """And a fault of the system 2, as mount(8) has them."""

    def run(_: MountConfig) -> int:
        raise error

    monkeypatch.setattr(mount, "run", run)
    assert mounthelper.main(["/a", "/b"]) == status


def test_a_background_server_that_refuses_is_status_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own status, 1 or 2, would mean something else to mount(8)."""
    monkeypatch.setattr(mount, "run", lambda _: 2)
    assert mounthelper.main(["/a", "/b"]) == 32
