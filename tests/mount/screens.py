"""`aiofs top` on a terminal of its own: a pseudo-terminal whose other end the test holds."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mounting import AIOFS

PATIENCE_S = 30.0
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HOME = "\x1b[H"
LEFT = "\x1b[?1049l"
"""The screen that was there before is back."""


class Terminal:
    """One command on a terminal: what it shows, and the keys that it gets."""

    def __init__(self, *args: str, columns: int = 80, lines: int = 24) -> None:
        self._ours, theirs = os.openpty()
        self.resize(columns, lines)
        self.before = self.modes()
        # setsid -c makes the terminal the controlling one: its Ctrl-C and its size are signals then.
        self.process = subprocess.Popen(
            ["setsid", "-c", *AIOFS, *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self._theirs = theirs
        self.shown = ""
        """Everything that it has written."""

    def modes(self) -> list[Any]:
        """How the terminal treats keys and lines."""
        return termios.tcgetattr(self._ours)

    def resize(self, columns: int, lines: int) -> None:
        """The window has another size now; the kernel signals it."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._ours, keys.encode())

    def frame(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """The first screen from now on that is as wanted: its lines, without colours."""
        seen = self.shown.count(_HOME)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            # The last one may still be on its way.
            for frame in self.shown.split(_HOME)[seen + 1 : -1]:
                lines = _ESCAPE.sub("", frame).split("\r\n")
                if wanted(lines):
                    return lines
            assert time.monotonic() < deadline, f"no such screen; the last: {self.shown[-4000:]}"
            self._read(1.0)

    def end(self) -> int:
        """Wait for its end; the exit status."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        try:
            self.shown += os.read(self._ours, 65536).decode(errors="replace")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(*args: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    """A command on a terminal, ended with the block."""
    made = Terminal(*args, columns=columns, lines=lines)
    try:
        yield made
    finally:
        made.close()
