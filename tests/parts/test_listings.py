"""Listings of directories, and the hidden info directory; Operations called directly."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
from planes import ME, Fields, Mount, Token, refused, run
from pyfuse3 import ROOT_INODE, EntryAttributes

from aiofs import infofile

CONTENT = b'{"made": 1}'


@pytest.fixture(autouse=True)
def readdir_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyfuse3's buffer, without a kernel request behind it."""

    def reply(token: Token, name: bytes, attr: EntryAttributes, next_id: int) -> bool:
        if len(token.entries) == token.room:
            return False
        token.entries.append((name, attr, next_id))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    (path / "a.img").write_bytes(bytes(8192))
    (path / "sub").mkdir()
    (path / "sub" / "b.img").write_bytes(b"b")
    return path


@pytest.fixture
def mount(images: Path) -> Iterator[Mount]:
    made = Mount(images)
    yield made
    made.close()


def test_a_listing_read_in_small_pieces_is_complete(mount: Mount, images: Path) -> None:
    """Sorted, without the invisible, each name once; each entry told is a lookup to be given back."""
    for count in range(50):
        (images / f"{count:03}.img").touch()
    (images / "link").symlink_to("a.img")

    async def scenario() -> None:
        handle = await mount.ops.opendir(ROOT_INODE, ME)
        names = await mount.names(handle, room=7)
        await mount.ops.releasedir(handle)
        assert names == [b"%03d.img" % count for count in range(50)] + [b"a.img", b"sub"]
        assert len(mount.table.nodes) == 1 + len(names)
        inos = [(await mount.ops.lookup(ROOT_INODE, name, ME)).st_ino for name in names]
        await mount.ops.forget([(ino, 2) for ino in inos])
        assert len(mount.table.nodes) == 1

    run(scenario)


def test_an_entry_that_did_not_fit_is_no_lookup(mount: Mount) -> None:
    """The node of an entry that the kernel was not told is not kept."""

    async def scenario() -> None:
        handle = await mount.ops.opendir(ROOT_INODE, ME)
        await mount.ops.readdir(handle, 0, Token(1))
        await mount.ops.releasedir(handle)
        assert len(mount.table.nodes) == 2

    run(scenario)


def test_a_listing_skips_nothing_when_names_vanish_while_it_is_read(mount: Mount, images: Path) -> None:
    """Positions count in what was there at the beginning."""
    for count in range(10):
        (images / f"{count}.img").touch()

    async def scenario() -> None:
        handle = await mount.ops.opendir(ROOT_INODE, ME)
        token = Token(5)
        await mount.ops.readdir(handle, 0, token)
        (images / "0.img").unlink()
        (images / "7.img").unlink()
        rest = Token(100)
        await mount.ops.readdir(handle, token.entries[-1][2], rest)
        names = [b"5.img", b"6.img", b"8.img", b"9.img", b"a.img", b"sub"]
        assert [name for name, _, _ in rest.entries] == names
        assert b"0.img" not in await mount.names(handle), "from the start it looks anew"

    run(scenario)


def test_a_restarted_server_goes_on_with_a_directory_handle(mount: Mount) -> None:
    """The handle contains the node id of its directory."""

    async def scenario() -> None:
        sub = await mount.ino(b"sub")
        handle = await mount.ops.opendir(sub, ME)
        assert await mount.names(handle, ops=mount.successor()) == [b"b.img"]
        assert handle != await mount.ops.opendir(sub, ME), "openings are told apart"

    run(scenario)


def test_a_single_image_is_all_that_its_mount_lists(images: Path) -> None:
    """The other names of its directory are not shown."""
    mount = Mount(images / "a.img")

    async def scenario() -> None:
        assert await mount.names(await mount.ops.opendir(ROOT_INODE, ME)) == [b"a.img"]

    run(scenario)
    mount.close()


# -- the info directory --


def test_the_info_file_is_found_by_name_and_not_listed(mount: Mount) -> None:
    """.aiofs is not in the root's listing; its own listing shows what is in it."""

    async def scenario() -> None:
        directory = await mount.ino(b".aiofs")
        root = await mount.ops.opendir(ROOT_INODE, ME)
        assert await mount.names(root) == [b"a.img", b"sub"]
        inside = await mount.ops.opendir(directory, ME)
        assert await mount.names(inside) == [b"info.json", b"metrics"]
        assert await mount.names(inside, room=1) == [b"info.json", b"metrics"]

    run(scenario)


def test_the_info_file_keeps_the_content_of_its_open(mount: Mount) -> None:
    """Each open makes it anew; reads of one open fit together, and pass the page cache by."""

    async def scenario() -> None:
        ino = await mount.ino(b"info.json", await mount.ino(b".aiofs"))
        one = await mount.ops.open(ino, os.O_RDONLY, ME)
        two = await mount.ops.open(ino, os.O_RDONLY, ME)
        assert one.direct_io
        assert await mount.ops.read(one.fh, 0, 5) + await mount.ops.read(one.fh, 5, 4096) == CONTENT
        assert await mount.ops.read(two.fh, 0, 1 << 20) == b'{"made": 2}'
        await mount.ops.release(one.fh)
        assert await refused(mount.ops.open(ino, os.O_RDWR, ME)) == errno.EACCES

    run(scenario)


def test_answers_of_the_info_file_fit_the_socket() -> None:
    """At most 64 KiB a read."""

    async def content() -> bytes:
        return bytes(1 << 20)

    async def scenario() -> None:
        info = infofile.InfoDirectory({b"info.json": content})
        handle = await info.open(info.lookup(b"info.json"), os.O_RDONLY)
        assert len(await info.read(handle, 0, 1 << 20)) == 64 * 1024

    run(scenario)


def test_the_info_directory_cannot_be_changed(mount: Mount) -> None:
    """Its name is taken, and nothing goes in or out."""

    async def scenario() -> None:
        directory = await mount.ino(b".aiofs")
        assert await refused(mount.ops.mkdir(ROOT_INODE, b".aiofs", 0o755, ME)) == errno.EEXIST
        changes: list[Callable[[], Awaitable[Any]]] = [
            lambda: mount.ops.rmdir(ROOT_INODE, b".aiofs", ME),
            lambda: mount.ops.unlink(directory, b"info.json", ME),
            lambda: mount.ops.create(directory, b"x", 0o644, os.O_RDWR, ME),
            lambda: mount.ops.rename(ROOT_INODE, b"a.img", directory, b"x", 0, ME),
            lambda: mount.ops.setattr(directory, EntryAttributes(), Fields(), None, ME),
        ]
        assert [await refused(change()) for change in changes] == [errno.EPERM] * len(changes)

    run(scenario)
