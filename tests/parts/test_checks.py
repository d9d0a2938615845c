"""checks.py and fusermount.py: a machine or a user without what a mount needs is told what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiofs import checks, fusermount
from aiofs.errors import BadInput


def test_a_kernel_without_fuse_is_told_to_load_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """modprobe, or the option of a container."""
    monkeypatch.setattr(checks, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(BadInput, match=r"modprobe fuse \(in a container: start it with --device"):
        checks.check_fuse_device()


def test_a_device_that_may_not_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that permits it."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadInput, match="no permission to open /dev/fuse; as root: chmod 666 /dev/fuse"):
        checks.check_fuse_device()


@pytest.mark.parametrize("text", ["", "#user_allow_other\n", "mount_max = 10\n", None])
def test_allow_other_needs_a_line_in_fuse_conf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """Missing, commented out, or no such file: the message names the line and the file."""
    conf = tmp_path / "fuse.conf"
    if text is not None:
        conf.write_text(text)
    monkeypatch.setattr(checks, "FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match=f"the line 'user_allow_other' into {conf}"):
        checks.check_allow_other()


def test_allow_other_is_allowed_by_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By itself on a line, as fuse.conf has it."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("# comment\nuser_allow_other \n")
    monkeypatch.setattr(checks, "FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    checks.check_allow_other()


@pytest.mark.parametrize(
    ("default", "longest", "expected"), [("0", "0", 0), ("30", "0", 30), ("0", "60", 60), ("30", "20", 20)]
)
def test_the_kernel_s_request_timeout_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, default: str, longest: str, expected: int
) -> None:
    """Either sysctl can set one; the shorter counts; 0 is none."""
    (tmp_path / "default_request_timeout").write_text(default)
    (tmp_path / "max_request_timeout").write_text(longest)
    monkeypatch.setattr(checks, "FUSE_SYSCTL", tmp_path)
    assert checks.request_timeout_s() == expected


def test_an_older_kernel_has_no_request_timeout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files are not there."""
    monkeypatch.setattr(checks, "FUSE_SYSCTL", tmp_path / "none")
    assert checks.request_timeout_s() == 0


FAKE = """#!/bin/sh
echo "/usr/bin/fusermount3: $MESSAGE" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("message", "way_out"),
    [
        ("mount failed: Operation not permitted", "--cap-add SYS_ADMIN"),
        ("user has no write access to mountpoint /x", "a mountpoint that you may write to"),
        ("too many FUSE filesystems mounted; mount_max=N can be set", "raise mount_max in /etc/fuse.conf"),
    ],
)
def test_a_refusal_of_fusermount3_is_passed_on_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: str, way_out: str
) -> None:
    """Its own sentence without its name, and what helps."""
    program = tmp_path / "fusermount3"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("MESSAGE", message)
    with pytest.raises(BadInput) as refused:
        fusermount.mount(Path("/x"), "nosuid")
    assert str(refused.value).startswith(f"cannot mount on /x: {message}; ")
    assert way_out in str(refused.value)
