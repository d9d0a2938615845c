"""The exerciser on a real mount: every driver, direct and buffered images; and on files that lie, to see
that it would notice.

AIOFS_SEED=n chooses other operations, AIOFS_OPERATIONS=n another number of them for each mount; --long does
100,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import exerciser
import pytest
from exerciser import Exerciser, Mismatch
from mounting import MountedFs

SEED = int(os.environ.get("AIOFS_SEED", "2008"))


@pytest.fixture
def operations(request: pytest.FixtureRequest) -> int:
    """For each mount; a driver has two of them."""
    usual = "100000" if request.config.getoption("--long") else "10000"
    return int(os.environ.get("AIOFS_OPERATIONS", usual))


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_an_image_is_what_was_written_to_it(
    mounted: Callable[..., MountedFs],
    image_dir: Path,
    driver: str,
    cache: str,
    need_direct: Callable[[str], str],
    operations: int,
) -> None:
    """After any order of reads, writes, mappings, truncations, bursts and re-opens, from both sides."""
    fs = mounted(image_dir, "--aio", driver, "--cache", need_direct(cache))
    Exerciser(fs.path / "a.img", image_dir / "a.img", SEED).run(operations)
    assert fs.info()["driver"] == driver


def test_the_exerciser_finds_nothing_wrong_with_a_plain_file(tmp_path: Path) -> None:
    """Without any mount: what it complains about elsewhere is not of its own making."""
    path = tmp_path / "plain"
    Exerciser(path, path, SEED, direct=False).run(300)


@pytest.mark.parametrize("lie", ["pread", "pwrite", "ftruncate", "fallocate", "lseek"])
def test_the_exerciser_notices_one_wrong_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """A read that returns it, a write that leaves it, a size, a hole, or what is said of a hole that is one
    byte off: the seed is printed."""
    module = exerciser if lie == "fallocate" else os
    honest = getattr(module, lie)

    def pread(fd: int, length: int, offset: int) -> bytes:
        data: bytes = honest(fd, length, offset)
        return data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 100_000 else data

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100_000:
            honest(fd, data[:-1] + bytes([data[-1] ^ 1]), offset)
            return len(data)
        written: int = honest(fd, data, offset)
        return written

    def ftruncate(fd: int, size: int) -> None:
        honest(fd, size + 1)

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        honest(fd, mode, offset, length + 1)

    def lseek(fd: int, offset: int, whence: int) -> int:
        found: int = honest(fd, offset, whence)
        return found + 1 if whence == os.SEEK_DATA else found

    lies = {"pread": pread, "pwrite": pwrite, "ftruncate": ftruncate, "fallocate": fallocate, "lseek": lseek}
    monkeypatch.setattr(module, lie, lies[lie])
    path = tmp_path / "lying"
    with pytest.raises(Mismatch, match=rf"with seed {SEED}(?s:.)*the newest at the end"):
        Exerciser(path, path, SEED, direct=False).run(2000)
