"""Fixtures for the parts of the control plane; a file that needs other ones has its own of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from planes import FakePlane, make_table

from aiofs.config import CacheMode
from aiofs.images import ImageTable


@pytest.fixture
def plane() -> FakePlane:
    """A data plane that only remembers what it was told."""
    return FakePlane()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory with one image of 8 KiB."""
    path = tmp_path / "images"
    path.mkdir()
    (path / "a.img").write_bytes(bytes(8192))
    return path


@pytest.fixture
def table(images: Path, plane: FakePlane) -> Iterator[ImageTable]:
    """The table of open images over `images`, in cache mode writeback."""
    made = make_table(images, plane, cache=CacheMode.WRITEBACK)
    yield made
    trio.run(made.close_all)
    made.source.close()
