"""`aiofs mount`, in order: check, choose the driver, open the source, mount, serve, close.

Every step that fails undoes the ones before it and raises AiofsError; a mount exists either with a
server behind it or not at all.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from . import background, checks, fusermount, logs, mounttable
from .config import CacheMode, MountConfig
from .errors import AiofsError, BadInput, reason

if TYPE_CHECKING:
    from .choice import Drivers
    from .server import Mounted
    from .service import Service
    from .source import Source

log = logging.getLogger(__name__)


def run(config: MountConfig) -> int:
    """Mount as asked, here or in the background; the exit status."""
    if config.foreground:
        return _serve(config, lambda: None)
    return background.launch(lambda report: _serve_reporting(config, report), config.log_file)


def _serve_reporting(config: MountConfig, report: background.Report) -> int:
    """In the background child, whose stderr nobody sees: what goes wrong is told to the parent and logged."""
    try:
        return _serve(config, report.ready)
    except AiofsError as error:
        report.failed(error)
        log.error("%s", error)
        return error.exit_status
    except BaseException as error:
        report.failed(AiofsError(f"internal error: {error!r}; please report it, with what --foreground says"))
        log.exception("internal error; please report this")
        raise


def _serve(config: MountConfig, on_ready: Callable[[], None]) -> int:
    logs.start(config.log_level, config.log_file, foreground=config.foreground)
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
    service = _service(config)
    try:
        drivers = _choose_drivers(config, source)
        failures = _serve_mounted(_mount(config, drivers, source, said, service), on_ready)
    finally:
        source.close()
    for failure in failures:
        log.error("not on disk: %s", failure)
    if failures:
        service.status(f"not on disk: {'; '.join(failures)}")
    log.info("%s unmounted%s", config.mountpoint, "" if failures else ", everything is on disk")
    return 1 if failures else 0


def _raise_descriptor_limit() -> None:
    """Open images take up to two descriptors each; the soft limit of 1024 is for users of select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _service(config: MountConfig) -> Service:
    from .service import Service

    return Service.of_environment() if config.foreground else Service()


def _choose_drivers(config: MountConfig, source: Source) -> Drivers:
    from .choice import Drivers
    from .evidence import Machine

    return Drivers(config.aio, source, Machine.look(), faulty=config.faults is not None)


def _open_source(config: MountConfig) -> tuple[Source, frozenset[str]]:
    """The source, and what has been warned of that is as true of its images."""
    from .source import Source

    try:
        source = Source.open(config.source, config.read_only)
    except OSError as error:
        raise BadInput(f"cannot open source {config.source}: {reason(error)}") from error
    try:
        said = _check_cache(config, source)
        _check_lock(config, source)
    except OSError as error:
        source.close()
        raise BadInput(f"cannot read source {config.source}: {reason(error)}") from error
    except BadInput:
        source.close()
        raise
    return source, said


def _check_cache(config: MountConfig, source: Source) -> frozenset[str]:
    """O_DIRECT by name works or is refused; O_DIRECT by default gives way, and says so."""
    from .directio import DirectUnsupported, check_direct

    if config.cache is CacheMode.UNSAFE:
        log.warning("cache mode unsafe: fsync is ignored; a crash or power failure loses or corrupts images")
    if config.cache is not None and not config.cache.direct:
        return frozenset()
    try:
        check_direct(source)
    except DirectUnsupported as error:
        if config.cache is not None:
            raise BadInput(str(error)) from None
        log.warning("no O_DIRECT for %s: %s; using --cache writeback", config.source, error.__cause__)
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
        who = ", ".join(map(str, locks.locked_by(fd))) or "another process (root can see which)"
        raise BadInput(f"image {config.source} is locked by {who}; end that, or mount a copy") from None
    finally:
        os.close(fd)


def _mount(
    config: MountConfig, drivers: Drivers, source: Source, said: frozenset[str], service: Service
) -> Mounted:
    from .server import Mounted

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
    return Mounted(config, drivers, source, mount, fuse_fd, said, service)


def _serve_mounted(mounted: Mounted, on_ready: Callable[[], None]) -> list[str]:
    import trio

    from .server import Server

    try:
        server = Server(mounted)
    except BaseException:
        with suppress(AiofsError):
            fusermount.unmount(mounted.mount.mountpoint, lazy=True)
        os.close(mounted.fuse_fd)
        raise
    try:
        return trio.run(server.run, on_ready)
    except BaseExceptionGroup as group:
        # trio wraps what its tasks raise; a sentence meant for the user is taken out again.
        raise _sentence_of(group) from group


def _sentence_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        found = _sentence_of(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, AiofsError):
            return found
    return group
