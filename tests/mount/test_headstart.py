"""A mount in the background starts its server before it knows whether it will need one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import AIOFS, TIMEOUT_S, is_mounted, run_aiofs
from waiting import wait_until

from aiofs.cli import _parser
from aiofs.config import OPTION_WORDS
from aiofs.headstart import in_background
from aiofs.program import Program

MARK = "AIOFS_TEST_MARK"


@pytest.fixture
def mark() -> dict[str, str]:
    """An environment by which to know what was started with it."""
    return os.environ | {MARK: os.urandom(8).hex()}


def started_with(mark: dict[str, str]) -> Iterator[int]:
    """The processes that run with this environment."""
    wanted = f"{MARK}={mark[MARK]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("length", range(len("--f"), len("--foreground") + 1))
def test_a_mount_in_the_foreground_is_told_by_its_words(place: int, length: int) -> None:
    """However argparse lets it be written."""
    words = ["mount", *["images", "there"][:place], "--foreground"[:length], *["images", "there"][place:]]
    assert _parser().parse_args(words).foreground
    assert not in_background(words)


@pytest.mark.parametrize("option", [["-o", "foreground"], ["-oro,foreground"], ["-o", "rw,foreground,ro"]])
def test_a_mount_in_the_foreground_is_told_by_its_options(option: list[str]) -> None:
    """Beside others and by itself; there is one word for it."""
    assert not in_background(["mount", "images", "there", *option])
    assert [word for word in OPTION_WORDS if "foreground" in word] == ["foreground"]


def test_other_commands_start_no_server() -> None:
    """Only a mount has one."""
    assert in_background(["mount", "images", "there"])
    assert not in_background(["umount", "there"])
    assert not in_background(["mount", "images", "foreground"])  # a path: it only takes longer
    assert not in_background([])


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["mount"], 2),
        (["mount", "--bogus"], 2),
        (["mount", "/nonexistent", "/"], 2),
        (["mount", "/nonexistent", "/", "--no-survive"], 2),
        (["mount", "/nonexistent", "/", "--log-file", "/nonexistent/log"], 2),
        (["mount", "--help"], 0),
        (["mount", "--aio", "help"], 0),
    ],
)
def test_what_is_no_mount_leaves_no_process(words: list[str], status: int, mark: dict[str, str]) -> None:
    """When the command has returned, the server that had been started has gone."""
    assert run_aiofs(*words, env=mark).returncode == status
    assert list(started_with(mark)) == []


def test_a_server_that_hears_nothing_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """Its keeper has died before it gave an order: nobody wants to read of that."""
    server = Program().start()
    server.channel.close()
    try:
        assert server.wait() == 1
    finally:
        server.close()
    assert capfd.readouterr() == ("", "")


def test_the_server_keeps_nothing_of_the_terminal(
    image_dir: Path, mountpoint: Path, tmp_path: Path, mark: dict[str, str]
) -> None:
    """No directory, no pipe and no session; stdout and stderr are the log file."""
    log = tmp_path / "log"
    command = [*AIOFS, "mount", str(image_dir), str(mountpoint), "--log-file", str(log)]
    subprocess.run(command, cwd=tmp_path, env=mark, capture_output=True, timeout=TIMEOUT_S, check=True)
    held = list(started_with(mark))
    assert len(held) == 2  # the keeper and its server
    for pid in held:
        process = Path(f"/proc/{pid}")
        assert (process / "cwd").readlink() == Path("/")
        standard = [str((process / f"fd/{fd}").readlink()) for fd in range(3)]
        assert standard == ["/dev/null", str(log), str(log)]
        assert os.getsid(pid) == pid
    assert run_aiofs("umount", mountpoint).returncode == 0
    assert list(started_with(mark)) == []


SLOW_SERVER = """
import select, sys
if "aiofs.serve" in sys.orig_argv:
    keeper = select.poll()
    keeper.register(int(sys.orig_argv[-1]), 0)
    keeper.poll()  # POLLHUP
"""


@pytest.mark.parametrize("whom", [os.kill, os.killpg])
def test_ctrl_c_ends_it_quietly(
    image_dir: Path, mountpoint: Path, tmp_path: Path, mark: dict[str, str], whom: Callable[[int, int], None]
) -> None:
    """130, as shells have it, and no traceback; a server that is importing finds that its keeper has gone."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_SERVER)
    mark["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [mark.get("PYTHONPATH")])])
    # What a shell runs in the background ignores SIGINT, and so does all that it starts.
    command = ["env", "--default-signal=INT", *AIOFS, "mount", str(image_dir), str(mountpoint)]
    with subprocess.Popen(command, env=mark, stderr=subprocess.PIPE, text=True, process_group=0) as started:
        wait_until(lambda: len(list(started_with(mark))) == 3)
        whom(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=TIMEOUT_S)
    assert (started.returncode, said) == (130, "")
    wait_until(lambda: not list(started_with(mark)))
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_ms", [0, 20, 60, 120, 250])
def test_a_signal_to_all_of_it_leaves_nothing(
    image_dir: Path, mountpoint: Path, mark: dict[str, str], number: signal.Signals, after_ms: int
) -> None:
    """Ctrl-C at any moment of the start: either nothing is left, or a mount that was ready before it."""
    command = [*AIOFS, "mount", str(image_dir), str(mountpoint)]
    started = subprocess.Popen(command, env=mark, stderr=subprocess.DEVNULL, process_group=0)
    time.sleep(after_ms / 1000)  # for no event: what follows holds at every moment
    os.killpg(started.pid, number)
    status = started.wait(TIMEOUT_S)
    if status == 0 or number == signal.SIGTERM:  # who only waits for the mount may be killed
        wait_until(lambda: is_mounted(mountpoint) or not list(started_with(mark)))
    if is_mounted(mountpoint):
        assert run_aiofs("umount", mountpoint).returncode == 0
    wait_until(lambda: not list(started_with(mark)))
    assert not is_mounted(mountpoint)
