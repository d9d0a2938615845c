"""Who does what takes privileges (errands.py): the keeper, or where there is none the server itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from . import errands, locks
from .fusermount import Unmounting
from .keeperlink import KeeperLink
from .mounttable import Mount


class Help(Protocol):
    """The errands, each awaited by one task while the others go on."""

    async def unmount(self, lazy: bool) -> Unmounting:
        """As errands.unmount."""

    async def name_holders(self) -> list[str]:
        """As errands.name_holders."""

    async def locked_by(self, fd: int) -> list[locks.Holder]:
        """As locks.locked_by, of a descriptor of this process."""


@dataclass(frozen=True)
class OwnHelp:
    """The server has kept the privileges that it takes."""

    mount: Mount

    async def unmount(self, lazy: bool) -> Unmounting:
        """As errands.unmount."""
        return await trio.to_thread.run_sync(errands.unmount, self.mount, lazy)

    async def name_holders(self) -> list[str]:
        """As errands.name_holders."""
        return await trio.to_thread.run_sync(errands.name_holders, self.mount)

    async def locked_by(self, fd: int) -> list[locks.Holder]:
        """As locks.locked_by, of a descriptor of this process."""
        return await trio.to_thread.run_sync(locks.locked_by, locks.Locked.ours(fd))


@dataclass(frozen=True)
class KeepersHelp:
    """The keeper has them. AiofsError from all of these: it refused, or has died."""

    link: KeeperLink

    async def unmount(self, lazy: bool) -> Unmounting:
        """As errands.unmount."""
        answer = await self.link.ask("unmount", lazy=lazy)
        return Unmounting[answer["how"]]

    async def name_holders(self) -> list[str]:
        """As errands.name_holders."""
        lines: list[str] = (await self.link.ask("name_holders"))["lines"]
        return lines

    async def locked_by(self, fd: int) -> list[locks.Holder]:
        """As locks.locked_by, of a descriptor of this process."""
        file = locks.Locked.ours(fd)
        answer = await self.link.ask("locked_by", fd=file.fd, device=file.device, inode=file.inode)
        return [locks.Holder(*holder) for holder in answer["holders"]]
