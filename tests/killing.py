"""Killing the server of a mount again and again, while something else goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer

from mounting import MountedFs
from waiting import wait_until

TIMEOUT_S = 30.0
DIED = r"the server of .* died \(killed by SIGKILL\); starting another one"


def kill(fs: MountedFs) -> None:
    """Kill the server; returns when another one has taken over."""
    before, taken = fs.server_pid, taken_over(fs)
    os.kill(before, signal.SIGKILL)
    _wait_taken_over(fs, taken + 1)


def _wait_taken_over(fs: MountedFs, times: int) -> None:
    wait_until(lambda: taken_over(fs) >= times or fs.process.poll() is not None, TIMEOUT_S)
    assert taken_over(fs) >= times, f"the mount ended with {fs.process.poll()}; log: {fs.log[-30:]}"


class Killer:
    """Kills the servers of a mount while its only caller is in the middle of something."""

    def __init__(self, fs: MountedFs) -> None:
        self._fs = fs
        self._taken = taken_over(fs)
        self._timer = Timer(0, lambda: None)
        self._timer.start()
        self.kills = 0

    def __call__(self, after_s: float) -> None:
        """The server, so many seconds from now; returns at once, or when the next one has taken over from the
        one that was killed before."""
        self.wait()
        self._fs.allow(DIED)
        self._timer = Timer(after_s, os.kill, (self._fs.server_pid, signal.SIGKILL))
        self._timer.start()
        self.kills += 1

    def wait(self) -> None:
        """Return when a server serves."""
        self._timer.join()
        _wait_taken_over(self._fs, self._taken + self.kills)


def taken_over(fs: MountedFs) -> int:
    """How often a server has taken the mount over."""
    return sum("another server has taken over" in line for line in fs.log)


def kill_repeatedly(fs: MountedFs, times: int, going_on: Callable[[], bool], seed: int = 0) -> None:
    """Kill each server some moment after it has taken over; AssertionError when the work ends too early."""
    fs.allow(DIED)
    moments = random.Random(seed)
    for _ in range(times):
        time.sleep(moments.uniform(0.0, 0.15))
        assert going_on(), f"it ended after {taken_over(fs)} kills"
        kill(fs)


@contextmanager
def killed_meanwhile(fs: MountedFs, at_least: int = 1) -> Iterator[None]:
    """The block runs while server after server is killed, `at_least` so many."""
    done = Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not done.is_set() or taken_over(fs) < at_least:
                kill_repeatedly(fs, 1, lambda: True, seed=taken_over(fs))
        except BaseException as error:  # seen by the test, not by the thread
            failures.append(error)

    fs.allow(DIED)
    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]
