"""The running server: the data plane's thread and pyfuse3 in one trio loop, from INIT to the last sync.

Order of the end, whatever began it (umount from anywhere, a signal, a failure):

1. unmounting, if nobody has done it: no new requests. A busy mount is detached lazily, and the plane is
   told to stop: what it has accepted is finished, the rest stays unread.
2. the plane's loop returns. Until then pyfuse3 is served, because unmounting sends requests as well.
3. `close_all`: every image is synced, unlocked and closed.
4. pyfuse3 ends, then the plane is freed, and the /dev/fuse descriptor is closed last: closing it is what
   makes the kernel answer ENOTCONN to whoever still holds a file of a lazily detached mount.

Runs in trio's thread, which never calls into the mounted file system: that could only be answered by
itself. Threads do it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyfuse3
import trio

import aiofs

from . import info, locks, privilege
from .choice import Drivers
from .commands import Commands
from .config import MountConfig
from .dataplane import LATENCY_LIMITS_NS, DataPlane, FaultCounts, fault_counts, set_faults
from .errors import AiofsError, reason
from .exchange import keep_exchange, kept_exchange, negotiated
from .fs import Operations
from .fusermount import Unmounting, clear_hint
from .helping import KeepersHelp, OwnHelp
from .images import ImageTable
from .keeperlink import KeeperLink
from .ledger import Ledger
from .memory import Memory
from .mounttable import Mount
from .outcome import Outcome
from .service import Service
from .source import Kind, Source

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_TASKS = 32
"""Requests that pyfuse3 handles at once."""
SOCKET_BUFFER_BYTES = 4 << 20
"""A message of MAX_REQUEST_BYTES and its bookkeeping must fit into the socket, several times."""
OTHER_NAMESPACES_S = 5.0
"""How long after an unmount the kernel may take to end the connection; longer: it is mounted elsewhere."""
EXCHANGE_LOOK_S = 0.002
"""How often a successor looks whether pyfuse3 has answered INIT: there is no event for it."""
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python's socket module does not have it


@dataclass(frozen=True)
class Assignment:
    """What a server is to do, and whom it tells of it."""

    config: MountConfig
    outcome: Outcome
    service: Service
    link: KeeperLink | None
    """To the process that starts another server when this one dies; None: nobody does."""


@dataclass(frozen=True)
class Mounted:
    """What the steps before the server have made."""

    assignment: Assignment
    drivers: Drivers
    source: Source
    mount: Mount
    fuse_fd: int
    """Given to the server, which closes it."""
    said: frozenset[str]
    """Warnings of the mount that its images need not repeat."""
    memory: Memory
    ledger: Ledger
    successor: bool
    """The mount had a server before this one: what it left in the ledger and in the kernel is taken over."""


def forward_pair() -> tuple[socket.socket, socket.socket]:
    """The sockets between the planes: the data plane's end, pyfuse3's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)
        except PermissionError:  # an ordinary user gets what net.core.wmem_max allows
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ours, theirs


