"""What takes privileges after set-up: to unmount, and to look into the processes of others.

A server gives its privileges up (privilege.py), so its keeper does these for it, in a child that is forked
for each: the keeper itself neither waits nor looks at what somebody else has made. Without a keeper the
server does them. Everything here is plain and blocking; helping.py is the server's asynchronous side.
"""

from __future__ import annotations

import dataclasses

from . import fusermount, holders, locks, mounttable
from .channel import Message
from .errors import AiofsError
from .fusermount import Unmounting
from .mounttable import Mount

_LINES = 32
_LINE_CHARACTERS = 240
"""Of the holders that are named; who they are decides how many and how long, and a message has its limit."""


def unmount(mount: Mount, lazy: bool) -> Unmounting:
    """Unmount, if this mount is on top of its mountpoint: fusermount3 knows paths only. AiofsError."""
    where = mount.mountpoint
    top = mounttable.mount_at(where)
    if top is None or not mounttable.holds(mount):
        return Unmounting.NOT_MOUNTED
    if not top.is_same_as(mount):
        raise AiofsError(
            f"{top.fstype} is mounted over {where}, ending without unmounting; "
            f"afterwards: umount {where} && {fusermount.clear_hint(where)}"
        )
    return fusermount.unmount(where, lazy=lazy)


def name_holders(mount: Mount) -> list[str]:
    """Who keeps the mount busy, a line each; the first ones."""
    lines = holders.holders_of(mount).lines()
    cut = [line[:_LINE_CHARACTERS] for line in lines[:_LINES]]
    return cut + ([f"{len(lines) - _LINES} more"] if len(lines) > _LINES else [])


def carry_out(order: Message, mount: Mount, server_pid: int) -> Message:
    """Do what a server of `mount` asks for; the answer. AiofsError, OSError; LookupError: no such errand."""
    match order["what"]:
        case "unmount":
            return {"how": unmount(mount, bool(order["lazy"])).name}
        case "name_holders":
            return {"lines": name_holders(mount)}
        case "locked_by":
            file = locks.Locked(server_pid, int(order["fd"]), int(order["device"]), int(order["inode"]))
            return {"holders": [dataclasses.astuple(holder) for holder in locks.locked_by(file)[:_LINES]]}
        case unknown:
            raise LookupError(f"no errand is called {unknown!r}")
