"""What a server does with what its keeper tells it: it mounts, or takes over a mount from a server that has
died or will be replaced. The orders come over the channel.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from . import background, logs, mount, mounttable
from .channel import Channel
from .config import MountConfig
from .dataplane import COUNTERS_SIZE
from .errors import AiofsError
from .keeperlink import KeeperLink
from .ledger import Ledger
from .outcome import Outcome
from .server import Assignment
from .service import Service

log = logging.getLogger(__name__)


def obey(channel_fd: int) -> int:
    """Serve as ordered; the exit status of this process."""
    Path("/proc/self/comm").write_text("aiofs")  # not `python`, for ps(1) and for who names a lock's holder
    os.set_inheritable(channel_fd, False)
    try:
        link = KeeperLink(Channel.of(channel_fd))
    except AiofsError:
        return 1
    try:
        return _serve(link)
    except AiofsError as error:
        link.failed(error)
        if link.order.role != "first":  # the keeper says it for the first one
            log.error("%s", error)
        return error.exit_status
    except BaseException as error:
        link.failed(AiofsError(f"internal error: {error!r}; please report it, with what --foreground says"))
        log.exception("internal error; please report this")
        return 1


def _serve(link: KeeperLink) -> int:
    order = link.order
    config = MountConfig.from_words(order.config)
    if not config.foreground:
        background.leave_terminal(config.log_file)
    logs.start(config.log_level, config.log_file, foreground=config.foreground)
    if order.report and order.role == "first":
        logs.collect(link.say)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    service = Service(link.notify if order.service else None)
    assignment = Assignment(config, Outcome(link.fds[0]), service, link)
    if order.role == "first":
        return mount.serve(assignment, link.serving)
    fuse_fd, ledger_fd = link.fds[1:]
    return mount.take_over(
        assignment, link, mounttable.kept(order.mount), fuse_fd, Ledger(ledger_fd, COUNTERS_SIZE)
    )
