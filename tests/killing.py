"""Killing the server of a mount again and again, while something else goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from mounting import MountedFs
from waiting import wait_until

TIMEOUT_S = 30.0
DIED = r"the server of .* died \(killed by SIGKILL\); starting another one"


def kill(fs: MountedFs) -> None:
    """Kill the server; returns when another one has taken over."""
    before, taken = fs.server_pid, taken_over(fs)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: taken_over(fs) > taken or fs.process.poll() is not None, TIMEOUT_S)
    assert taken_over(fs) > taken, f"the mount ended with {fs.process.poll()}; log: {fs.log[-30:]}"


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
