"""The keeper: the process that holds a mount while its servers come and go.

It holds what ends with the last process that has it open: the /dev/fuse descriptor, without which the mount
is gone, and the ledger. A server that dies, or is replaced (`aiofs restart`), leaves requests unanswered in
the kernel; the next one gets both descriptors, restores what the ledger says, and has the kernel send the
requests again. Whoever uses the mount waits meanwhile, and sees no error.

A server says `ended` before it ends for good: because the mount has ended, or cannot begin. One that ends
without is replaced, unless several in a row (FAILURES) did not answer a single request: then the mount is
given up, so that its users get errors instead of waiting for ever.

Small, and bound to stay alive: it never touches the mount or an image, and imports nothing of the server's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import ledger, logs, outcome
from .background import Report
from .channel import Channel, Message
from .config import MountConfig
from .errors import AiofsError, BadInput, reason
from .program import Process, Program
from .service import Manager

if TYPE_CHECKING:
    from .headstart import HeadStart

log = logging.getLogger(__name__)

FAILURES = 5
"""Servers in a row that were asked something and end without having answered anything: it is given up."""
_PAUSE_S = 0.1
"""Before a server is started after one that answered nothing; doubled each time."""
ERRANDS = 4
"""Done for its servers at once, at most."""
CLIENTS = 8
"""Connections that have not said yet what they want, at most."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class _Server:
    """A server process, as its keeper knows it."""

    program: Program
    config: MountConfig
    process: Process
    prepared: bool = False
    serving: bool = False
    before: tuple[int, int] = (0, 0)
    """The ledger's progress when it began to serve."""
    ended: int | None = None
    """The exit status of the mount, said before the process ends for good."""
    failed: Message | None = None

    @property
    def channel(self) -> Channel:
        return self.process.channel


@dataclass
class _Restart:
    """A planned restart: who asked for it, and the server that stands by."""

    client: Channel
    standby: _Server


