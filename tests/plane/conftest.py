"""Fixtures of the tier between the parts and a real mount: a data plane and a fake kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """A fake kernel with a data plane of depth 32 that merges."""
    fake = FakeKernel()
    yield fake
    fake.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 1 MiB of known bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path
