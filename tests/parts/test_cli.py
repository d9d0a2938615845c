"""The command line: bad input gets one clear line on stderr and status 2; help teaches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mounting import run_aiofs

from aiofs.config import DRIVERS


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A source directory and a mountpoint."""
    source, mountpoint = tmp_path / "images", tmp_path / "mnt"
    source.mkdir()
    mountpoint.mkdir()
    return source, mountpoint


def refused(*args: str | Path, env: dict[str, str] | None = None) -> str:
    """The one line with which bad input is refused."""
    done = run_aiofs(*args, env=env)
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("aiofs: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--aio", "kio"], "unknown AIO driver 'kio'; valid: auto io_uring linux threads posix sync"),
        (
            ["--cache", "off"],
            "unknown cache mode 'off'; valid: none writeback writethrough directsync unsafe",
        ),
        (["--queue-depth", "0"], "queue depth 0 is out of range; use 1 to 4096"),
        (["--queue-depth", "1000000000"], "queue depth 1000000000 is out of range; use 1 to 4096"),
        (["-o", "bogus"], "unknown option -o bogus; valid: aio="),
        (["-o", "ro", "-o", "cache=off"], "unknown cache mode 'off'"),
        (["--bogus"], "--bogus"),
        (["--log-level", "loud"], "unknown log level 'loud'"),
    ],
)
@pytest.mark.parametrize("where", [[], ["--foreground"]])
def test_a_wrong_option_is_refused(
    places: tuple[Path, Path], flags: list[str], says: str, where: list[str]
) -> None:
    """In the foreground and in the background alike."""
    assert says in refused("mount", *places, *flags, *where)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "COMMAND"),
        (["mont"], "invalid choice: 'mont'"),
        (["mount"], "SOURCE and MOUNTPOINT missing"),
        (["mount", "images"], "MOUNTPOINT missing"),
        (["mount", "", "/mnt"], "SOURCE is empty"),
        (["umount"], "MOUNTPOINT"),
    ],
)
def test_a_missing_word_is_named(args: list[str], says: str) -> None:
    """And the help that describes it."""
    assert says in refused(*args)


@pytest.mark.parametrize("foreground", [True, False])
def test_a_missing_source_is_named(tmp_path: Path, foreground: bool) -> None:
    """Also by the background server, through its parent."""
    flags = ["--foreground"] if foreground else []
    line = refused("mount", tmp_path / "gone", tmp_path, *flags)
    assert f"source {tmp_path / 'gone'} does not exist" in line


def test_a_missing_mountpoint_says_how_to_make_it(places: tuple[Path, Path]) -> None:
    """mkdir -p."""
    gone = places[1] / "gone"
    assert f"mountpoint {gone} does not exist; make it: mkdir -p {gone}" in refused("mount", places[0], gone)


def test_a_mountpoint_has_to_be_a_directory(places: tuple[Path, Path], tmp_path: Path) -> None:
    """A file is refused."""
    file = tmp_path / "file"
    file.touch()
    assert f"mountpoint {file} is not a directory" in refused("mount", places[0], file)


