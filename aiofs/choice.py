"""The drivers of one mount: one that the user named, or one decided for each image; and what becomes of it
when the kernel refuses a driver later.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Protocol

import trio

from .errors import reason
from .evidence import ImageEvidence, Machine, Surroundings
from .faults import PREFIX
from .select import Decision, Direct, decide, named
from .source import Source
from .trial import Queues

log = logging.getLogger(__name__)


class Opener(Protocol):
    """What is needed of the data plane."""

    async def open_driver(self, driver: str) -> None: ...


class Drivers:
    """Says which driver serves an image. A driver that was named is never replaced."""

    def __init__(self, asked: str | None, source: Source, machine: Machine, *, faulty: bool = False) -> None:
        """BadInput when `asked` does not work here. `faulty`: faults are put before whatever is chosen."""
        self._prefix = PREFIX if faulty else ""
        self._machine = machine
        self._surroundings = Surroundings.of(source, machine)
        self._named = named(asked, list(machine.statuses.values())) if asked else None
        self._open: set[str] = set()
        self._said: set[tuple[str, str]] = set()

    async def choose(self, plane: Opener, name: str, fd: int, direct: Direct, read_only: bool) -> Decision:
        """The driver for an image, its queue open in the data plane.

        OSError when the kernel refuses the one that was named. BadInput when none works.
        """
        while True:
            decision = self._named
            if decision is None:
                decision = await trio.to_thread.run_sync(self._decide, fd, direct, read_only)
            if not await self._are_open(plane, decision):
                continue
            self._say(name, decision)
            wide = self._prefix + decision.wide_driver if decision.wide_driver else ""
            return replace(decision, driver=self._prefix + decision.driver, wide_driver=wide)

    async def _are_open(self, plane: Opener, decision: Decision) -> bool:
        """Open the queues that a decision needs. False: one was refused, so another decision is needed."""
        for driver in (decision.driver, decision.wide_driver):
            if driver in ("", *self._open):
                continue
            try:
                await plane.open_driver(self._prefix + driver)
            except OSError as error:
                self._refuse(driver, error)
                return False
            self._open.add(driver)
        return True

    def _decide(self, fd: int, direct: Direct, read_only: bool) -> Decision:
        st = os.fstat(fd)
        with Queues() as queues:
            evidence = ImageEvidence(
                surroundings=self._surroundings,
                queues=queues,
                fd=fd,
                direct=direct,
                size=st.st_size,
                allocated=st.st_blocks * 512,
                read_only=read_only,
            )
            return decide(evidence)

    def _refuse(self, driver: str, error: OSError) -> None:
        """Go on without this driver, and say so once: it is not asked again."""
        if self._named is not None or driver == "sync":
            raise error
        if not self._machine.statuses[driver].works:
            return  # another image has met it meanwhile
        why = f"it passed its tests, but failed to start: {reason(error)}"
        log.warning("AIO driver %s failed to start: %s; going on without it", driver, reason(error))
        self._machine.refuse(driver, why)

    def _say(self, name: str, decision: Decision) -> None:
        """The first image of each kind is worth a line, the others are not."""
        key = (decision.driver, decision.reason)
        level = logging.DEBUG if key in self._said or self._named else logging.INFO
        self._said.add(key)
        log.log(level, "%s: AIO driver %s (%s)", name, decision.driver, decision.reason)
