"""Where the server's log lines go: stderr in the foreground; in the background a file, or syslog, or nowhere.

Only `aiofs mount` logs. The other commands print.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import BadInput, reason

SYSLOG_SOCKET = Path("/dev/log")

_TO_FILE = "%(asctime)s aiofs[%(process)d] %(levelname)s: %(message)s"
_TO_SYSLOG = "aiofs[%(process)d]: %(message)s"


class _ForPeople(logging.Formatter):
    """`aiofs: text`, with the level in between when it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"aiofs: {record.levelname.lower()}: {text}"
        return f"aiofs: {text}"


def start(level: str, log_file: Path | None, *, foreground: bool) -> None:
    """Send log lines of `level` and above where they belong. BadInput when the file cannot be opened."""
    handler = _handler(log_file, foreground=foreground)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Libraries log what only their authors can use; their warnings are kept.
    if level != "debug":
        for library in ("pyfuse3", "trio"):
            logging.getLogger(library).setLevel(logging.WARNING)


class _Collector(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self.setFormatter(for_people())

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


def collect(say: Callable[[str], None]) -> logging.Handler:
    """Have `say` called with each line as well, for the person who typed the command; returns its handler."""
    handler = _Collector(say)
    logging.getLogger("aiofs").addHandler(handler)
    return handler


def for_people() -> logging.Formatter:
    """The format of lines that a person reads on a terminal."""
    return _ForPeople("%(message)s")


def _handler(log_file: Path | None, *, foreground: bool) -> logging.Handler:
    handler: logging.Handler
    if log_file is not None:
        try:
            from logging.handlers import WatchedFileHandler

            # Watched: it opens the file again after logrotate(8) has moved it away.
            handler = WatchedFileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write the log file {log_file}: {reason(error)}") from None
        handler.setFormatter(logging.Formatter(_TO_FILE))
    elif foreground:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(for_people())
    elif SYSLOG_SOCKET.is_socket():
        from logging.handlers import SysLogHandler

        handler = SysLogHandler(str(SYSLOG_SOCKET), facility="daemon")
        handler.setFormatter(logging.Formatter(_TO_SYSLOG))
    else:
        handler = logging.NullHandler()
    return handler
