"""The keyboard of a command that has the whole screen: keys one by one; the terminal is always given back.

Inside the `with` block keys come without Enter and are not echoed. The signals that end a program are keys
there too, so nothing is ever left half way: a signal that came as an exception could come while the screen is
being set up.
"""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import tty
from types import FrameType, TracebackType
from typing import Any

QUIT = "q"
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ESCAPES = {"\x1b[C": ">", "\x1bOC": ">", "\x1b[D": "<", "\x1bOD": "<"}
"""The right and left arrow."""
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)


class Keyboard:
    """The keys of the terminal at `fd`; of none, when it is no terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd if os.isatty(fd) else -1
        self._saved: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self.ended_by = 0
        """The signal that said QUIT, or 0."""

    def __enter__(self) -> Keyboard:
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wake = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _ENDS:
            self._handlers[number] = signal.signal(number, self._end)
        # Only so that it wakes `wait`: the next drawing asks for the size.
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
        if self._fd >= 0:
            self._saved = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            # Ctrl-Z would leave a shell on a screen that is not its own.
            changed = termios.tcgetattr(self._fd)
            changed[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(self._fd, termios.TCSANOW, changed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        signal.set_wakeup_fd(self._old_wake)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._wake)

    def wait(self, timeout_s: float) -> list[str]:
        """The keys pressed, at most `timeout_s` later; none when time is over or the window's size changed.

        A signal that ends, and a terminal that is gone, press QUIT.
        """
        watched = [self._woken] if self._fd < 0 else [self._woken, self._fd]
        ready, _, _ = select.select(watched, [], [], max(0.0, timeout_s))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self.ended_by:
            return [QUIT]
        if self._fd not in ready:
            return []
        try:
            pressed = os.read(self._fd, 4096).decode(errors="replace")
        except OSError:
            return [QUIT]
        return [_ESCAPES.get(key, key) for key in _KEY.findall(pressed)] or [QUIT]

    def _end(self, number: int, _: FrameType | None) -> None:
        self.ended_by = number
