"""The end of the loop, with images that the kernel has not released, as when it is told to stop."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from fakekernel import FakeKernel

from aiofs.dataplane import driver_names, drivers

K = 4096


def only_we_have_it_open(path: Path) -> bool:
    """The kernel grants a write lease on a file that nobody else has open, itself included (fcntl(2))."""
    with path.open("rb+") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("driver", driver_names())
@pytest.mark.parametrize("wide", ["", "io_uring", "linux"])
def test_nothing_holds_an_image_that_has_been_closed(
    kernel: FakeKernel, image: Path, driver: str, wide: str
) -> None:
    """Not its driver either: the file system that it is on can be unmounted before the plane is freed."""
    for status in drivers():
        if status.name in (driver, wide) and not status.works:
            pytest.skip(status.reason)
    how = {"direct": True, "block_size": K} if wide else {}
    kernel.register(image, driver=driver, wide_driver=wide, **how)
    before = image.read_bytes()
    assert kernel.read(K, 2 * K) == before[K : 3 * K]
    assert kernel.write(0, b"x" * K) == K
    assert not only_we_have_it_open(image)
    kernel.end()
    assert only_we_have_it_open(image)
