"""Fixtures of the tier between the parts and a real mount: a data plane and a fake kernel."""

from __future__ import annotations

import random
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
    """An image of 1 MiB, no two places of which look alike."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(2008).randbytes(1 << 20))
    return path
