"""Counters over the life of a mount: what outlives a close, and under which name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from planes import FakePlane, handle_of, make_ledger, node_of, run

from aiofs.images import ImageTable
from aiofs.nodes import ROOT, Node
from aiofs.tallies import Tallies


def read_once(table: ImageTable, plane: FakePlane, node: Node) -> None:
    """Open an image, count one READ of 512 bytes of it, close it."""

    async def scenario() -> None:
        await table.open(node, os.O_RDONLY)
        counted = plane.images[node.ino].counters.memory
        counted.requests_read += 1
        counted.bytes_read += 512
        await table.release(handle_of(table, node.ino))

    run(scenario)


def test_counters_go_on_at_the_next_open(table: ImageTable, plane: FakePlane) -> None:
    """They are of the mount's life, not of one open."""
    image = node_of(table)
    read_once(table, plane, image)
    read_once(table, plane, image)

    async def scenario() -> None:
        await table.open(image, os.O_RDONLY)
        [told] = table.info()
        assert (told.path, told.node) == ("a.img", image.ino)
        assert (told.counters["requests_read"], told.counters["bytes_read"]) == (2, 1024)
        assert table.closed() == []

    run(scenario)


def test_a_closed_image_is_still_told(table: ImageTable, plane: FakePlane) -> None:
    """With its names and its last counters."""
    read_once(table, plane, node_of(table))
    [told] = table.closed()
    assert (told["path"], told["name"]) == ("a.img", table.nodes.display(node_of(table)))
    assert told["counters"]["requests_read"] == 1


def test_an_image_that_nobody_used_is_not_kept(table: ImageTable) -> None:
    """There is nothing to tell of it."""
    image = node_of(table)

    async def scenario() -> None:
        await table.open(image, os.O_RDONLY)
        await table.release(handle_of(table, image.ino))

    run(scenario)
    assert table.closed() == []


def test_an_open_that_fails_loses_no_counters(table: ImageTable, plane: FakePlane) -> None:
    """The next one goes on with them."""
    image = node_of(table)
    read_once(table, plane, image)
    plane.refuse = 12  # ENOMEM

    async def scenario() -> None:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            await table.open(image, os.O_RDONLY)

    run(scenario)
    assert [told["counters"]["requests_read"] for told in table.closed()] == [1]


def test_a_closed_image_has_the_name_that_it_has_now(
    table: ImageTable, plane: FakePlane, images: Path
) -> None:
    """Renamed after its close; and DELETED when no name is left."""
    image = node_of(table)
    read_once(table, plane, image)
    (images / "a.img").rename(images / "b.img")
    table.nodes.renamed((ROOT, b"a.img"), (ROOT, b"b.img"), image.ino)
    assert [told["path"] for told in table.closed()] == ["b.img"]
    table.nodes.removed(ROOT, b"b.img", image.ino)
    assert [told["path"] for told in table.closed()] == ["(deleted)"]


def test_the_last_name_stays_when_the_kernel_has_forgotten_the_file(
    table: ImageTable, plane: FakePlane
) -> None:
    """Under memory pressure it forgets files that nobody uses; what was counted of them remains."""
    image = node_of(table)
    read_once(table, plane, image)
    table.forget(image.ino, image.lookups)
    assert [told["path"] for told in table.closed()] == ["a.img"]
    read_once(table, plane, node_of(table))
    assert [told["counters"]["requests_read"] for told in table.closed()] == [2]


def test_another_file_with_the_inode_number_begins_at_zero() -> None:
    """The generation tells them apart."""
    tallies = Tallies(make_ledger())
    counters = tallies.take(Node(7, 1, ROOT, b"a", is_dir=False))
    counters.memory.requests_read = 1
    tallies.give_back(Node(7, 1, ROOT, b"a", is_dir=False), "a", "a", counters)
    assert tallies.take(Node(7, 2, ROOT, b"a", is_dir=False)).unused
    assert tallies.take(Node(7, 1, ROOT, b"a", is_dir=False)) is counters


def test_the_tallies_have_a_limit() -> None:
    """What was closed longest ago is dropped."""
    tallies = Tallies(make_ledger(), limit=2)
    for ino in (5, 6, 7):
        node = Node(ino, 0, ROOT, b"%d" % ino, is_dir=False)
        counters = tallies.take(node)
        counters.memory.requests_write = 1
        tallies.give_back(node, "", str(ino), counters)
    assert [tally.path for tally in tallies] == ["6", "7"]
