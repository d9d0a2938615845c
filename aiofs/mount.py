"""`aiofs mount`, in order: check, choose the driver, open the source, mount, serve, close.

Where the kernel lets a mount outlive its server, a keeper is started, and this is done by the server that it
starts (orders.py); otherwise here. Every step that fails undoes the ones before it and raises AiofsError; a
mount exists either with a server behind it or not at all.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from . import background, checks, fusermount, keeper, logs, mounttable, survival
from .config import CacheMode, MountConfig
from .errors import AiofsError, BadInput, reason

if TYPE_CHECKING:
    from .choice import Drivers
    from .headstart import HeadStart
    from .keeperlink import KeeperLink
    from .ledger import Ledger
    from .mounttable import Mount
    from .server import Assignment, Mounted
    from .source import Source

log = logging.getLogger(__name__)


def run(config: MountConfig, begun: HeadStart | None = None) -> int:
    """Mount as asked, here or in the background; the exit status. `begun`: this is the background already."""
    if config.foreground:
        return _serve_or_keep(config, None, begun)
    if begun is not None:
        return _in_background(config, begun.report_fd, begun)
    return background.launch(lambda report_fd: _in_background(config, report_fd, None))


def _in_background(config: MountConfig, report_fd: int, begun: HeadStart | None) -> int:
    """In a child, whose stderr nobody will see: what goes wrong is told to the parent and logged."""
    os.setsid()
    background.leave_terminal(config.log_file)
    report = background.Report(report_fd)
    try:
        return _serve_or_keep(config, report, begun)
    except AiofsError as error:
        report.failed(error)
        log.error("%s", error)
        return error.exit_status
    except BaseException as error:
        report.failed(AiofsError(f"internal error: {error!r}; please report it, with what --foreground says"))
        log.exception("internal error; please report this")
        raise


def _serve_or_keep(config: MountConfig, report: background.Report | None, begun: HeadStart | None) -> int:
    if config.survive and not survival.why_not(os.uname().release):
        return keeper.keep(config, report, begun)
    if begun is not None:
        begun.drop()
    return _serve_alone(config, report)


def _serve_alone(config: MountConfig, report: background.Report | None) -> int:
    """Without a keeper: the mount ends with this process."""
    from .outcome import Outcome
    from .server import Assignment
    from .service import Manager, Service

    logs.start(config.log_level, config.log_file, foreground=config.foreground)
    if config.survive:
        log.warning("the mount ends when its server dies: %s", survival.why_not(os.uname().release))
    manager = Manager.of_environment() if config.foreground else Manager()
    service = Service(manager.send if manager.address else None)
    assignment = Assignment(config, Outcome(), service, link=None)
    return serve(assignment, report.ready if report is not None else lambda: None)


def serve(assignment: Assignment, on_ready: Callable[[], None]) -> int:
    """Mount, and serve until the mount ends, or until another server takes it over; the exit status."""
    from . import memory
    from .dataplane import COUNTERS_SIZE
    from .ledger import Ledger
    from .server import Mounted

    config = assignment.config
    checks.check(config)
    # Until the server can handle them, from before there is a mount that they could leave behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    _raise_descriptor_limit()
    source, said = _open_source(config)
    limit_s = checks.request_timeout_s()
    if limit_s:
        log.warning(
            "the kernel ends a mount that takes longer than %d s for a request, as a slow disk may; "
            "to stop that: sysctl fs.fuse.default_request_timeout=0 fs.fuse.max_request_timeout=0",
            limit_s,
        )
    try:
        drivers = _choose_drivers(config, source)
        ledger = Ledger.create(COUNTERS_SIZE)
        held = memory.prepare()  # before there is a mount that memory could wait for, and before our threads
        mount, fuse_fd = _mount(config)
        if assignment.link is not None:
            assignment.link.mounted(mount, fuse_fd, ledger.fd)
        mounted = Mounted(assignment, drivers, source, mount, fuse_fd, said, held, ledger, successor=False)
        return _serve_mounted(mounted, on_ready)
    finally:
        source.close()


def take_over(assignment: Assignment, link: KeeperLink, mount: Mount, fuse_fd: int, ledger: Ledger) -> int:
    """Serve a mount in place of the server before this one; as `serve`."""
    from . import memory
    from .server import Mounted

    held = memory.prepare(again=True)
    _raise_descriptor_limit()
    source, said = _open_source(assignment.config, again=True)
    try:
        drivers = _choose_drivers(assignment.config, source)
        if link.order.role == "standby":
            link.prepared()
        mounted = Mounted(assignment, drivers, source, mount, fuse_fd, said, held, ledger, successor=True)
        return _serve_mounted(mounted, link.serving)
    finally:
        source.close()


def _raise_descriptor_limit() -> None:
    """Open images take up to two descriptors each; the soft limit of 1024 is for users of select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _choose_drivers(config: MountConfig, source: Source) -> Drivers:
    from .choice import Drivers
    from .evidence import Machine

    return Drivers(config.aio, source, Machine.look(), faulty=config.faults is not None)


