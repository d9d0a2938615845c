"""Going into the background: `aiofs mount` returns when the mount is ready, or says why it is not.

The parent forks while it still has a single thread and waits at the end of a pipe. The child writes to the
terminal itself until it leaves it; from then on it reports through the pipe, as JSON lines: `{"left": true}`,
`{"say": text}` any number of times, then `{"ready": true}` or `{"failed": text, "status": n}`. A pipe that
ends without one of these means that the child has died, which the parent then says.

Imports next to nothing before the fork (headstart.py).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, BinaryIO

    from .errors import AiofsError


INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT, as shells have it."""


class Report:
    """The child's end of the pipe, from when it has left the terminal."""

    def __init__(self, fd: int) -> None:
        from . import logs

        self._fd = fd
        self._handler = logs.collect(self.say)
        self._send({"left": True})

    def say(self, text: str) -> None:
        """Have the parent print `text` on its stderr."""
        self._send({"say": text})

    def ready(self) -> None:
        """The mount answers; the parent exits with status 0."""
        self._send({"ready": True})
        self._close()

    def failed(self, error: AiofsError) -> None:
        """The mount did not come to be; the parent prints why and exits with the error's status."""
        self._send({"failed": str(error), "status": error.exit_status})
        self._close()

    def _send(self, message: dict[str, Any]) -> None:
        import json

        if self._fd < 0:
            return
        try:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
        except OSError:  # the parent was killed; the server goes on
            self._close()

    def _close(self) -> None:
        import logging

        logging.getLogger("aiofs").removeHandler(self._handler)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def launch(work: Callable[[int], int]) -> int:
    """Have a child `work`, whose result is its exit status; returns, in the parent only, the one to use.

    `work` is given the descriptor for its Report.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _end_with(lambda: work(write_end))
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            return _relay(pipe, child)
    except KeyboardInterrupt:
        import signal

        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise


def _end_with(work: Callable[[], int]) -> None:
    """As an interpreter ends, but not in those who called us."""
    status: object = 1
    try:
        status = work()
    except SystemExit as ended:  # argparse after --help
        status = ended.code or 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        import logging

        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # nobody reads it any more
                status = status or 1
        os._exit(status if isinstance(status, int) else 1)


def _relay(pipe: BinaryIO, child: int) -> int:
    import json

    left = False
    for line in pipe:
        message = json.loads(line)
        if "left" in message:
            left = True
        elif "say" in message:
            print(message["say"], file=sys.stderr, flush=True)
        elif "failed" in message:
            print(f"aiofs: {message['failed']}", file=sys.stderr)
            os.waitpid(child, 0)  # so that nothing of it is left when the command has returned
            return int(message["status"])
        else:
            return 0
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and not left:  # it has said why
        return os.WEXITSTATUS(status)
    print(f"aiofs: the server ended before the mount was ready ({_how(status)})", file=sys.stderr)
    return 1


def _how(wait_status: int) -> str:
    if os.WIFSIGNALED(wait_status):
        import signal

        return f"killed by {signal.Signals(os.WTERMSIG(wait_status)).name}"
    return f"exit status {os.waitstatus_to_exitcode(wait_status)}; try --foreground"


def leave_terminal(log_file: Path | None) -> None:
    """No working directory to keep busy, and no terminal to write to.

    stdout and stderr go to the log file, if there is one: libfuse prints its complaints there.
    """
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    out = null
    if log_file is not None:
        try:
            out = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        except OSError:
            out = null  # logs.start will report it
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    for fd in {null, out}:
        if fd > 2:
            os.close(fd)