@dataclass
class Keeper:
    """One mount's keeper. `run` is the whole of its life."""

    config: MountConfig
    report: Report | None
    """Where a command waits in the foreground for the mount to be ready; None: the keeper is that command."""
    begun: HeadStart | None = None
    """The first server, if it has been started already."""
    program: Program = field(default_factory=Program)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._manager = Manager.of_environment() if self.config.foreground else Manager()
        self._outcome = outcome.Outcome()
        self._server: _Server | None = None
        self._restart: _Restart | None = None
        self._held: list[int] = []
        """/dev/fuse and the ledger, as soon as there is a mount."""
        self._orphans: dict[int, int] = {}
        """Descriptors (O_PATH) of open images that have no name any more, by node id."""
        self._mount: dict[str, Any] = {}
        self._started = time.time()
        self._restarts = 0
        self._failures = 0
        self._errands = 0
        self._clients = 0
        self._start_at: float | None = None
        """When the next server is to be started, on the monotonic clock."""
        self._ready = False
        """The mount has answered."""
        self._stopping = False
        self._address = f"aiofs-{os.getpid()}-{os.urandom(8).hex()}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._status: int | None = None

    def run(self) -> int:
        """Keep the mount until it ends; its exit status. AiofsError: it never was, or is given up."""
        self._listener.bind("\0" + self._address)
        self._listener.listen(4)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        wakeup, wake = socket.socketpair()
        for end in (wakeup, wake):
            end.setblocking(False)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._stop(wakeup))
        before = {number: signal.signal(number, lambda *_: None) for number in _STOP_SIGNALS}
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        try:
            begun = self.begun.take() if self.begun is not None else None
            self._server = self._start(self.program, self.config, "first", begun)
            while self._status is None:
                for key, _ in self._selector.select(self._timeout()):
                    if key.fd in self._selector.get_map():
                        key.data()
                if self._start_at is not None and time.monotonic() >= self._start_at:
                    self._start_at = None
                    self._start_successor()
            return self._status
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in (*self._held, *self._orphans.values()):
                os.close(fd)
            self._listener.close()

    def _timeout(self) -> float | None:
        return None if self._start_at is None else max(self._start_at - time.monotonic(), 0)

    # -- servers --

    def _start(
        self, program: Program, config: MountConfig, role: str, begun: Process | None = None
    ) -> _Server:
        process = begun or program.start()
        server = _Server(program, config, process)
        order = {
            "role": role,
            "config": config.to_words(),
            "mount": self._mount,
            "keeper": {"pid": os.getpid(), "address": self._address, "outcome_fd": self._outcome.fd},
            "started": self._started,
            "restarts": self._restarts,
            "service": bool(self._manager.address),
            "report": self.report is not None,
            "orphans": list(self._orphans),
        }
        with contextlib.suppress(OSError):  # it died at once: its end is seen
            server.channel.send(order, [self._outcome.fd, *self._held, *self._orphans.values()])
        self._selector.register(server.channel, selectors.EVENT_READ, lambda: self._hear(server))
        self._selector.register(process.pidfd, selectors.EVENT_READ, lambda: self._bury(server))
        return server

    def _start_successor(self) -> None:
        try:
            self._server = self._start(self.program, self.config, "successor")
        except OSError as error:  # no process to be had, at the moment
            self._failed(reason(error))

    def _hear(self, server: _Server) -> bool:
        """Take one message of a server; False: it has closed its end."""
        received = server.channel.receive()
        if received is None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(server.channel)
            return False
        message, fds = received
        match message.pop("is"):
            case "mounted" if not self._held:
                self._mount, self._held, fds = message["mount"], fds, []
            case "errand":
                self._go(server, message)
            case "say":
                if self.report is not None:
                    self.report.say(message["text"])
            case "failed":
                server.failed = message
            case "prepared":
                server.prepared = True
                self._hand_over()
            case "serving":
                self._serves(server)
            case "ended":
                server.ended = message["status"]
            case "hold":
                [self._orphans[message["ino"]]], fds = fds, []
            case "drop" if message["ino"] in self._orphans:
                os.close(self._orphans.pop(message["ino"]))
            case "notify":
                self._manager.send(*message["lines"])
        for fd in fds:
            os.close(fd)
        return True

    def _serves(self, server: _Server) -> None:
        server.serving = True
        server.before = ledger.progress(self._held[1])
        self.program, self.config = server.program, server.config
        if not self._ready:
            self._ready = True
            if self.report is not None:
                self.report.ready()
        if self._restart is not None and self._restart.standby is server:
            self._tell_client({"is": "done", "restarts": self._restarts})
        if self._stopping:
            server.process.signal(signal.SIGTERM)

    def _got_anywhere(self, server: _Server) -> bool:
        """It served, and answered something; or nothing was asked of it."""
        asked, answered = ledger.progress(self._held[1])
        return server.serving and (answered != server.before[1] or asked == server.before[0])

    def _bury(self, server: _Server) -> None:
        """A server has ended: is that the end of the mount, or is there to be another one?"""
        while select.select([server.channel], [], [], 0)[0] and self._hear(server):
            pass
        self._selector.unregister(server.process.pidfd)
        with contextlib.suppress(KeyError):
            self._selector.unregister(server.channel)
        status = server.process.wait()
        server.process.close()
        standby = self._restart.standby if self._restart is not None else None
        if server is standby and server is not self._server:
            self._tell_client({"is": "failed", **(server.failed or _death(status))})
            return
        self._server = None
        if server.ended is not None:
            self._status = server.ended
        elif not self._ready and (not self._held or server.failed is not None):
            self._end_unmounted(server, status)
        elif standby is not None and standby is not server and standby.prepared:
            self._restarts += 1
            self._server = standby
            with contextlib.suppress(OSError):
                order = {"is": "take_over", "restarts": self._restarts, "orphans": list(self._orphans)}
                standby.channel.send(order, list(self._orphans.values()))
        else:
            self._replace(server, status)

    def _end_unmounted(self, server: _Server, status: int) -> None:
        """There is no mount, or one that has never answered: what the server says of it is all there is.

        One that died without a word may have answered before it could say so; its successor finds out.
        """
        if self._held:
            self._give_up_mount()
        failed = server.failed or _death(status)
        raise _error(failed)

    def _replace(self, server: _Server, status: int) -> None:
        """A server died. Another one is started; not when several did, and answered nothing."""
        if self._restart is not None and self._restart.standby is not server:
            self._restart.standby.process.signal(signal.SIGTERM)
        how = server.failed["text"] if server.failed else _death(status)["text"]
        log.error("the server of %s died (%s); starting another one", self.config.mountpoint, how)
        if self._restart is not None and self._restart.standby is server:
            self._tell_client({"is": "failed", "text": f"the new server died ({how})", "status": 1})
        self._restarts += 1
        if self._got_anywhere(server):
            self._failures = 0
            self._start_at = time.monotonic()
        else:
            self._failed(how)

    def _failed(self, how: str) -> None:
        """One more server that answered nothing: try again a little later, or give up."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._give_up_mount()
            raise AiofsError(
                f"{FAILURES} servers in a row ended without having answered anything, the last one: {how}; "
                f"{self.config.mountpoint} is given up, who uses it gets errors"
            )
        self._start_at = time.monotonic() + _PAUSE_S * 2 ** (self._failures - 1)

    def _give_up_mount(self) -> None:
        """Abort, so that nobody waits for an answer; then take the mount away."""
        from . import fusermount

        device = int(self._mount["device"])
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{os.minor(device)}/abort").write_text("1")
        for fd in self._held:
            os.close(fd)  # the last one: where the abort is not permitted, this has the same effect
        self._held = []
        try:
            fusermount.unmount(Path(self._mount["mountpoint"]), lazy=True)
        except AiofsError as error:
            log.error("%s", error)

    # -- errands --

    def _go(self, server: _Server, order: Message) -> None:
        """Have a child do what a server may not (errands.py), and answer it."""
        try:
            if self._errands == ERRANDS:
                raise OSError(errno.EAGAIN, f"{ERRANDS} errands are being done already")
            child = os.fork()
        except OSError as error:
            with contextlib.suppress(OSError):
                server.channel.send({"is": "answer", "id": order["id"], "failed": reason(error)})
            return
        if child == 0:
            self._do_errand(server, order)
        self._errands += 1
        pidfd = os.pidfd_open(child)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._back(child, pidfd))

    def _back(self, child: int, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(child, 0)
        self._errands -= 1

    def _do_errand(self, server: _Server, order: Message) -> NoReturn:
        """The child: it may block, and has nothing that keeps the mount."""
        try:
            signal.set_wakeup_fd(-1)
            os.setpgid(0, 0)  # Ctrl-C is the keeper's
            for fd in (*self._held, *self._orphans.values()):
                os.close(fd)
            from . import errands, mounttable

            try:
                answer = errands.carry_out(order, mounttable.kept(self._mount), server.process.pid)
            except (AiofsError, OSError, LookupError, TypeError, ValueError) as error:
                answer = {"failed": str(error)}
            server.channel.send({"is": "answer", "id": order["id"], **answer})
        finally:
            os._exit(0)

    # -- from outside --

    def _stop(self, wakeup: socket.socket) -> None:
        """A signal that asks for the end: it is the server that unmounts."""
        with contextlib.suppress(BlockingIOError):
            while wakeup.recv(64):
                pass
        self._stopping = True
        if self._server is not None:
            self._server.process.signal(signal.SIGTERM)

    def _accept(self) -> None:
        """Somebody wants a restart."""
        connection, _ = self._listener.accept()
        client = Channel(connection)
        if self._clients == CLIENTS:
            self._refuse(client, "too many others want it restarted")
        elif _peer_uid(connection) in (0, os.getuid()):
            self._clients += 1
            self._selector.register(client, selectors.EVENT_READ, lambda: self._begin_restart(client))
        else:
            self._refuse(client, "only root and the one who mounted it can restart it")

    def _refuse(self, client: Channel, why: str) -> None:
        with contextlib.suppress(OSError):
            client.send({"is": "failed", "text": why, "status": 1})
        client.close()

    def _begin_restart(self, client: Channel) -> None:
        """Start the next server beside the one that serves; it says `prepared`, or why it cannot serve."""
        self._selector.unregister(client)
        self._clients -= 1
        try:
            asked, fds = client.receive() or ({}, [])
            for fd in fds:
                os.close(fd)
            if self._restart is not None or self._stopping or not (self._server and self._server.serving):
                self._refuse(client, "it is being restarted, or ended, already")
                return
            config = self.config.changed(asked["settings"])
            program = Program(str(asked["python"]), str(asked["path"]))
            standby = self._start(program, config, "standby")
        except (AiofsError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            self._refuse(client, f"cannot restart: {error!r}")  # what came is no request of ours
            return
        self._restart = _Restart(client, standby)

    def _hand_over(self) -> None:
        """The next server stands by: the one that serves finishes what it has begun, and ends."""
        if self._server is None or not self._server.serving or self._restart is None:
            return  # the old one has died meanwhile; so will the new one, and its client hear of it
        log.info("restarting the server of %s", self.config.mountpoint)
        with contextlib.suppress(OSError):
            self._server.channel.send({"is": "hand_over"})

    def _tell_client(self, message: Message) -> None:
        assert self._restart is not None
        with contextlib.suppress(OSError):
            self._restart.client.send(message)
        self._restart.client.close()
        self._restart = None


def keep(config: MountConfig, report: Report | None, begun: HeadStart | None) -> int:
    """Mount as asked, and keep the mount; the exit status. AiofsError. `begun`: its first server."""
    logs.start(config.log_level, config.log_file, foreground=config.foreground)
    with contextlib.suppress(OSError):  # its servers inherit it, and say when they could not have it
        Path("/proc/self/oom_score_adj").write_text("-1000")
    return Keeper(config, report, begun).run()


def _death(status: int) -> Message:
    if status < 0:
        return {"text": f"killed by {signal.Signals(-status).name}", "status": 1}
    return {"text": f"it ended with status {status}", "status": status or 1}


def _error(failed: Message) -> AiofsError:
    kind = BadInput if failed["status"] == BadInput.exit_status else AiofsError
    return kind(failed["text"])


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)
