"""`aiofs restart`: another server, with other options or of another version, and nobody notices."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from killing import kill_repeatedly
from mounting import MountedFs, run_aiofs
from waiting import wait_until
from working import DRIVERS, require_driver

import aiofs
from aiofs import survival
from aiofs.ledger import FORMAT

Mounting = Callable[..., MountedFs]
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    bool(survival.why_not(os.uname().release)), reason=survival.why_not(os.uname().release) or "it can"
)


@pytest.fixture
def image(image_dir: Path) -> Path:
    path = image_dir / "a.img"
    path.write_bytes(os.urandom(MIB))
    return path


def test_each_driver_takes_over_from_the_one_before(mounted: Mounting, image: Path) -> None:
    """With the image open, and written to all the time; a write that was answered is there."""
    fs = mounted(image.parent, "--aio", "sync")
    written = 0
    going_on = True

    def write() -> None:
        nonlocal written
        with (fs.path / "a.img").open("r+b", buffering=0) as file:
            while going_on:
                file.seek(written % 128 * 4096)
                assert file.write(b"%8d" % written * 512) == 4096
                written += 1

    writer = Thread(target=write)
    writer.start()
    try:
        for driver in DRIVERS:
            require_driver(driver)
            before = written
            assert run_aiofs("restart", fs.path, "--aio", driver).stderr == ""
            wait_until(lambda before=before: written > before + 100)  # type: ignore[misc]
            [told] = fs.info()["images"]
            assert (told["driver"], told["counters"]["errors"]) == (driver, 0)
    finally:
        going_on = False
        writer.join()
    assert fs.info()["restarts"] == len(DRIVERS)
    last = written - 1
    content = image.read_bytes()[last % 128 * 4096 :][:4096]
    assert content == b"%8d" % last * 512


def test_what_a_restart_changes_stays_after_a_death(mounted: Mounting, image: Path) -> None:
    """Options given once hold for every server to come."""
    fs = mounted(image.parent)
    words = ["--aio", "threads", "--cache", "writeback", "--queue-depth", "7", "--no-merge"]
    assert run_aiofs("restart", fs.path, *words).returncode == 0
    kill_repeatedly(fs, 1, lambda: True)
    told = fs.info()
    assert (told["driver"], told["cache"], told["queue_depth"], told["merge"]) == (
        "threads", "writeback", 7, False,
    )  # fmt: skip
    assert run_aiofs("restart", fs.path, "--aio", "auto").returncode == 0
    assert fs.info()["driver"] == "auto"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--aio", "quick"], "unknown AIO driver 'quick'; valid: auto io_uring"),
        (["--queue-depth", "0"], "queue depth 0 is out of range"),
        (["--cache", "none"], "use --cache writeback"),
    ],
)
def test_a_server_that_could_not_serve_is_refused(mounted: Mounting, words: list[str], says: str) -> None:
    """Status 2 and the reason, while the old one serves on."""
    source = Path("/dev/shm") / f"aiofs-restart-{os.getpid()}"
    source.mkdir()
    try:
        (source / "a.img").write_bytes(b"here")
        fs = mounted(source, "--cache", "writeback")
        server = fs.server_pid
        fs.allow("use --cache writeback")
        done = run_aiofs("restart", fs.path, *words)
        assert done.returncode == 2
        assert says in done.stderr
        assert fs.server_pid == server
        assert (fs.path / "a.img").read_bytes() == b"here"
        assert fs.umount() == 0
    finally:
        shutil.rmtree(source)


def other_version(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """A copy of aiofs with one change in it; the directory that it is imported from."""
    package = Path(aiofs.__file__).parent
    there = tmp_path / "other"
    shutil.copytree(package, there / "aiofs", ignore=shutil.ignore_patterns("__pycache__"))
    text = (there / "aiofs" / file).read_text()
    assert text.count(old) == 1
    (there / "aiofs" / file).write_text(text.replace(old, new))
    return there


def restart_as(there: Path, mountpoint: Path) -> subprocess.CompletedProcess[str]:
    """`aiofs restart` of that version."""
    code = f"import sys; sys.path.insert(0, {str(there)!r}); from aiofs.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "restart", str(mountpoint)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def test_a_newer_version_takes_over(mounted: Mounting, image: Path, tmp_path: Path) -> None:
    """It is that version's code which serves from then on, after a death too."""
    there = other_version(tmp_path, "info.py", '"source_kind": source_kind,', '"source_kind": "newer",')
    fs = mounted(image.parent)
    with (fs.path / "a.img").open("rb", buffering=0) as held:
        assert restart_as(there, fs.path).stderr == ""
        assert fs.info()["source_kind"] == "newer"
        kill_repeatedly(fs, 1, lambda: True)
        assert fs.info()["source_kind"] == "newer"
        assert held.read() == image.read_bytes()