def _open_source(config: MountConfig, *, again: bool = False) -> tuple[Source, frozenset[str]]:
    """The source, and what has been warned of that is as true of its images.

    `again`: a server before this one has warned, and holds the locks.
    """
    from .source import Source

    try:
        source = Source.open(config.source, config.read_only)
    except OSError as error:
        raise BadInput(f"cannot open source {config.source}: {reason(error)}") from error
    try:
        said = _check_cache(config, source, logging.DEBUG if again else logging.WARNING)
        if not again:
            _check_lock(config, source)
    except OSError as error:
        source.close()
        raise BadInput(f"cannot read source {config.source}: {reason(error)}") from error
    except BadInput:
        source.close()
        raise
    return source, said


def _check_cache(config: MountConfig, source: Source, level: int) -> frozenset[str]:
    """O_DIRECT by name works or is refused; O_DIRECT by default gives way, and says so."""
    from .directio import DirectUnsupported, check_direct

    if config.cache is CacheMode.UNSAFE:
        log.log(
            level, "cache mode unsafe: fsync is ignored; a crash or power failure loses or corrupts images"
        )
    if config.cache is not None and not config.cache.direct:
        return frozenset()
    try:
        check_direct(source)
    except DirectUnsupported as error:
        if config.cache is not None:
            raise BadInput(str(error)) from None
        log.log(level, "no O_DIRECT for %s: %s; using --cache writeback", config.source, error.__cause__)
        return frozenset({str(error.__cause__)})
    return frozenset()


def _check_lock(config: MountConfig, source: Source) -> None:
    """A single image that somebody else uses is refused now; one in a directory is when it is opened."""
    from . import locks
    from .source import Kind

    if source.kind is not Kind.FILE:
        return
    write = not config.read_only and os.access(config.source, os.W_OK)
    fd = source.open_file(source.root_fd, source.name, os.O_RDWR if write else os.O_RDONLY)
    try:
        (locks.lock_for_writing if write else locks.lock_for_reading)(fd)
    except locks.LocksUnsupported:
        pass  # the image table says so
    except locks.LockConflict:
        who = (
            ", ".join(map(str, locks.locked_by(locks.Locked.ours(fd))))
            or "another process (root can see which)"
        )
        raise BadInput(f"image {config.source} is locked by {who}; end that, or mount a copy") from None
    finally:
        os.close(fd)


def _mount(config: MountConfig) -> tuple[mounttable.Mount, int]:
    """Make the mount; what the table of mounts says of it, and its /dev/fuse descriptor."""
    options = fusermount.mount_options(
        str(config.source),
        allow_other=config.allow_other,
        read_only=config.read_only,
        noexec=config.noexec,
    )
    fuse_fd = fusermount.mount(config.mountpoint, options)
    mount = mounttable.mount_at(config.mountpoint)
    if mount is None or not mount.is_aiofs:
        os.close(fuse_fd)
        raise AiofsError(f"the mount on {config.mountpoint} vanished as soon as it was made")
    return mount, fuse_fd


def _serve_mounted(mounted: Mounted, on_ready: Callable[[], None]) -> int:
    import trio

    from .server import Server

    try:
        server = Server(mounted)
    except BaseException:
        if not mounted.successor:
            with suppress(AiofsError):
                fusermount.unmount(mounted.mount.mountpoint, lazy=True)
        os.close(mounted.fuse_fd)
        raise
    try:
        failures = trio.run(server.run, on_ready)
    except BaseExceptionGroup as group:
        # trio wraps what its tasks raise; a sentence meant for the user is taken out again.
        raise _sentence_of(group) from group
    if failures is None:
        return 0  # the mount goes on without this server
    told = mounted.assignment
    for failure in failures:
        log.error("not on disk: %s", failure)
    if failures:
        told.service.status(f"not on disk: {'; '.join(failures)}")
    log.info("%s unmounted%s", told.config.mountpoint, "" if failures else ", everything is on disk")
    status = 1 if failures else 0
    if told.link is not None:
        told.link.ended(status)
    return status


def _sentence_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        found = _sentence_of(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, AiofsError):
            return found
    return group
