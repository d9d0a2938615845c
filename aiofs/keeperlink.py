"""A server's side of the channel to its keeper: what it reports, and what it is told."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from .channel import MAX_ORPHANS, Channel, Message
from .errors import AiofsError
from .mounttable import Mount

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a keeper wants of a server."""

    role: str
    """`first` makes the mount, `successor` takes it over, `standby` as well, when it is told to."""
    config: dict[str, str | bool]
    mount: dict[str, Any]
    keeper: dict[str, Any]
    """pid, address (an abstract socket that takes requests for a restart), outcome_fd (in that process)."""
    started: float
    """When the mount began, in seconds since 1970."""
    restarts: int
    """Servers before this one."""
    service: bool
    """There is a service manager to tell."""
    report: bool
    """Somebody waits at a terminal to be told of warnings."""
    orphans: list[int]
    """Node ids of open images without a name; their descriptors are the last of the message's."""


class KeeperLink:
    """The channel of one server."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        received = channel.receive()
        if received is None:
            raise AiofsError("the keeper has gone")
        message, self.fds = received
        self.order = Order(**message)
        """The first message."""
        self.orphans: Mapping[int, int] = {}
        """Descriptors (O_PATH) of open images without a name, by node id."""
        self._take_orphans(self.order.orphans, self.fds)
        self._held = set(self.orphans)
        self.restarts = self.order.restarts
        self.gone = False
        """The keeper has died: there will be no other server."""
        self.handing_over = trio.Event()
        """Another server stands by to take over."""
        self._errands = 0
        self._asked: dict[int, trio.MemorySendChannel[Message]] = {}

    def say(self, text: str) -> None:
        """A line for who waits at a terminal."""
        self._send({"is": "say", "text": text})

    def notify(self, *lines: str) -> None:
        """NAME=value lines for the service manager."""
        self._send({"is": "notify", "lines": lines})

    def mounted(self, mount: Mount, fuse_fd: int, ledger_fd: int) -> None:
        """There is a mount: the keeper holds its descriptors from now on."""
        told = {"device": mount.device, "mount_id": mount.mount_id, "mountpoint": str(mount.mountpoint)}
        self._send({"is": "mounted", "mount": told}, [fuse_fd, ledger_fd])

    def hold(self, ino: int, fd: int) -> None:
        """An open image has lost its last name: without a descriptor no other server could open it."""
        if len(self._held) == MAX_ORPHANS:
            log.warning("more than %d images without a name are open; some would not survive", MAX_ORPHANS)
            return
        self._held.add(ino)
        self._send({"is": "hold", "ino": ino}, [fd])

    def drop(self, ino: int) -> None:
        """The image that `hold` was told of is closed."""
        if ino in self._held:
            self._held.remove(ino)
            self._send({"is": "drop", "ino": ino})

    def prepared(self) -> None:
        """This standby could serve; returns when it is to do so, or the keeper has gone (AiofsError)."""
        self._send({"is": "prepared"})
        received = self._channel.receive()
        if received is None:
            raise AiofsError("the keeper has gone")
        message, fds = received
        self.restarts = int(message["restarts"])
        for fd in self.orphans.values():
            os.close(fd)
        self._take_orphans(message["orphans"], fds)
        self._held = set(self.orphans)

    def _take_orphans(self, inos: list[int], fds: list[int]) -> None:
        """The last of a message's descriptors, one for each."""
        first = len(fds) - len(inos)
        self.orphans = dict(zip(inos, fds[first:], strict=True))
        del fds[first:]

    def serving(self) -> None:
        """The mount answers."""
        self._send({"is": "serving"})

    def failed(self, error: AiofsError) -> None:
        """This server ends because of `error`."""
        self._send({"is": "failed", "text": str(error), "status": error.exit_status})

    def ended(self, status: int) -> None:
        """The mount has ended with this status: no server is to follow."""
        self._send({"is": "ended", "status": status})

    async def listen(self) -> None:
        """Take what the keeper says, until it has died; run it as a task, to the end of the last `ask`."""
        while not self.gone:
            await trio.lowlevel.wait_readable(self._channel.fileno())
            received = self._channel.receive()
            if received is None:
                self.gone = True
                for asked in self._asked.values():
                    asked.close()
            elif received[0]["is"] == "hand_over":
                self.handing_over.set()
            elif (waiting := self._asked.get(received[0]["id"])) is not None:
                waiting.send_nowait(received[0])

    async def ask(self, what: str, **words: Any) -> Message:
        """Have the keeper do an errand (errands.py); its answer. AiofsError."""
        self._errands += 1
        ident = self._errands
        asked, answer = trio.open_memory_channel[Message](1)
        self._asked[ident] = asked
        try:
            if self.gone:
                raise trio.EndOfChannel
            self._send({"is": "errand", "id": ident, "what": what, **words})
            told = await answer.receive()
        except trio.EndOfChannel:
            raise AiofsError("the keeper, which had the privileges for that, has died") from None
        finally:
            del self._asked[ident]
        if "failed" in told:
            raise AiofsError(told["failed"])
        return told

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        with suppress(OSError):  # the keeper has died; `listen` sees it
            self._channel.send(message, fds or [])
