"""Fixtures of the tier between the parts and a real mount: a data plane and a fake kernel."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel
from lone import WAYS, Lone

from aiofs.dataplane import drivers


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


@pytest.fixture
def kernel_thread() -> int:
    """One for which the loop looks (waiting.h)."""
    kthreadd = 2
    try:
        if os.getpgid(kthreadd) == 0:
            return kthreadd
    except ProcessLookupError:
        pass
    pytest.skip("no thread of the kernel can be seen here, as in a container")


@pytest.fixture(params=WAYS)
def lone(request: pytest.FixtureRequest, kernel: FakeKernel, tmp_path: Path) -> Iterator[Lone]:
    """An image of which lone requests can hang, in each of the ways in which they are done."""
    [status] = [status for status in drivers() if status.name == "io_uring"]
    if not status.works:
        pytest.skip(status.reason)
    image = WAYS[request.param](kernel, tmp_path)
    yield image
    image.close()
