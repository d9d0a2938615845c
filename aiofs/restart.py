"""`aiofs restart`: another server for a mount, of this very version of aiofs, without an error for its users.

The mount's keeper starts the new server beside the old one; when it stands by, the old one finishes what it
has begun and ends, and the new one takes over. One that cannot serve is refused before that.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

from . import info
from .channel import Channel
from .config import Settings
from .errors import AiofsError, BadInput, reason
from .mounttable import Mount
from .program import Program

PATIENCE_S = 5.0
"""After so long, a word about what is being waited for."""


def restart(mount: Mount, settings: Settings) -> int:
    """Replace the mount's server; the exit status. `settings`: what the new one is to do otherwise."""
    told = info.read(mount.mountpoint)
    if not told["keeper"]:
        raise BadInput(
            f"{mount.mountpoint} has no keeper (--no-survive, a kernel that cannot, or it was killed): "
            f"aiofs umount {mount.mountpoint}, and mount it again"
        )
    channel = _connect(mount.mountpoint, told["keeper"], told["pid"])
    program = Program()
    channel.send({"settings": settings, "python": program.python, "path": program.path})
    answer = _answer(channel, mount.mountpoint)
    if answer["is"] == "failed":
        kind = BadInput if answer["status"] == BadInput.exit_status else AiofsError
        raise kind(f"{mount.mountpoint} was not restarted: {answer['text']}")
    return 0


def _connect(mountpoint: Path, address: str, pid: int) -> Channel:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        end.connect("\0" + address)
    except OSError as error:
        end.close()
        raise AiofsError(f"cannot reach the keeper of {mountpoint} (pid {pid}): {reason(error)}") from error
    # The name is anybody's to take once the keeper has gone.
    listener, _, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if listener != pid:
        end.close()
        raise AiofsError(f"the keeper of {mountpoint} (pid {pid}) is not visible from here")
    return Channel(end)


def _answer(channel: Channel, mountpoint: Path) -> dict[str, object]:
    import select

    if not select.select([channel], [], [], PATIENCE_S)[0]:
        print(f"aiofs: waiting for the server of {mountpoint} to finish what it has begun", file=sys.stderr)
    received = channel.receive()
    if received is None:
        raise AiofsError(f"the keeper of {mountpoint} ended before the restart was done")
    return received[0]
