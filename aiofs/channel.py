"""Messages between a keeper and its servers: JSON objects with descriptors, over a SOCK_SEQPACKET pair.

Imports next to nothing until there is a message (headstart.py).
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_MAX_BYTES = 64 << 10
MAX_ORPHANS = 200
"""Open images without a name whose descriptors a keeper holds; the kernel passes 253 in one message."""
_MAX_FDS = 253

Message = dict[str, "Any"]


class Channel:
    """One end. Messages are short and the other end reads at once: sending waits when it does not."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, fd: int) -> Channel:
        """The end that the process has been given as descriptor `fd`."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Its descriptor."""
        return self._end.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of descriptors. OSError when the other end has gone."""
        import json

        socket.send_fds(self._end, [json.dumps(message).encode()], list(fds))

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, the caller's to close; None when the other end has gone."""
        import json

        try:
            data, fds, _, _ = socket.recv_fds(self._end, _MAX_BYTES, _MAX_FDS)
        except ConnectionError:
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        message: Message = json.loads(data)
        return message, list(fds)

    def close(self) -> None:
        """Close this end."""
        self._end.close()
