"""Fixtures for tests that mount. `mounted` starts a server, waits until it answers, and always cleans up.

A test that leaves its mount to the fixture gets two checks for nothing: the server ended with status 0,
and its log held no warning and no error but those that the test allowed (`MountedFs.allow`).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import leftovers
import pytest
from mounting import MountedFs, is_mounted, require_mounts, unmount
from turns import turn


def pytest_addoption(parser: pytest.Parser) -> None:
    """--long: the nightly tests, too."""
    parser.addoption("--long", action="store_true", help="run tests marked `long`, and others for longer")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Once, before any worker: what a run that was killed left behind would make tests of this one fail."""
    if hasattr(session.config, "workerinput"):
        return
    for left in leftovers.clear(Path(tempfile.gettempdir(), f"pytest-of-{getpass.getuser()}")):
        print(f"left by a run that was killed, and taken away: {left}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that run alone come first: others are short then. Without --long, long ones are skipped."""
    for item in items:
        if "namespace" in getattr(item, "fixturenames", ()):  # a new one begins with a copy of every mount
            item.add_marker(pytest.mark.alone)
    items.sort(key=_not_alone)
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long: scripts/test --long runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Tests that are marked `alone` run while no other does."""
    with turn(alone=not _not_alone(item)):
        return (yield)


def _not_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is None


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the tests that take minutes run as well."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def fuse() -> None:
    """For tests that mount by themselves: skips where nothing can be mounted."""
    require_mounts()


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """An empty directory for images, next to the mountpoints that `mounted` makes."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., MountedFs]]:
    """`mounted(source, *args)` mounts, returns when the mount answers; unmounted and checked at the end."""
    require_mounts()
    servers: list[MountedFs] = []

    def mount(source: Path, *args: str, path: Path | None = None, under: Sequence[str] = ()) -> MountedFs:
        mountpoint = path or tmp_path / f"mnt{len(servers)}"
        mountpoint.mkdir(exist_ok=True)
        server = MountedFs(source, mountpoint, *args, under=under)
        servers.append(server)
        server.allow("no O_DIRECT for .* using --cache writeback")  # where tests are on tmpfs
        server.wait_ready()
        return server

    yield mount
    wrong = [problem for server in reversed(servers) for problem in server.clean_up()]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on in the background; unmounted at the end if the test has not."""
    require_mounts()
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if not is_mounted(path):
        return
    pidfd = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        pidfd = os.pidfd_open(json.loads((path / ".aiofs/info.json").read_bytes())["pid"])
    unmount(path, lazy=True)
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)
