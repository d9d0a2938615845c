"""What a server finds in the ledger of the one before it: nodes, open images, counters, changes of names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from planes import ME, Caller, FakePlane, Mount, handle_of, make_ledger, make_table, node_of, refused, run
from pyfuse3 import ROOT_INODE

from aiofs import locks
from aiofs.changes import Changes
from aiofs.config import CacheMode
from aiofs.fs import Operations
from aiofs.images import ImageTable
from aiofs.ledger import Kind, Ledger
from aiofs.nodes import ROOT

AGAIN: Any = Caller(pid=1 << 30 | 17)
"""Who asks with a request that a server before this one did not answer."""


@pytest.fixture
def ledger() -> Ledger:
    return make_ledger()


Next = Callable[[], tuple[ImageTable, FakePlane]]


@pytest.fixture
def server(images: Path, ledger: Ledger) -> Next:
    """`server()` is one more server on the ledger: its image table and its data plane."""

    def make() -> tuple[ImageTable, FakePlane]:
        plane = FakePlane()
        return make_table(images, plane, cache=CacheMode.WRITEBACK, ledger=ledger), plane

    return make


def die(table: ImageTable) -> None:
    """As the kernel leaves a killed process: its descriptors are closed, and nothing is said."""
    for image in table._images.values():
        os.close(image.fd)
    table._images.clear()
    table.source.close()


def test_nodes_come_back_with_names_and_lookups(server: Next, images: Path) -> None:
    """And what the kernel forgot stays forgotten."""
    (images / "d").mkdir()
    (images / "d/inner").write_bytes(b"")
    first, _ = server()
    directory = node_of(first, b"d")
    inner = node_of(first, b"inner", directory.ino)
    node_of(first, b"inner", directory.ino)
    gone = node_of(first)
    first.forget(gone.ino, 1)
    die(first)
    second, _ = server()
    assert gone.ino not in second.nodes
    assert second.nodes.path(second.nodes.get(inner.ino)) == "d/inner"
    assert second.nodes.get(inner.ino).lookups == 2
    second.forget(inner.ino, 2)
    assert inner.ino not in second.nodes
    # The room of those that were forgotten is used again, and by one node only.
    made = [node_of(second), node_of(second, b"inner", directory.ino)]
    assert len({node.slot for node in (*made, second.nodes.get(directory.ino))}) == 3
    die(second)


def test_names_are_the_newest(server: Next, images: Path) -> None:
    """Renamed, linked, removed."""
    first, _ = server()
    node = node_of(first)
    os.link(images / "a.img", images / "b.img")
    node_of(first, b"b.img")
    (images / "a.img").rename(images / "c.img")
    first.nodes.renamed((ROOT, b"a.img"), (ROOT, b"c.img"), node.ino)
    die(first)
    second, _ = server()
    assert set(second.nodes.get(node.ino).names()) == {(ROOT, b"c.img"), (ROOT, b"b.img")}
    second.nodes.removed(ROOT, b"c.img", node.ino)
    second.nodes.removed(ROOT, b"b.img", node.ino)
    die(second)
    third, _ = server()
    assert third.nodes.get(node.ino).names() == []
    die(third)


def open_image(server: Next, opens: int, flags: int = os.O_RDWR) -> int:
    """A first server, in which an image is opened, and the kernel told of it `opens` times; its node id."""
    table, plane = server()
    node = node_of(table)

    async def scenario() -> None:
        for _ in range(max(opens, 1)):
            await table.open(node, flags)
        counted = plane.images[node.ino].counters.memory
        counted.opens = opens
        counted.requests_read = 5
        counted.sticky_error = -errno.EIO

    run(scenario)
    die(table)
    return node.ino


@pytest.mark.parametrize("write", [True, False])
def test_open_images_are_opened_again(server: Next, write: bool) -> None:
    """With their lock, their counters, the errno of a failed fsync, and as often as the kernel knows."""
    ino = open_image(server, 2, os.O_RDWR if write else os.O_RDONLY)
    table, plane = server()

    async def scenario() -> None:
        await table.restore()
        [told] = table.info()
        assert (told.node, told.opens, told.writable, told.sticky_error) == (ino, 2, write, errno.EIO)
        assert told.counters["requests_read"] == 5
        assert plane.images[ino].sticky_error == errno.EIO
        await table.release(handle_of(table, ino))
        assert plane.images
        await table.release(handle_of(table, ino))
        assert not plane.images
        assert [closed["counters"]["requests_read"] for closed in table.closed()] == [5]

    run(scenario)
    die(table)
    third, plane = server()
    run(third.restore)
    assert not plane.images
    assert [closed["counters"]["requests_read"] for closed in third.closed()] == [5]
    die(third)


def test_a_failed_fsync_is_told_at_the_end_by_the_next_server(server: Next) -> None:
    """Of an image that was closed before the first one died."""
    first, plane = server()
    node = node_of(first)

    async def scenario() -> None:
        await first.open(node, os.O_RDWR)
        plane.images[node.ino].counters.memory.sticky_error = -errno.EIO
        await first.release(handle_of(first, node.ino))

    run(scenario)
    die(first)
    second, _ = server()
    assert [failure.errno for failure in trio.run(second.close_all)] == [errno.EIO]
    die(second)


def test_a_release_that_comes_again_closes_no_later_open(server: Next) -> None:
    """The server before had closed the image and died before it said so; here the next open is first."""
    first, _ = server()
    node = node_of(first)

    async def before() -> int:
        handle, _ = await first.open(node, os.O_RDWR)
        await first.release(handle)
        return handle

    released = trio.run(before)
    die(first)
    second, plane = server()

    async def after() -> None:
        await second.restore()
        handle, _ = await second.open(node_of(second), os.O_RDWR)
        assert handle != released
        await second.release(released)
        assert plane.images
        await second.release(handle)
        assert not plane.images

    run(after)
    die(second)


def test_a_handle_outlives_its_server(server: Next) -> None:
    """What was open before and is open still has the handle that the kernel knows."""
    first, _ = server()
    node = node_of(first)

    async def before() -> int:
        handle, _ = await first.open(node, os.O_RDWR)
        first._images[node.ino].counters.memory.opens = 1
        return handle

    known = trio.run(before)
    die(first)
    second, plane = server()

    async def after() -> None:
        await second.restore()
        assert plane.images[node.ino].handle == known
        await second.release(known)
        assert not plane.images

    run(after)
    die(second)


def test_an_open_that_the_kernel_was_not_told_of_is_undone(server: Next, ledger: Ledger) -> None:
    """It comes again, and is counted then."""
    open_image(server, 0)
    table, plane = server()
    run(table.restore)
    assert not plane.images
    assert list(ledger.records(Kind.IMAGE)) == []
    die(table)


def test_the_locks_of_the_dead_are_waited_for(server: Next, images: Path) -> None:
    """Its lock lasts as long as any I/O of it: nothing is served before that."""
    ino = open_image(server, 1)
    table, plane = server()
    dead = os.open(images / "a.img", os.O_RDWR)
    locks.lock_for_writing(dead)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.restore)
            await trio.sleep(0.05)
            assert not plane.images
            os.close(dead)
        assert ino in plane.images

    run(scenario)
    die(table)


def test_an_open_waits_for_the_lock_of_the_dead(server: Next, images: Path) -> None:
    """It had locked an image that it had told nobody of: who opens that image now gets no EBUSY."""
    die(server()[0])
    table, plane = server()
    dead = os.open(images / "a.img", os.O_RDWR)
    locks.lock_for_writing(dead)

    async def scenario() -> None:
        table.follow_a_server()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.open, node_of(table), os.O_RDWR)
            await trio.sleep(0.05)
            assert not plane.images
            os.close(dead)
        assert plane.images

    run(scenario)
    die(table)


def test_an_image_that_is_gone_keeps_no_other_from_coming_back(
    server: Next, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log."""
    (images / "b.img").write_bytes(b"here")
    table, plane = server()
    nodes = [node_of(table), node_of(table, b"b.img")]

    async def open_both() -> None:
        for node in nodes:
            await table.open(node, os.O_RDWR)
            plane.images[node.ino].counters.memory.opens = 1

    run(open_both)
    die(table)
    (images / "a.img").unlink()
    second, plane = server()
    run(second.restore)
    assert list(plane.images) == [nodes[1].ino]
    assert "a.img was open and cannot be opened again" in caplog.text
    die(second)