def test_a_version_that_cannot_be_imported_is_refused(mounted: Mounting, image: Path, tmp_path: Path) -> None:
    """It says why, and the old server goes on."""
    there = other_version(tmp_path, "orders.py", "\nfrom .outcome import Outcome\n", "\nimport missing\n")
    fs = mounted(image.parent)
    done = restart_as(there, fs.path)
    assert done.returncode == 1
    assert "cannot import what serves: ModuleNotFoundError" in done.stderr
    assert (fs.path / "a.img").read_bytes() == image.read_bytes()


def test_a_version_with_another_ledger_is_refused(mounted: Mounting, image: Path, tmp_path: Path) -> None:
    """Before the old server stops."""
    there = other_version(tmp_path, "ledger.py", f"\nFORMAT = {FORMAT}\n", "\nFORMAT = 99\n")
    fs = mounted(image.parent)
    fs.allow(f"of format {FORMAT}, this aiofs has 99")
    server = fs.server_pid
    done = restart_as(there, fs.path)
    assert done.returncode == 1
    assert (
        f"was not restarted: the memory of the mount is of format {FORMAT}, this aiofs has 99" in done.stderr
    )
    assert fs.server_pid == server
    assert (fs.path / "a.img").read_bytes() == image.read_bytes()


def test_a_new_server_that_fails_is_replaced_by_one_as_before(
    mounted: Mounting, image: Path, tmp_path: Path
) -> None:
    """It stood by well and could not take over: the program and the options that worked come back."""
    there = other_version(
        tmp_path, "server.py", "        await self._plane.serve()\n", "        raise RuntimeError('newer')\n"
    )
    fs = mounted(image.parent)
    fs.allow("died .*; starting another one|internal error|newer|Traceback|^ |^$")
    with (fs.path / "a.img").open("rb", buffering=0) as held:
        done = restart_as(there, fs.path)
        assert done.returncode == 1
        assert "the new server died" in done.stderr
        assert held.read() == image.read_bytes()
    assert fs.info()["restarts"] == 2


def test_a_mount_without_a_keeper_says_what_to_do(mounted: Mounting, image: Path) -> None:
    """--no-survive."""
    fs = mounted(image.parent, "--no-survive")
    done = run_aiofs("restart", fs.path)
    assert done.returncode == 2
    assert f"{fs.path} has no keeper" in done.stderr
    assert f"aiofs umount {fs.path}" in done.stderr


ASK = """
import os, socket, sys
os.setuid(65534)
end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
end.connect("\\0" + sys.argv[1])
print(end.recv(1000).decode())
"""


def test_another_user_cannot_restart_it(mounted: Mounting, image: Path) -> None:
    """Whoever can would have the keeper run a program of his choice."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    fs = mounted(image.parent)
    done = subprocess.run(
        [sys.executable, "-c", ASK, fs.info()["keeper"]],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "only root and the one who mounted it" in done.stdout
    assert fs.info()["restarts"] == 0


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[]", b'{"settings": {"source": "/"}, "python": "x", "path": "/"}']
)
def test_a_request_that_makes_no_sense_harms_nobody(mounted: Mounting, image: Path, junk: bytes) -> None:
    """The keeper refuses it and goes on."""
    fs = mounted(image.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.settimeout(30)
        end.connect("\0" + fs.info()["keeper"])
        if junk:
            end.send(junk)
            assert b"cannot restart" in end.recv(1000)
    assert run_aiofs("restart", fs.path).returncode == 0
    assert (fs.path / "a.img").read_bytes() == image.read_bytes()
