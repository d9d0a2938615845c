"""`aiofs top` on a real mount: its screen on a terminal, its text without one, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mounting import MountedFs, run_aiofs
from screens import LEFT, Terminal, terminal

Mounting = Callable[..., MountedFs]
K = 4096
NAMES = ["a.img", "b.img", f"{'deep' * 30}/c.img"]


@pytest.fixture
def fs(mounted: Mounting, image_dir: Path) -> Iterator[MountedFs]:
    """A mount with three open images, one of which has a long name."""
    for name in NAMES:
        path = image_dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(16 * K))
    made = mounted(image_dir)
    with ExitStack() as opened:
        for name in NAMES:
            opened.enter_context((made.path / name).open("rb"))
        yield made


def top(fs: MountedFs, *args: str) -> list[str]:
    """The command, with a short interval."""
    return ["top", str(fs.path), "--interval", "0.1", *args]


def images(lines: list[str]) -> list[str]:
    """The first letter that matters of each image shown, from above."""
    rows = [line for line in lines if ".img" in line]
    return [row.split(".img")[0][-1] for row in rows]


def iops(lines: list[str], name: str) -> str:
    """The cell beside a name; empty when it is not shown."""
    return next((line.split()[1] for line in lines if line.startswith(f"{name} ")), "")


def restored(shown: Terminal) -> bool:
    """The terminal is as it was: its modes, its screen, its cursor."""
    return shown.modes() == shown.before and LEFT in shown.shown and "\x1b[?25h" in shown.shown


def test_the_screen_shows_each_image_in_80_columns(fs: MountedFs) -> None:
    """24 lines of 80 columns, none of which wraps; and what was read is in the numbers."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        with (fs.path / "a.img").open("rb") as image:
            os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            image.read(K)
            lines = shown.frame(lambda lines: iops(lines, "a.img") not in ("", "0"))
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(str(fs.path)[:20])
    assert sorted(images(lines)) == ["a", "b", "c"]


def test_keys_sort(fs: MountedFs) -> None:
    """By name, turned round, and by the column to the left."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        shown.press("1")
        assert images(sorted_by(shown, "IMAGE, from a")) == ["a", "b", "c"]
        shown.press("r")
        assert images(sorted_by(shown, "IMAGE, from z")) == ["c", "b", "a"]
        shown.press("\x1b[D")
        assert sorted_by(shown, "P99, highest first")


def sorted_by(shown: Terminal, order: str) -> list[str]:
    """The first screen that says so."""
    return shown.frame(lambda lines: any(f"sorted by {order}" in line for line in lines))


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_a_key_quits(fs: MountedFs, key: str) -> None:
    """q and Ctrl-C, with status 0; the terminal is as it was."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        assert shown.modes() != shown.before
        shown.press(key)
        assert shown.end() == 0
        assert restored(shown)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(fs: MountedFs, number: signal.Signals) -> None:
    """And the exit status names the signal."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        shown.process.send_signal(number)
        assert shown.end() == 128 + number
        assert restored(shown)


def test_the_screen_follows_the_size_of_the_terminal(fs: MountedFs) -> None:
    """A wider one shows the whole name, a lower one fewer images."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        shown.resize(200, 24)
        shown.frame(lambda lines: any(NAMES[2] in line for line in lines))
        shown.resize(80, 7)
        lines = shown.frame(lambda lines: len(lines) == 7)
        assert any("2 more" in line for line in lines)


def test_an_unmount_ends_it(mounted: Mounting, tmp_path: Path) -> None:
    """With status 1 and one sentence, on the screen that was there before."""
    other = tmp_path / "other"
    other.mkdir()
    gone = mounted(other)
    with terminal("top", str(gone.path), "--interval", "0.1") as shown:
        shown.frame(lambda lines: any("no image is open" in line for line in lines))
        assert gone.umount() == 0
        assert shown.end() == 1
        assert restored(shown)
        assert f"aiofs: {gone.path} has been unmounted" in shown.shown.split(LEFT)[1].replace("\r\n", "")


def test_a_server_that_does_not_answer_ends_it(fs: MountedFs) -> None:
    """After a few seconds, instead of a screen that stands still."""
    with terminal(*top(fs)) as shown:
        shown.frame(lambda lines: len(images(lines)) == 3)
        os.kill(fs.server_pid, signal.SIGSTOP)
        try:
            assert shown.end() == 1
        finally:
            os.kill(fs.server_pid, signal.SIGCONT)
        assert restored(shown)
        assert "does not answer" in shown.shown.split(LEFT)[1]


def test_without_a_terminal_it_prints_text(fs: MountedFs) -> None:
    """As with --batch: no escape sequences, 80 columns, one page for each interval."""
    done = run_aiofs(*top(fs, "-n", "2"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.count("IMAGE") == 2
    assert images(done.stdout.split("\n\n")[0].splitlines()) == [*"abc"]


def test_batch_prints_text_on_a_terminal_too(fs: MountedFs) -> None:
    """The screen is left alone."""
    with terminal(*top(fs, "--batch", "--count", "1")) as shown:
        assert shown.end() == 0
        assert shown.modes() == shown.before
        assert "\x1b" not in shown.shown
        assert "a.img" in shown.shown