@pytest.mark.parametrize("kind", ["new", "onto", "exchange", "not done", "directory"])
def test_an_image_is_found_that_was_being_renamed(
    server: Next, ledger: Ledger, images: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Its server was killed between the deed and the note, or between the announcement and the deed."""
    (images / "d").mkdir()
    (images / "b.img").write_bytes(b"b")
    name = "d/image" if kind == "directory" else "a.img"
    (images / "d/image").write_bytes(b"here")
    table, plane = server()
    directory, other = node_of(table, b"d"), node_of(table, b"b.img")
    opened = [other, node_of(table, b"image", directory.ino) if kind == "directory" else node_of(table)]

    async def open_them() -> None:
        for node in opened:
            await table.open(node, os.O_RDWR)
            plane.images[node.ino].counters.memory.opens = 1

    run(open_them)
    moved, target = opened[1].ino, other.ino if kind in ("onto", "exchange") else 0
    old, new = (b"d", b"e") if kind == "directory" else (b"a.img", b"b.img" if target else b"c.img")
    about = directory.ino if kind == "directory" else moved
    Changes(ledger).begin("rename", [(ROOT, old), (ROOT, new)], about, target)
    if kind == "exchange":
        (images / "a.img").rename(images / "aside")
        (images / "b.img").rename(images / "a.img")
        (images / "aside").rename(images / "b.img")
    elif kind != "not done":
        (images / os.fsdecode(old)).rename(images / os.fsdecode(new))
    die(table)
    second, plane = server()
    run(second.restore)
    assert moved in plane.images
    assert (other.ino in plane.images) == (kind != "onto"), "that one has no name any more"
    assert ("cannot be opened again" in caplog.text) == (kind == "onto")
    there = {"not done": name, "directory": "e/image"}.get(kind, os.fsdecode(new))
    assert second.nodes.path(second.nodes.get(moved)) == there
    die(second)


# -- changes of names that come again --


def operations(mount: Mount) -> Operations:
    """The next server's handlers."""
    return mount.successor()


@pytest.fixture
def mount(images: Path) -> Any:
    made = Mount(images)
    yield made
    made.close()


def test_what_a_successor_needs_is_kept_before_the_first_answer(mount: Mount) -> None:
    """Once, also where the first answer is an error."""
    answers: list[str] = []
    ops: Any = Operations(
        table=mount.table, files={}, ledger=mount.ledger, before_first=lambda: answers.append("kept")
    )

    async def scenario() -> None:
        answers.append(os.strerror(await refused(ops.lookup(ROOT_INODE, b"nothing", ME))))
        await ops.lookup(ROOT_INODE, b"a.img", ME)
        answers.append("found")

    run(scenario)
    assert answers == ["kept", "No such file or directory", "found"]


def test_a_file_that_was_made_is_not_there_already(mount: Mount) -> None:
    """CREATE with O_EXCL comes again; so do MKNOD, MKDIR and LINK."""

    async def scenario() -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        _, made = await mount.ops.create(ROOT_INODE, b"new", 0o600, flags, ME)
        await mount.ops.mkdir(ROOT_INODE, b"dir", 0o700, ME)
        await mount.ops.mknod(ROOT_INODE, b"node", 0o100600, 0, ME)
        await mount.ops.link(made.st_ino, ROOT_INODE, b"linked", ME)
        ops: Any = operations(mount)
        _, again = await ops.create(ROOT_INODE, b"new", 0o600, flags, AGAIN)
        assert again.st_ino == made.st_ino
        await ops.mkdir(ROOT_INODE, b"dir", 0o700, AGAIN)
        await ops.mknod(ROOT_INODE, b"node", 0o100600, 0, AGAIN)
        await ops.link(made.st_ino, ROOT_INODE, b"linked", AGAIN)
        # Who asks for the first time is told the truth.
        assert await refused(ops.create(ROOT_INODE, b"new", 0o600, flags, ME)) == errno.EEXIST
        assert await refused(ops.mkdir(ROOT_INODE, b"dir", 0o700, ME)) == errno.EEXIST
        assert await refused(ops.mknod(ROOT_INODE, b"node", 0o100600, 0, ME)) == errno.EEXIST
        assert await refused(ops.link(made.st_ino, ROOT_INODE, b"linked", ME)) == errno.EEXIST

    run(scenario)


def test_a_name_that_the_one_before_did_not_begin_to_make_is_refused(mount: Mount, images: Path) -> None:
    """Sent again, but not begun: the file is somebody else's."""
    (images / "theirs").write_bytes(b"")

    async def scenario() -> None:
        ops: Any = operations(mount)
        assert await refused(ops.create(ROOT_INODE, b"theirs", 0o600, os.O_EXCL, AGAIN)) == errno.EEXIST
        assert await refused(ops.unlink(ROOT_INODE, b"nothing", AGAIN)) == errno.ENOENT

    run(scenario)


def test_a_name_that_was_removed_is_removed_once(mount: Mount, images: Path) -> None:
    """Also when another file has the name by now: that one stays."""
    (images / "b.img").write_bytes(b"")

    async def scenario() -> None:
        for name in (b"a.img", b"b.img"):
            await mount.ino(name)
            await mount.ops.unlink(ROOT_INODE, name, ME)
        (images / "b.img").write_bytes(b"another one")
        ops: Any = operations(mount)
        await ops.unlink(ROOT_INODE, b"a.img", AGAIN)
        await ops.unlink(ROOT_INODE, b"b.img", AGAIN)
        assert await refused(ops.unlink(ROOT_INODE, b"a.img", ME)) == errno.ENOENT

    run(scenario)
    assert (images / "b.img").read_bytes() == b"another one"


def test_a_name_is_removed_as_often_as_it_was_made(mount: Mount, images: Path) -> None:
    """The second removal had not been begun: that the first one was is no answer to it."""
    name = b"a.img"

    async def scenario() -> None:
        await mount.ino(name)
        with (images / "a.img").open():  # so that the next one gets another inode number
            await mount.ops.unlink(ROOT_INODE, name, ME)
            await mount.ops.mknod(ROOT_INODE, name, 0o100600, 0, ME)
            ops: Any = operations(mount)
            await ops.unlink(ROOT_INODE, name, AGAIN)

    run(scenario)
    assert not (images / "a.img").exists()


def test_a_name_that_was_made_and_removed_is_somebody_elses(mount: Mount, images: Path) -> None:
    """Whoever asks to make it, and had not been answered, did not make what is there."""

    async def scenario() -> None:
        await mount.ops.mknod(ROOT_INODE, b"lock", 0o100600, 0, ME)
        await mount.ops.rename(ROOT_INODE, b"lock", ROOT_INODE, b"old", 0, ME)
        (images / "lock").write_bytes(b"theirs")
        ops: Any = operations(mount)
        assert await refused(ops.create(ROOT_INODE, b"lock", 0o600, os.O_EXCL, AGAIN)) == errno.EEXIST

    run(scenario)
    assert (images / "lock").read_bytes() == b"theirs"


def test_a_rename_is_done_once(mount: Mount, images: Path) -> None:
    """Onto nothing, onto another file, and an exchange."""
    contents = {"a": b"1", "b": b"2", "c": b"3", "d": b"4", "e": b"5"}
    for name, content in contents.items():
        (images / name).write_bytes(content)
    renames = [(b"a", b"new", 0), (b"b", b"c", 0), (b"d", b"e", 2)]

    async def scenario() -> None:
        for old, new, flags in renames:
            await mount.ino(old)
            await mount.ops.rename(ROOT_INODE, old, ROOT_INODE, new, flags, ME)
        ops: Any = operations(mount)
        for old, new, flags in renames:
            await ops.rename(ROOT_INODE, old, ROOT_INODE, new, flags, AGAIN)
        assert await refused(ops.rename(ROOT_INODE, b"a", ROOT_INODE, b"new", 0, ME)) == errno.ENOENT

    run(scenario)
    left = {path.name: path.read_bytes() for path in images.iterdir() if path.name != "a.img"}
    assert left == {"new": b"1", "c": b"2", "d": b"5", "e": b"4"}


def test_a_change_that_was_begun_and_not_done_is_done(mount: Mount, images: Path) -> None:
    """Killed between the note and the deed."""
    caller = replace(ME)
    ino = (images / "a.img").stat().st_ino
    mount.ops._changes.begin("remove", [(ROOT, b"a.img")], ino)
    mount.ops._changes.begin("rename", [(ROOT, b"b"), (ROOT, b"c")], 1, 0)
    assert mount.ops._changes.begun(caller, "remove", (ROOT, b"a.img")) is None

    async def scenario() -> None:
        ops: Any = operations(mount)
        await ops.unlink(ROOT_INODE, b"a.img", AGAIN)
        assert await refused(ops.rename(ROOT_INODE, b"b", ROOT_INODE, b"c", 0, AGAIN)) == errno.ENOENT

    run(scenario)
    assert not (images / "a.img").exists()
