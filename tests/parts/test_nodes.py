"""Sources and the node table: which file a node means, whatever happens to names underneath."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from planes import FakePlane, make_table, node_of, run

from aiofs.images import ImageTable
from aiofs.nodes import FIRST_VIRTUAL, ROOT
from aiofs.source import Kind, Source


def test_a_single_image_is_the_only_name_of_its_mount(images: Path, plane: FakePlane) -> None:
    """The directory of a file given as source is not served."""
    (images / "b.img").write_bytes(b"")
    table = make_table(images / "a.img", plane)
    assert table.source.kind is Kind.FILE
    assert table.source.names(table.source.root_fd) == [b"a.img"]
    with pytest.raises(FileNotFoundError):
        table.source.stat(table.source.root_fd, b"b.img")
    assert table.nodes.stat(table.nodes.get(ROOT)).mode == 0o040555
    table.source.close()


def test_a_symbolic_link_to_an_image_keeps_its_name(images: Path, plane: FakePlane) -> None:
    """/dev/disk/by-id/x is shown as x."""
    (images / "link.img").symlink_to("a.img")
    table = make_table(images / "link.img", plane)
    assert table.source.stat(table.source.root_fd, b"link.img").size == 8192
    table.source.close()


def test_a_source_of_another_kind_is_refused() -> None:
    """A fifo or character device is no source."""
    with pytest.raises(OSError, match="neither a directory"):
        Source.open(Path("/dev/null"), False)


# -- nodes --


def test_a_renamed_image_is_not_opened_under_the_name_another_file_took(
    table: ImageTable, images: Path
) -> None:
    """What is opened by name is checked to be the node's own file: ESTALE, never someone else's bytes."""
    image = node_of(table)
    (images / "a.img").rename(images / "moved.img")
    (images / "a.img").write_bytes(b"foreign")

    async def scenario() -> None:
        with pytest.raises(OSError, match="none of its names") as caught:
            await table.open(image, os.O_RDONLY)
        assert caught.value.errno == errno.ESTALE

    run(scenario)


def test_a_fifo_that_took_an_images_name_is_not_opened(table: ImageTable, images: Path) -> None:
    """Opening it would wait for a writer for ever."""
    image = node_of(table)
    (images / "a.img").unlink()
    os.mkfifo(images / "a.img")
    with pytest.raises(OSError, match="none of its names"):
        table.nodes.open(image, os.O_RDONLY)


def test_another_hard_link_leads_to_the_image_when_one_is_gone(table: ImageTable, images: Path) -> None:
    """All names seen are tried."""
    (images / "b.img").hardlink_to(images / "a.img")
    image = node_of(table, b"a.img")
    assert node_of(table, b"b.img") is image
    (images / "b.img").unlink()
    os.close(table.nodes.open(image, os.O_RDONLY))
    assert table.nodes.stat(image).nlink == 1


def test_a_lookup_heals_what_moved_underneath(table: ImageTable, images: Path) -> None:
    """A file found under another name is the same node with that name."""
    image = node_of(table)
    (images / "sub").mkdir()
    (images / "a.img").rename(images / "sub" / "b.img")
    directory = node_of(table, b"sub")
    assert node_of(table, b"b.img", directory.ino) is image
    assert table.nodes.stat(image).size == 8192
    assert table.nodes.display(image) == str(images / "sub" / "b.img")


def test_a_reused_inode_number_is_a_new_generation(table: ImageTable) -> None:
    """The kernel is told that it is another file, the node forgets its old names."""
    image = node_of(table)
    st = table.nodes.stat(image)
    again = table.nodes.seen(ROOT, b"new.img", st._replace(birth_ns=st.birth_ns + 1))
    assert again is image
    assert again.generation == st.birth_ns + 1
    assert again.names() == [(ROOT, b"new.img")]


@pytest.mark.parametrize("ino", [ROOT, FIRST_VIRTUAL, 2**64 - 16])
def test_inode_numbers_with_a_meaning_of_their_own_are_refused(
    table: ImageTable, ino: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a file is invisible, and the log says why."""
    st = table.nodes.stat(node_of(table))._replace(ino=ino)
    with pytest.raises(FileNotFoundError):
        table.nodes.seen(ROOT, b"odd.img", st)
    assert "odd.img is not served" in caplog.text


def test_forgotten_nodes_are_dropped(table: ImageTable, images: Path) -> None:
    """The table is as large as what the kernel knows."""
    for count in range(3):
        (images / f"{count}.img").touch()
        node_of(table, b"%d.img" % count)
    image = node_of(table, b"0.img")
    assert len(table.nodes) == 4
    table.forget(image.ino, 1)
    assert len(table.nodes) == 4
    table.forget(image.ino, 1)
    assert len(table.nodes) == 3
    table.forget(ROOT, 1)
    assert len(table.nodes) == 3
