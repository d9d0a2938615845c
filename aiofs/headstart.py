"""The entry of `aiofs`. What a mount takes longest for is begun first.

Most of the time until a mount is ready goes into what its server has to import, and that is a process of its
own. So where the words look like a mount in the background, this goes there and starts that process before it
imports what can read the words. Where they turn out to be wrong, the server is killed: it has been told
nothing yet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from . import background, survival

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .program import Process


class HeadStart:
    """What has been begun, in the background."""

    def __init__(self, report_fd: int) -> None:
        from .program import Program

        self.report_fd = report_fd
        """Where background.Report writes to."""
        self._server: Process | None = None
        with contextlib.suppress(OSError):  # no process to be had: whoever keeps the mount tries again
            self._server = Program().start()

    def take(self) -> Process | None:
        """The server: it waits for an order, and is the caller's now."""
        server, self._server = self._server, None
        return server

    def drop(self) -> None:
        """End the server, if nobody has taken it."""
        server = self.take()
        if server is not None:
            server.signal(signal.SIGKILL)
            server.wait()
            server.close()


def main() -> int:
    """The command `aiofs`; its exit status."""
    words = sys.argv[1:]
    if in_background(words) and not survival.why_not(os.uname().release):
        try:
            return background.launch(lambda report_fd: _ahead(words, report_fd))
        except KeyboardInterrupt:
            return background.INTERRUPTED
    from . import cli

    return cli.main(words)


def in_background(words: Sequence[str]) -> bool:
    """Whether this may be a mount, and certainly is none in the foreground."""
    return words[:1] == ["mount"] and not any(w.startswith("--f") or "foreground" in w for w in words)


def _ahead(words: Sequence[str], report_fd: int) -> int:
    begun = HeadStart(report_fd)
    try:
        from . import cli

        return cli.main(words, begun)
    finally:
        begun.drop()
