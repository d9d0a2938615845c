"""What the service manager is told: that the mount answers, that it is ending, that the end takes time.

sd_notify(3) promises its protocol to be stable: a datagram of NAME=value lines to the socket that
NOTIFY_SOCKET names. That is less code than a dependency would cost: the libraries for it wrap libsystemd,
which has to be on the machine, or have not been kept for years.

Only a server in the foreground speaks: one in the background is not the process that somebody started as
a service.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from .errors import reason

log = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"
MORE_TIME_S = 30
"""How much longer to wait for the end, told again every third of it: a server that hangs is still killed."""
_SEND_TIMEOUT_S = 1.0
"""A manager that does not read its messages must not hold up the mount."""


class Manager:
    """The service manager that has started this process; there may be none."""

    def __init__(self, address: str = "") -> None:
        """`address`: a path, or `@name` for an abstract socket; empty: nobody listens."""
        self.address = address

    @classmethod
    def of_environment(cls) -> Manager:
        """As it said in NOTIFY_SOCKET, which is removed: children are not this service."""
        return cls(os.environ.pop(VARIABLE, ""))

    def send(self, *lines: str) -> None:
        """Tell it NAME=value lines."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_SEND_TIMEOUT_S)
                manager.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
        except OSError as error:
            log.warning("cannot tell the service manager at %s: %s", self.address, reason(error))
            self.address = ""


class Service:
    """What a mount tells the service manager of its life."""

    def __init__(self, send: Callable[..., None] | None = None) -> None:
        """`send`: takes NAME=value lines; None: no service manager has started it."""
        self._deliver = send
        self._stopping = False

    def ready(self, status: str) -> None:
        """The mount answers."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """The end has begun; said once."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", "STATUS=bringing everything to disk", _more_time())

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    async def ask_for_time(self) -> None:
        """Runs until cancelled, while the end takes longer than the manager would wait."""
        import trio

        while self._deliver is not None:
            self._send(_more_time())
            await trio.sleep(MORE_TIME_S / 3)

    def _send(self, *lines: str) -> None:
        if self._deliver is not None:
            self._deliver(*lines)


def _more_time() -> str:
    return f"EXTEND_TIMEOUT_USEC={MORE_TIME_S * 1_000_000}"
