"""Fixtures for the tests on real mounts: the five drivers, and cache modes that this machine can do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attaching
import pytest
from attaching import Attaching, devices
from loops import Loops
from mounting import MountedFs
from namespace import Namespace, why_not
from waiting import wait_until
from working import DRIVERS, require_driver

from aiofs.loopdevices import LoopDevice


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each of the five drivers that works here."""
    return require_driver(request.param)


@pytest.fixture
def need_direct(image_dir: Path) -> Callable[[str], str]:
    """`need_direct(cache)` gives the cache mode back; skips where it needs O_DIRECT and there is none."""

    def check(cache: str) -> str:
        if cache not in ("none", "directsync"):
            return cache
        kind = subprocess.check_output(["stat", "-f", "-c", "%T", image_dir], text=True).strip()
        if kind in ("tmpfs", "ramfs"):
            pytest.skip(f"{image_dir} is on {kind}, which has no O_DIRECT: pytest --basetemp=DIR elsewhere")
        try:
            os.close(os.open(image_dir, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600))
        except OSError as error:
            pytest.skip(f"no O_DIRECT in {image_dir}: {error.strerror}")
        return cache

    return check


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Loops]:
    """Loop devices under a mount: name it before `mounted`, so that it is taken away after the mount."""
    yield from _loops(tmp_path)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    """Loop devices on a mount's images: name it after `mounted`, so that it is taken away before."""
    yield from _loops(tmp_path)


@pytest.fixture
def disk(image_dir: Path) -> Path:
    """An image of 32 MiB without blocks, in the source."""
    path = image_dir / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    return path


@pytest.fixture
def attach(
    mounted: Callable[..., MountedFs],  # noqa: ARG001 -- so that devices are taken away before the mounts
    tmp_path: Path,
) -> Iterator[Attaching]:
    """`attach(image, *flags)`: the device that aiofs prints. What is on mounts of the test goes at its end.

    Name it before `loops`, which mounts from the devices.
    """
    reason = Loops.why_not()
    if reason:
        pytest.skip(reason)

    def left() -> list[LoopDevice]:
        mounts = tmp_path.glob("mnt*")
        return [device for path in mounts for device in devices(path)]

    yield attaching.attach
    for device in left():
        subprocess.run(["losetup", "--detach", device.node], check=False)
    wait_until(lambda: not left())


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    """A mount namespace of the test's own."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    directory = tmp_path / "namespace"
    directory.mkdir()
    made = Namespace(directory)
    if not made.works:
        pytest.skip("unshare(1) cannot make a mount namespace here")
    yield made
    made.close()


def _loops(directory: Path) -> Iterator[Loops]:
    reason = Loops.why_not()
    if reason:
        pytest.skip(reason)
    made = Loops(directory)
    yield made
    wrong = made.clean_up()
    assert not wrong, "\n".join(wrong)
