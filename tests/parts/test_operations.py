"""Operations called directly, without a kernel: names, attributes, opens, and their errnos."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
from planes import ME, Caller, Fields, Mount, refused, run
from pyfuse3 import ROOT_INODE, EntryAttributes

from aiofs import pagecache


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


@pytest.fixture
def read_only(images: Path) -> Iterator[Mount]:
    made = Mount(images, read_only=True)
    yield made
    made.close()


# -- names --


def test_a_lookup_gives_the_inode_number_and_the_attributes_of_the_backing_file(
    mount: Mount, images: Path
) -> None:
    """Node id, size, blocks, times, mode and owner are the file's; names are believed for a second."""

    async def scenario() -> None:
        entry = await mount.ops.lookup(ROOT_INODE, b"a.img", ME)
        st = (images / "a.img").stat()
        for name in ("st_ino", "st_size", "st_blocks", "st_mode", "st_uid", "st_nlink"):
            assert getattr(entry, name) == getattr(st, name)
        assert (entry.st_mtime_ns, entry.st_ctime_ns) == (st.st_mtime_ns, st.st_ctime_ns)
        assert (entry.entry_timeout, entry.attr_timeout) == (1.0, 1.0)

    run(scenario)


@pytest.mark.parametrize("name", [b"missing", b"link", b"fifo"])
def test_what_is_not_served_is_not_found(mount: Mount, images: Path, name: bytes) -> None:
    """Symbolic links and fifos are as invisible as names that do not exist."""
    (images / "link").symlink_to("a.img")
    os.mkfifo(images / "fifo")

    async def scenario() -> None:
        assert await refused(mount.ops.lookup(ROOT_INODE, name, ME)) == errno.ENOENT
        assert await refused(mount.ops.unlink(ROOT_INODE, name, ME)) == errno.ENOENT

    run(scenario)
    assert (images / "link").is_symlink()


def test_a_name_that_something_invisible_has_cannot_be_taken(mount: Mount, images: Path) -> None:
    """Neither create nor rename replaces a symbolic link."""
    (images / "link").symlink_to("a.img")

    async def scenario() -> None:
        for flags in (os.O_RDWR, os.O_RDWR | os.O_EXCL):
            assert await refused(mount.ops.create(ROOT_INODE, b"link", 0o644, flags, ME)) == errno.EEXIST
        rename = mount.ops.rename(ROOT_INODE, b"a.img", ROOT_INODE, b"link", 0, ME)
        assert await refused(rename) == errno.EEXIST

    run(scenario)
    assert (images / "link").is_symlink()


def test_a_stale_node_is_an_error_of_its_own(mount: Mount) -> None:
    """A node id that the table does not know is ESTALE."""

    async def scenario() -> None:
        assert await refused(mount.ops.getattr(4711, ME)) == errno.ESTALE
        assert await refused(mount.ops.open(4711, os.O_RDONLY, ME)) == errno.ESTALE

    run(scenario)