class Server:
    """One mount at work. `run` is the whole of its life."""

    def __init__(self, mounted: Mounted) -> None:
        self._config = mounted.assignment.config
        self._drivers = mounted.drivers
        self._source = mounted.source
        self._mount = mounted.mount
        self._fuse_fd = mounted.fuse_fd
        self._service = mounted.assignment.service
        self._outcome = mounted.assignment.outcome
        self._ledger = mounted.ledger
        self._link = mounted.assignment.link
        self._memory = mounted.memory
        self._help = KeepersHelp(self._link) if self._link is not None else OwnHelp(self._mount)
        self._started = time.time()
        self._predecessors_init = kept_exchange(mounted.ledger) if mounted.successor else None
        self._ended = trio.Event()
        """The plane's loop has returned."""
        self._unanswering = trio.Event()
        """Nor will it answer any more."""
        self._stopping = False
        """The mount is to end."""
        self._handing_over = False
        """This server is to end, and another one takes its place."""
        self._ready = False
        self._forward, pyfuse3_end = forward_pair()
        self._pyfuse3_fd = pyfuse3_end.detach()  # libfuse will close it
        self._pyfuse3_open = False
        self._privileges = self._limit_privileges()  # before the plane, which has threads
        self._plane = DataPlane(
            self._fuse_fd,
            self._forward.fileno(),
            queue_depth=self._config.queue_depth,
            merge=self._config.merge,
            progress=self._ledger.progress_place(),
            predecessor_init=self._predecessors_init[0] if self._predecessors_init else b"",
        )
        if self._config.faults:
            set_faults(self._config.faults)
            log.warning("AIO driver %s: requests of this mount fail on purpose", self._config.asked_driver)
        self._table = ImageTable(
            source=self._source,
            plane=Commands(self._plane, self._unanswering),
            drivers=self._drivers,
            cache=self._config.cache,
            read_only=self._config.read_only,
            ledger=self._ledger,
            locked_by=self._locked_by,
            said=mounted.said,
            link=self._link,
        )

    def _limit_privileges(self) -> privilege.Privileges:
        """Give up what serving does not take. For the main thread, while it is the only one."""
        keeper = self._link is not None
        keep = privilege.needs(self._config, self._source.kind, keeper=keeper)
        return privilege.limit(keep, keeper=keeper)

    async def run(self, on_ready: Callable[[], None]) -> list[str] | None:
        """Serve until the end; what could not be synced, one sentence each. AiofsError: it failed.

        None: the mount has not ended, another server takes it over. `on_ready` is called when the mount
        answers.
        """
        token = trio.lowlevel.current_trio_token()
        self._plane.start(lambda: token.run_sync_soon(self._ended.set))
        failures: list[str] | None = []
        listening = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(self._stop_on_signal)
                    nursery.start_soon(self._deliver_answers)
                    nursery.start_soon(self._follow_keeper, listening)
                    await self._open_driver()
                    if self._predecessors_init is not None:
                        self._table.follow_a_server()
                    await self._table.restore()
                    await self._serve_names(on_ready)
                finally:
                    try:
                        with trio.CancelScope(shield=True):
                            failures = await self._wind_down()
                    finally:
                        listening.cancel()
                nursery.cancel_scope.cancel()
        finally:
            self._close()
        self._check_result()
        return failures

    # -- the beginning --

    async def _open_driver(self) -> None:
        """One that was named starts with the mount, so that its errors show; others with their images."""
        if self._config.aio is None:
            return
        asked = self._config.asked_driver
        try:
            await self._plane.open_driver(asked)
        except OSError as error:
            raise AiofsError(
                f"AIO driver {asked} failed to start: {reason(error)}; "
                f"try another one, or leave the choice to aiofs: --aio auto"
            ) from error

    async def _deliver_answers(self) -> None:
        # Not cancelled with the rest: who waits for an answer at the end gets it, as long as the loop runs.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._plane.answers)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        self._unanswering.set()

    async def _serve_names(self, on_ready: Callable[[], None]) -> None:
        """pyfuse3, from INIT until the plane's loop has returned and the last handler has ended."""
        operations = Operations(
            table=self._table,
            files={b"info.json": self._info, b"metrics": self._metrics},
            ledger=self._ledger,
            before_first=self._keep_exchange,
        )
        # libfuse takes the socket for /dev/fuse. The options of the mount were fusermount3's business.
        pyfuse3.init(operations, f"/dev/fd/{self._pyfuse3_fd}", set())
        self._pyfuse3_open = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pyfuse3.main(max_tasks=MAX_TASKS))
            nursery.start_soon(self._take_over if self._predecessors_init else self._become_ready, on_ready)
            await self._ended.wait()
            # Handlers that are at work end by themselves, since their commands end with the loop.
            pyfuse3.terminate()

    def _keep_exchange(self) -> None:
        """Before anybody has an answer: who has one is served by the next server, too."""
        exchange = self._plane.init_exchange()
        if exchange is not None and self._predecessors_init is None:
            keep_exchange(self._ledger, exchange)

    async def _become_ready(self, on_ready: Callable[[], None]) -> None:
        """Ready is: INIT has been exchanged and the root answers; until then the kernel holds the stat."""
        try:
            st = await trio.to_thread.run_sync(os.stat, self._mount.mountpoint, abandon_on_cancel=True)
        except OSError as error:
            if self._stopping or self._ended.is_set():
                return
            where = self._mount.mountpoint
            raise AiofsError(f"the mount on {where} does not answer: {reason(error)}") from error
        if st.st_dev != self._mount.device:
            return  # unmounted meanwhile
        self._ready = True
        log.info(
            "%s on %s: AIO driver %s, cache %s",
            self._source.describe(),
            self._config.mountpoint,
            self._config.asked_driver,
            self._config.cache or "auto",
        )
        self._service.ready(f"serving {self._source.describe()} on {self._config.mountpoint}")
        on_ready()

    async def _take_over(self, on_ready: Callable[[], None]) -> None:
        """Ready is: pyfuse3 has answered the replayed INIT as its predecessor did. Then requests are read."""
        while (exchange := self._plane.init_exchange()) is None and not self._ended.is_set():
            await trio.sleep(EXCHANGE_LOOK_S)
        if exchange is None or self._predecessors_init is None:
            return  # the plane has failed, and says why
        if negotiated(exchange[1]) != negotiated(self._predecessors_init[1]):
            raise AiofsError(
                "this version of aiofs or of libfuse agrees on other features with the kernel than the one "
                "that made the mount; unmount it, and mount it again"
            )
        await self._plane.serve()
        self._ready = True
        log.info("%s: another server has taken over", self._config.mountpoint)
        self._service.ready(f"serving {self._source.describe()} on {self._config.mountpoint}")
        on_ready()

    async def _follow_keeper(self, listening: trio.CancelScope) -> None:
        """End when another server stands by; say so when there will be none.

        Not cancelled with the rest, but with `listening`: to unmount takes the keeper's answer.
        """
        if self._link is None:
            return
        with listening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hand_over, self._link)
                await self._link.listen()
                nursery.cancel_scope.cancel()
            log.warning(
                "the keeper of %s has died: the mount goes on, but will end with this server (pid %d)",
                self._config.mountpoint,
                os.getpid(),
            )

    async def _hand_over(self, link: KeeperLink) -> None:
        await link.handing_over.wait()
        self._handing_over = True
        self._plane.stop()

    # -- the end --

    async def _stop_on_signal(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for known in STOP_SIGNALS:
            # What the receiver leaves behind: one more signal shall not kill a server that is about to end.
            signal.signal(known, lambda *_: None)
        with trio.open_signal_receiver(*STOP_SIGNALS) as received:
            # They were blocked since before the mount was made: none could leave it without a server.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in received:
                    name = signal.Signals(number).name
                    if self._stopping:
                        log.info("%s: already stopping, everything is being brought to disk", name)
                        continue
                    log.info("%s: stopping", name)
                    self._stopping = True
                    self._service.stopping()
                    nursery.start_soon(self._service.ask_for_time)
                    nursery.start_soon(self._unmount)

    async def _unmount(self) -> None:
        """End the mount from inside; the plane's loop returns after it."""
        try:
            how = await self._unmount_ours(lazy=False)
            if how is Unmounting.BUSY:
                await self._detach()
                return
        except AiofsError as error:
            log.warning("%s", error)
            self._plane.stop()
            return
        with trio.move_on_after(OTHER_NAMESPACES_S):
            await self._ended.wait()
        if not self._ended.is_set():
            log.warning("still mounted in another mount namespace; stopping all the same")
            self._plane.stop()

    async def _detach(self) -> None:
        """Take a busy mount away from its users: lazily, so that the mountpoint is free again."""
        found = await self._help.name_holders()
        log.warning(
            "%s is busy, held by %s; detaching it, they will get errors",
            self._mount.mountpoint,
            "; ".join(found) or "somebody who cannot be seen from here",
        )
        await self._unmount_ours(lazy=True)
        self._plane.stop()

    async def _unmount_ours(self, *, lazy: bool) -> Unmounting:
        """AiofsError, with the command that helps where nobody is left who may unmount."""
        try:
            return await self._help.unmount(lazy)
        except AiofsError as error:
            if self._link is None or not self._link.gone:
                raise
            where = self._mount.mountpoint
            raise AiofsError(f"cannot unmount {where}: {error}; clear it: {clear_hint(where)}") from error

    async def _locked_by(self, fd: int) -> list[locks.Holder]:
        try:
            return await self._help.locked_by(fd)
        except AiofsError as error:
            log.debug("who has the lock cannot be seen: %s", error)
            return []

    async def _wind_down(self) -> list[str] | None:
        """Steps 1 to 3 of the end, as far as not done; what could not be synced. Nothing may cancel it.

        None: the mount goes on, with another server.
        """
        if await self._leaves_the_mount():
            await self._table.close_all()
            return None
        self._service.stopping()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._service.ask_for_time)
            failures = await self._bring_to_disk()
            nursery.cancel_scope.cancel()
        return failures

    async def _leaves_the_mount(self) -> bool:
        """Whether another server follows, the mount's end not having been asked for. Stops the plane then."""
        if (
            self._link is None
            or self._link.gone
            or self._stopping
            or not (self._ready or self._predecessors_init)
        ):
            return False
        if not self._ended.is_set():
            self._plane.stop()
            await self._ended.wait()
        return self._plane.result != 0

    async def _bring_to_disk(self) -> list[str]:
        if not self._ended.is_set():  # a failure of ours, not an unmount
            self._stopping = True
            self._plane.stop()
            await self._ended.wait()
        if self._plane.result != 0:
            # Stopped, or failed: the mount may still be there, and nobody serves it.
            with suppress(AiofsError):
                await self._unmount_ours(lazy=True)
        failures = [f"{failure.filename}: {reason(failure)}" for failure in await self._table.close_all()]
        failures += await self._sync_closed()
        self._outcome.write(failures)
        return failures

    async def _sync_closed(self) -> list[str]:
        """Bring what was written to images closed earlier to disk: close(2) does not, umount promises it."""
        if self._config.read_only:
            return []
        sync = os.fdatasync if self._source.kind is Kind.DEVICE else pyfuse3.syncfs
        what: Any = self._source.device_fd
        if self._source.kind is not Kind.DEVICE:
            what = f"/proc/self/fd/{self._source.root_fd}"
        try:
            await trio.to_thread.run_sync(sync, what)
        except OSError as error:
            return [f"{self._source.path}: {reason(error)}"]
        return []

    def _close(self) -> None:
        """Step 4."""
        if self._pyfuse3_open:
            pyfuse3.close(unmount=False)
        else:
            os.close(self._pyfuse3_fd)
        self._plane.close()
        self._forward.close()
        os.close(self._fuse_fd)

    def _check_result(self) -> None:
        result = self._plane.result
        if result is not None and result < 0:
            raise AiofsError(f"the data plane failed: {os.strerror(-result)}")
        if not self._ready and not self._handing_over:
            raise AiofsError(f"the mount on {self._mount.mountpoint} was ended before it was ready")

    # -- info --

    # The texts are made in a thread: of thousands of images that takes long, and others want to open theirs.

    def _lineage(self) -> info.Lineage:
        """Which processes the mount hangs on."""
        if self._link is None or self._link.gone:
            return info.Lineage(os.getpid(), self._outcome.fd, self._started, 0, None)
        order, keeper = self._link.order, self._link.order.keeper
        return info.Lineage(
            keeper["pid"], keeper["outcome_fd"], order.started, self._link.restarts, keeper["address"]
        )

    async def _info(self) -> bytes:
        told = self._told()
        return await trio.to_thread.run_sync(lambda: json.dumps(told, indent=1).encode() + b"\n")

    async def _metrics(self) -> bytes:
        told = self._told()

        def text() -> bytes:
            from . import metrics  # imports a library that a mount without Prometheus can do without

            return metrics.text(told)

        return await trio.to_thread.run_sync(text)

    def _told(self) -> dict[str, Any]:
        return info.build(
            version=aiofs.__version__,
            config=self._config,
            source_kind=self._source.kind.value,
            lineage=self._lineage(),
            privileges=vars(self._privileges),
            exchange=self._plane.init_exchange(),
            memory=vars(self._memory),
            plane=self._plane.counters(),
            faults=self._faults(),
            latency_limits_ns=LATENCY_LIMITS_NS,
            images=map(vars, self._table.info()),
            closed=self._table.closed(),
        )

    def _faults(self) -> FaultCounts | None:
        return fault_counts(self._config.faults) if self._config.faults else None
