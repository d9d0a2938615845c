"""A server's process, as its keeper starts and watches it.

Imports next to nothing: a mount is waited for, and its server's process is the first thing that it needs
(headstart.py).
"""

from __future__ import annotations

import os
import signal
import sys

from .channel import Channel


class Process:
    """A server that has been started. It ends when the other end of its channel is closed before an order."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        """Readable when it has ended."""
        self.channel = channel
        """Our end."""

    def signal(self, number: int) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> int:
        """Its exit status, or minus the signal that killed it; once only."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Close its descriptors; that does not end it when it has had an order."""
        self.channel.close()
        os.close(self.pidfd)


class Program:
    """What is run as a server."""

    def __init__(self, python: str = sys.executable, path: str = "") -> None:
        """`path`: where its aiofs is imported from; by default, ours."""
        self.python = python
        self.path = path or __file__.rsplit("/", 2)[0]  # without pathlib, which takes 5 ms

    def start(self) -> Process:
        """Start a server in a session of its own: Ctrl-C is the keeper's. OSError."""
        ours, theirs = Channel.pair()
        paths = [self.path, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.set_inheritable(theirs.fileno(), True)
        try:
            pid = os.posix_spawn(
                self.python,
                [self.python, "-P", "-m", "aiofs.serve", str(theirs.fileno())],
                os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsid=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Process(pid, ours)