def test_a_bug_is_answered_with_eio(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is logged with its traceback; the server goes on."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mount.table, "stat", fail)

    async def scenario() -> None:
        assert await refused(mount.ops.getattr(ROOT_INODE, ME)) == errno.EIO

    run(scenario)
    assert "ZeroDivisionError" in caplog.text


# -- changes of names --


def test_a_created_image_is_open_and_has_the_mode_asked_for(mount: Mount, images: Path) -> None:
    """The mode is exact whatever the server's umask, even one that forbids the server to open it."""

    async def scenario() -> None:
        info, entry = await mount.ops.create(ROOT_INODE, b"new.img", 0o100466, os.O_RDWR | os.O_EXCL, ME)
        assert entry.st_ino in mount.plane.images
        assert info.fh == mount.plane.images[entry.st_ino].handle
        assert not info.keep_cache
        await mount.ops.release(info.fh)

    run(scenario)
    assert stat.S_IMODE((images / "new.img").stat().st_mode) == 0o466


def test_a_created_image_that_cannot_be_opened_is_taken_back(mount: Mount, images: Path) -> None:
    """No empty file and no node is left of it."""
    mount.plane.refuse = errno.ENOSPC

    async def scenario() -> None:
        nodes = len(mount.table.nodes)
        create = mount.ops.create(ROOT_INODE, b"new.img", 0o644, os.O_RDWR, ME)
        assert await refused(create) == errno.ENOSPC
        assert len(mount.table.nodes) == nodes

    run(scenario)
    assert not (images / "new.img").exists()


def test_creating_an_image_that_appeared_meanwhile_opens_it(mount: Mount) -> None:
    """Without O_EXCL create is open, with the content kept."""

    async def scenario() -> None:
        _, entry = await mount.ops.create(ROOT_INODE, b"a.img", 0o644, os.O_RDWR, ME)
        assert entry.st_size == 8192
        exclusive = mount.ops.create(ROOT_INODE, b"a.img", 0o644, os.O_RDWR | os.O_EXCL, ME)
        assert await refused(exclusive) == errno.EEXIST

    run(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_new_file_belongs_to_the_caller(mount: Mount, images: Path) -> None:
    """A server of root creates files and directories in the name of whoever asked."""
    caller: Any = Caller(uid=1234, gid=4321)

    async def scenario() -> None:
        await mount.ops.create(ROOT_INODE, b"new.img", 0o644, os.O_RDWR, caller)
        await mount.ops.mkdir(ROOT_INODE, b"dir", 0o755, caller)
        await mount.ops.mknod(ROOT_INODE, b"node.img", stat.S_IFREG | 0o600, 0, caller)

    run(scenario)
    for name in ("new.img", "dir", "node.img"):
        assert ((images / name).stat().st_uid, (images / name).stat().st_gid) == (1234, 4321)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another group")
def test_a_new_file_in_a_set_group_id_directory_has_its_group(mount: Mount, images: Path) -> None:
    """As open(2) and mkdir(2) have it; a directory passes the bit on."""
    os.chown(images, -1, 4321)
    images.chmod(0o2775)

    async def scenario() -> None:
        await mount.ops.create(ROOT_INODE, b"new.img", 0o644, os.O_RDWR, ME)
        await mount.ops.mkdir(ROOT_INODE, b"dir", 0o755, ME)

    run(scenario)
    assert (images / "new.img").stat().st_gid == 4321
    assert (images / "dir").stat().st_gid == 4321
    assert (images / "dir").stat().st_mode & stat.S_ISGID


def test_only_regular_files_can_be_made(mount: Mount) -> None:
    """Fifos, devices and symbolic links are refused."""

    async def scenario() -> None:
        for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
            assert await refused(mount.ops.mknod(ROOT_INODE, b"x", kind | 0o600, 0, ME)) == errno.EPERM
        assert await refused(mount.ops.symlink(ROOT_INODE, b"x", b"a.img", ME)) == errno.EPERM

    run(scenario)


def test_a_renamed_node_is_found_under_its_new_name(mount: Mount, images: Path) -> None:
    """The node keeps its id, and leads to the file in the other directory."""

    async def scenario() -> None:
        ino, sub = await mount.ino(b"a.img"), await mount.ino(b"sub")
        await mount.ops.rename(ROOT_INODE, b"a.img", sub, b"c.img", 0, ME)
        assert await mount.ino(b"c.img", sub) == ino
        assert (await mount.ops.getattr(ino, ME)).st_size == 8192

    run(scenario)
    assert (images / "sub" / "c.img").exists()


def test_the_files_of_a_renamed_directory_stay_reachable(mount: Mount) -> None:
    """Paths are made anew from the nodes above."""

    async def scenario() -> None:
        sub = await mount.ino(b"sub")
        ino = await mount.ino(b"b.img", sub)
        await mount.ops.rename(ROOT_INODE, b"sub", ROOT_INODE, b"moved", 0, ME)
        assert (await mount.ops.getattr(ino, ME)).st_size == 1
        await mount.ops.release((await mount.ops.open(ino, os.O_RDWR, ME)).fh)

    run(scenario)


def test_an_exchange_swaps_two_nodes(mount: Mount) -> None:
    """RENAME_EXCHANGE leaves both nodes with their own content; NOREPLACE refuses."""

    async def scenario() -> None:
        sub = await mount.ino(b"sub")
        a, b = await mount.ino(b"a.img"), await mount.ino(b"b.img", sub)
        flags = pyfuse3.RENAME_NOREPLACE
        assert await refused(mount.ops.rename(ROOT_INODE, b"a.img", sub, b"b.img", flags, ME)) == errno.EEXIST
        await mount.ops.rename(ROOT_INODE, b"a.img", sub, b"b.img", pyfuse3.RENAME_EXCHANGE, ME)
        assert [(await mount.ops.getattr(ino, ME)).st_size for ino in (a, b)] == [8192, 1]
        missing = mount.ops.rename(ROOT_INODE, b"b.img", ROOT_INODE, b"no", pyfuse3.RENAME_EXCHANGE, ME)
        assert await refused(missing) == errno.ENOENT

    run(scenario)


def test_an_image_replaced_by_a_rename_stays_open(mount: Mount) -> None:
    """Who has it open goes on with it; its names are gone."""

    async def scenario() -> None:
        sub = await mount.ino(b"sub")
        ino = await mount.ino(b"b.img", sub)
        opened = await mount.ops.open(ino, os.O_RDWR, ME)
        await mount.ops.rename(ROOT_INODE, b"a.img", sub, b"b.img", 0, ME)
        entry = await mount.ops.getattr(ino, ME)
        assert (entry.st_size, entry.st_nlink) == (1, 0)
        await mount.ops.release(opened.fh)
        assert await refused(mount.ops.getattr(ino, ME)) == errno.ESTALE

    run(scenario)


def test_a_hard_link_is_the_same_node(mount: Mount) -> None:
    """Both names lead to one node, which lives on when the older name is removed."""

    async def scenario() -> None:
        ino, sub = await mount.ino(b"a.img"), await mount.ino(b"sub")
        entry = await mount.ops.link(ino, sub, b"second.img", ME)
        assert (entry.st_ino, entry.st_nlink) == (ino, 2)
        await mount.ops.unlink(ROOT_INODE, b"a.img", ME)
        assert (await mount.ops.getattr(ino, ME)).st_nlink == 1

    run(scenario)


def test_a_directory_is_removed_only_when_it_is_empty(mount: Mount, images: Path) -> None:
    """rmdir and unlink pass on what the backing says."""

    async def scenario() -> None:
        assert await refused(mount.ops.rmdir(ROOT_INODE, b"sub", ME)) == errno.ENOTEMPTY
        await mount.ops.unlink(await mount.ino(b"sub"), b"b.img", ME)
        await mount.ops.rmdir(ROOT_INODE, b"sub", ME)

    run(scenario)
    assert not (images / "sub").exists()


def test_nothing_can_be_changed_through_a_read_only_mount(read_only: Mount, images: Path) -> None:
    """Every change and every open for writing is EROFS."""

    async def scenario() -> None:
        ops, ino = read_only.ops, await read_only.ino(b"a.img")
        changes = [
            ops.create(ROOT_INODE, b"x", 0o644, os.O_RDWR, ME),
            ops.mkdir(ROOT_INODE, b"x", 0o755, ME),
            ops.unlink(ROOT_INODE, b"a.img", ME),
            ops.rename(ROOT_INODE, b"a.img", ROOT_INODE, b"x", 0, ME),
            ops.link(ino, ROOT_INODE, b"x", ME),
            ops.setattr(ino, EntryAttributes(), Fields(update_size=True), None, ME),
            ops.open(ino, os.O_RDWR, ME),
            ops.open(ino, os.O_RDONLY | os.O_TRUNC, ME),
        ]
        assert [await refused(change) for change in changes] == [errno.EROFS] * len(changes)
        await ops.open(ino, os.O_RDONLY, ME)

    run(scenario)
    assert (images / "a.img").stat().st_size == 8192


def test_a_single_image_cannot_be_removed_or_joined_by_another(images: Path) -> None:
    """The mount of one file has that one name, for good; its content and size can change."""
    mount = Mount(images / "a.img")

    async def scenario() -> None:
        ino = await mount.ino(b"a.img")
        changes = [
            mount.ops.unlink(ROOT_INODE, b"a.img", ME),
            mount.ops.create(ROOT_INODE, b"x", 0o644, os.O_RDWR, ME),
            mount.ops.mkdir(ROOT_INODE, b"x", 0o755, ME),
            mount.ops.rename(ROOT_INODE, b"a.img", ROOT_INODE, b"x", 0, ME),
        ]
        assert [await refused(change) for change in changes] == [errno.EPERM] * len(changes)
        assert await refused(mount.ops.lookup(ROOT_INODE, b"sub", ME)) == errno.ENOENT
        await mount.ops.open(ino, os.O_RDWR, ME)

    run(scenario)
    mount.close()


# -- attributes --


def test_setattr_changes_mode_times_and_size_of_the_backing(mount: Mount, images: Path) -> None:
    """Times are exact to the nanosecond; what was not asked for stays."""

    async def scenario() -> None:
        ino = await mount.ino(b"a.img")
        attr = EntryAttributes()
        attr.st_mode, attr.st_size = stat.S_IFREG | 0o600, 1000
        attr.st_mtime_ns = 1_000_000_007
        before = (images / "a.img").stat()
        fields = Fields(update_mode=True, update_mtime=True)
        entry = await mount.ops.setattr(ino, attr, fields, None, ME)
        assert (entry.st_mtime_ns, entry.st_atime_ns) == (1_000_000_007, before.st_atime_ns)
        assert stat.S_IMODE(entry.st_mode) == 0o600
        assert entry.st_size == 8192
        assert (await mount.ops.setattr(ino, attr, Fields(update_size=True), None, ME)).st_size == 1000

    run(scenario)


def test_an_open_image_that_grew_underneath_shows_its_new_size(mount: Mount, images: Path) -> None:
    """Attributes are asked of the file each time; an open makes the kernel ask again."""

    async def scenario() -> None:
        ino = await mount.ino(b"a.img")
        await mount.ops.open(ino, os.O_RDONLY, ME)
        os.truncate(images / "a.img", 100_000)
        mount.invalidated.clear()
        await mount.ops.open(ino, os.O_RDONLY, ME)
        assert mount.invalidated == [ino]
        assert (await mount.ops.getattr(ino, ME)).st_size == 100_000

    run(scenario)


def test_only_an_open_with_o_direct_bypasses_the_page_cache() -> None:
    """The policy of direct_io; kernels before 6.6 would leave old pages in the cache of others."""
    assert pagecache.wants_direct_io(os.O_RDWR | os.O_DIRECT, "6.18.44-amd64")
    assert pagecache.wants_direct_io(os.O_RDWR | os.O_DIRECT, "6.6.0")
    assert not pagecache.wants_direct_io(os.O_RDWR | os.O_DIRECT, "6.1.0-28-amd64")
    assert not pagecache.wants_direct_io(os.O_RDWR | os.O_DIRECT, "unknown")
    assert not pagecache.wants_direct_io(os.O_RDWR, "6.18.44-amd64")


def test_flush_is_not_asked_for_again(mount: Mount) -> None:
    """ENOSYS makes the kernel stop sending it; fsync is never answered so."""

    async def scenario() -> None:
        assert await refused(mount.ops.flush(1)) == errno.ENOSYS
        assert await refused(mount.ops.fsync(4711, True)) == errno.EBADF

    run(scenario)
