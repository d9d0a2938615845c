"""What users of a mount can make its server hold has a limit; Operations called directly."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
from planes import ME, Mount, Token, refused, run
from pyfuse3 import ROOT_INODE

from aiofs import infofile, listings, nodes


@pytest.fixture(autouse=True)
def readdir_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyfuse3's buffer, without a kernel request behind it, and with room for everything."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda token, *entry: token.entries.append(entry) is None)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    for name in "abcd":
        (tmp_path / name).touch()
    made = Mount(tmp_path)
    yield made
    made.close()


def test_open_directories(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE beyond; one closed makes room for one; handles of the server before count as well."""
    monkeypatch.setattr(listings, "MAX_OPEN", 2)
    ops: Any = mount.successor()

    async def scenario() -> None:
        one, two = [await ops.opendir(ROOT_INODE, ME) for _ in range(2)]
        assert await refused(ops.opendir(ROOT_INODE, ME)) == errno.ENFILE
        assert await refused(ops.readdir(two ^ (1 << 50), 0, Token(9))) == errno.ENFILE
        await ops.releasedir(one)
        await ops.releasedir(await ops.opendir(ROOT_INODE, ME))
        await ops.releasedir(two)

    run(scenario)


def test_names_that_are_being_listed(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM beyond, counted over all directories, until one is closed; one that is read anew counts once."""
    monkeypatch.setattr(listings, "MAX_NAMES", 9)

    async def scenario() -> None:
        handles = [await mount.ops.opendir(ROOT_INODE, ME) for _ in range(3)]
        for handle in (handles[0], handles[0], handles[1]):
            await mount.ops.readdir(handle, 0, Token(9))
        assert await refused(mount.ops.readdir(handles[2], 0, Token(9))) == errno.ENOMEM
        await mount.ops.releasedir(handles[0])
        await mount.ops.readdir(handles[2], 0, Token(9))
        for handle in handles[1:]:
            await mount.ops.releasedir(handle)

    run(scenario)


@pytest.fixture
def few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a table that is made afterwards."""
    monkeypatch.setattr(nodes, "MAX_NODES", 3)  # of which the root is one


@pytest.mark.usefixtures("few_nodes")
def test_known_files(mount: Mount) -> None:
    """ENOMEM beyond, until the kernel forgets one."""

    async def scenario() -> None:
        first = (await mount.ops.lookup(ROOT_INODE, b"a", ME)).st_ino
        await mount.ops.lookup(ROOT_INODE, b"b", ME)
        assert await refused(mount.ops.lookup(ROOT_INODE, b"c", ME)) == errno.ENOMEM
        assert (await mount.ops.lookup(ROOT_INODE, b"b", ME)).st_ino
        await mount.ops.forget([(first, 1)])
        assert (await mount.ops.lookup(ROOT_INODE, b"c", ME)).st_ino

    run(scenario)


def test_opens_of_info_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE for too many, ENOMEM for too much; those of the server before count; one alone always fits."""
    monkeypatch.setattr(infofile, "MAX_OPEN", 3)
    monkeypatch.setattr(infofile, "MAX_KEPT_BYTES", 100)
    content = bytes(30)

    async def make() -> bytes:
        return content

    async def opened(info: infofile.InfoDirectory) -> int | None:
        try:
            return await info.open(infofile.DIRECTORY + 1, os.O_RDONLY)
        except OSError as error:
            return -(error.errno or 0)

    async def scenario() -> None:
        nonlocal content
        info = infofile.InfoDirectory({b"info.json": make})
        handles = [await opened(info) for _ in range(4)]
        assert handles[3] == -errno.ENFILE
        info.release(handles[0] or 0)
        content = bytes(41)
        assert await opened(info) == -errno.ENOMEM
        with pytest.raises(OSError, match="are open"):
            await info.read((handles[0] or 0), 0, 10)
        for handle in handles[1:3]:
            info.release(handle or 0)
        content = bytes(1000)
        assert (await opened(info) or 0) > 0

    run(scenario)