def test_a_source_has_to_hold_bytes(places: tuple[Path, Path], tmp_path: Path) -> None:
    """A socket is neither directory, nor file, nor block device."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        line = refused("mount", tmp_path / "socket", places[1])
    assert "neither a directory, nor a file, nor a block device" in line


def test_source_and_mountpoint_have_to_be_apart(places: tuple[Path, Path], tmp_path: Path) -> None:
    """The same, one inside the other, or the same through a symbolic link."""
    source, mountpoint = places
    inner = source / "inner"
    inner.mkdir()
    link = tmp_path / "link"
    link.symlink_to(source)
    assert "are the same directory" in refused("mount", source, source)
    assert "are the same directory" in refused("mount", source, link)
    assert f"mountpoint {inner} is inside the source {source}" in refused("mount", source, inner)
    assert f"source {inner} is inside the mountpoint {source}" in refused("mount", inner, source)
    image = mountpoint / "a.img"
    image.touch()
    assert f"source {image} is inside the mountpoint {mountpoint}" in refused("mount", image, mountpoint)


def test_without_fusermount3_it_says_what_to_install(places: tuple[Path, Path]) -> None:
    """apt-get install fuse3."""
    code = (
        "import sys, shutil; shutil.which = lambda *a, **k: None; "
        "from aiofs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    # Without a keeper, whose server would be another process.
    words = [sys.executable, "-c", code, "mount", "--no-survive", *map(str, places)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "aiofs: fusermount3 was not found; install it: apt-get install fuse3\n"


def test_a_log_file_that_cannot_be_written_is_named(places: tuple[Path, Path], tmp_path: Path) -> None:
    """Before anything is mounted."""
    file = tmp_path / "no" / "such" / "log"
    assert f"cannot write the log file {file}" in refused("mount", *places, "--log-file", file)


@pytest.mark.parametrize("command", ["umount", "info"])
def test_what_is_not_an_aiofs_mount_is_refused(command: str, tmp_path: Path) -> None:
    """A plain directory."""
    assert str(tmp_path) in refused(command, tmp_path)


def test_umount_says_what_is_mounted_instead() -> None:
    """/proc is left alone."""
    assert "/proc is not an aiofs mount: proc" in refused("umount", "/proc")


@pytest.mark.parametrize(
    "words", [["drivers"], ["mount", "--aio", "help"], ["mount", "a", "b", "-o", "aio=?"]]
)
def test_the_drivers_are_described(words: list[str]) -> None:
    """A line for each with its verdict, and the default."""
    done = run_aiofs(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in DRIVERS:
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[1] in ("yes", "no")
    assert "docs/testing-with-faults.md" in lines[-2]
    assert "aiofs probe" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--interval", "0"], "interval 0 is out of range; use 0.1 to 3600 seconds"),
        (["--interval", "nan"], "interval nan is out of range"),
        (["--interval", "1e9"], "interval 1e9 is out of range"),
        (["--interval", "soon"], "interval 'soon' is not a number; use 0.1 to 3600 seconds"),
        (["--count", "0"], "count 0 is out of range; use 1 to"),
        (["--count", "1.5"], "count '1.5' is not a number; use 1 or more"),
        ([], "is not an aiofs mount; 'aiofs info' lists them"),
    ],
)
def test_what_top_cannot_do_is_refused(tmp_path: Path, flags: list[str], says: str) -> None:
    """Before it touches the terminal."""
    assert says in refused("top", tmp_path, *flags)


def test_help_teaches() -> None:
    """Examples, options, cache modes and exit status."""
    overview = run_aiofs("--help")
    assert overview.returncode == 0
    assert "aiofs mount images/ /mnt/vdisk" in overview.stdout
    mount = run_aiofs("mount", "--help").stdout
    for word in ("--queue-depth", "writethrough", "exit status", "aiofs attach", "io_uring, linux, threads"):
        assert word in mount


def test_help_fits_80_columns() -> None:
    """On a terminal of that width."""
    commands = ["mount", "restart", "umount", "attach", "detach", "info", "top", "probe", "bench", "drivers"]
    for words in ([], *([command] for command in commands)):
        text = run_aiofs(*words, "--help", env={**os.environ, "COLUMNS": "80"}).stdout
        assert max(map(len, text.splitlines())) <= 80, words


def test_version_is_the_package_s() -> None:
    """`aiofs --version`."""
    from aiofs import __version__

    assert run_aiofs("--version").stdout == f"aiofs {__version__}\n"


def test_info_needs_no_event_loop() -> None:
    """`aiofs info` starts fast: trio and pyfuse3 stay unloaded."""
    code = (
        "import sys; from aiofs.cli import main; main(['info']); "
        "sys.exit(bool({'trio', 'pyfuse3', 'cffi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
