"""The data plane's commands for the image table, which end when the plane's loop has ended.

An unmount can overtake the last releases: the loop returns while commands are on their way to it, and
nobody will ever answer those. Here each command ends with the answer or with the loop, whichever is first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable

import trio

from .dataplane import DataPlane, ImageSpec


class Commands:
    """register, unregister, truncate and open_driver of a DataPlane that may have ended."""

    def __init__(self, plane: DataPlane, ended: trio.Event) -> None:
        """`ended`: the plane's loop has returned, and its last answers have been delivered."""
        self._plane = plane
        self._ended = ended

    async def register(self, node: int, spec: ImageSpec) -> int:
        """As DataPlane.register. ESHUTDOWN when the loop has ended."""
        return _or_shutdown(await self._until_ended(lambda: self._plane.register(node, spec)))

    async def unregister(self, node: int) -> int:
        """As DataPlane.unregister. When the loop has ended, nothing is in flight any more: 0."""
        return await self._until_ended(lambda: self._plane.unregister(node)) or 0

    async def truncate(self, node: int, size: int) -> None:
        """As DataPlane.truncate. ESHUTDOWN when the loop has ended."""

        async def command() -> int:
            await self._plane.truncate(node, size)
            return 0

        _or_shutdown(await self._until_ended(command))

    async def open_driver(self, driver: str) -> None:
        """As DataPlane.open_driver. ESHUTDOWN when the loop has ended."""

        async def command() -> int:
            await self._plane.open_driver(driver)
            return 0

        _or_shutdown(await self._until_ended(command))

    async def _until_ended(self, command: Callable[[], Awaitable[int]]) -> int | None:
        """The command's result, or None when the loop ended before it answered. OSError as it raises."""
        if self._ended.is_set():
            return None
        results: list[int] = []
        errors: list[OSError] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                try:
                    results.append(await command())
                except OSError as error:  # kept out of the nursery, which would wrap it in a group
                    errors.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await self._ended.wait()
            nursery.cancel_scope.cancel()
        if errors:
            raise errors[0]
        return results[0] if results else None


def _or_shutdown(result: int | None) -> int:
    if result is None:
        raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
    return result
