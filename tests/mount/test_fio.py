"""fio writes, reads back and checks sums: every driver, direct and buffered images, merging on and off.

Two jobs run at once on two images, one random with libaio and O_DIRECT, one sequential with io_uring
through the kernel's page cache; both with 512 bytes to 256 KiB for each request, 32 at once.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounting import MountedFs
from working import DRIVERS, require_driver

pytestmark = pytest.mark.skipif(
    shutil.which("fio") is None, reason="fio is not installed (apt-get install fio)"
)

SIZE = 12 << 20
TIMEOUT_S = 60
VERIFY = (
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--verify_state_save=0",
    "--serialize_overlap=1",
    "--bsrange=512-256k",
    "--blockalign=512",
    "--iodepth=32",
    f"--size={SIZE}",
)


@functools.cache
def engine(name: str) -> str:
    """fio's engine of that name where this kernel lets it work, else libaio."""
    tried = subprocess.run(
        ["fio", "--name=try", f"--ioengine={name}", "--filename=/dev/zero", "--rw=read", "--size=4k"],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return name if tried.returncode == 0 else "libaio"


def fio(*arguments: str) -> dict[str, Any]:
    """What fio reports; AssertionError with its words when it found anything wrong."""
    done = subprocess.run(
        ["fio", "--output-format=json", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.args}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    assert [job["error"] for job in report["jobs"]] == [0] * len(report["jobs"])
    return report


def job(path: Path, pattern: str, direct: bool, ioengine: str) -> list[str]:
    """One fio job that writes a whole file and then verifies it."""
    return [
        f"--name={path.stem}",
        f"--filename={path}",
        f"--rw={pattern}",
        f"--direct={int(direct)}",
        f"--ioengine={engine(ioengine)}",
        *VERIFY,
    ]


@contextmanager
def kept_open(*paths: Path) -> Iterator[None]:
    """Hold files open, so that the mount keeps the counters of its images."""
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("merge", [True, False], ids=["merge", "no-merge"])
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_fio_finds_what_it_has_written(
    mounted: Callable[..., MountedFs],
    image_dir: Path,
    need_direct: Callable[[str], str],
    driver: str,
    cache: str,
    merge: bool,
) -> None:
    """Every block has its sum, no request failed, and the images underneath have the very same bytes."""
    images = [image_dir / name for name in ("random.img", "sequential.img")]
    for image in images:
        image.write_bytes(bytes(SIZE))
    options = ["--aio", require_driver(driver), "--cache", need_direct(cache)]
    fs = mounted(image_dir, *options, *([] if merge else ["--no-merge"]))
    random, sequential = (fs.path / image.name for image in images)
    with kept_open(random, sequential):
        fio(*job(random, "randwrite", True, "libaio"), *job(sequential, "write", False, "io_uring"))
        counters = [image["counters"] for image in fs.info()["images"]]
    assert [of["errors"] for of in counters] == [0, 0]
    assert [of["in_flight"] for of in counters] == [0, 0]
    if not merge:
        assert [of["merged"] for of in counters] == [0, 0]
    for image in images:
        assert (fs.path / image.name).read_bytes() == image.read_bytes()


def test_sequential_direct_requests_at_depth_are_merged(
    mounted: Callable[..., MountedFs], image_dir: Path
) -> None:
    """4 MiB in 1,024 adjacent requests, 32 at once: fewer ios than requests, and the sums are right."""
    (image_dir / "a.img").write_bytes(bytes(SIZE))
    fs = mounted(image_dir, "--aio", "threads")
    path = fs.path / "a.img"
    with kept_open(path):
        words = ["--bs=4k", "--iodepth_batch=32", "--iodepth_low=1", "--size=4m", "--iodepth=32"]
        verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
        fio(
            "--name=s", f"--filename={path}", "--rw=write", "--direct=1", "--ioengine=libaio", *words, *verify
        )
        [image] = fs.info()["images"]
    counters = image["counters"]
    assert counters["requests_write"] == 1024
    assert counters["ios_write"] < counters["requests_write"]
    assert counters["merged"] > 0


def test_several_synchronous_direct_writers_run_at_once(
    mounted: Callable[..., MountedFs], image_dir: Path
) -> None:
    """Four processes with pwrite and O_DIRECT on one image, each its own quarter: all that is verified."""
    (image_dir / "a.img").write_bytes(bytes(SIZE))
    fs = mounted(image_dir)
    path = fs.path / "a.img"
    with kept_open(path):
        words = ["--numjobs=4", f"--size={SIZE // 4}", f"--offset_increment={SIZE // 4}", "--bs=4k"]
        verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]
        fio(
            "--name=w",
            f"--filename={path}",
            "--rw=randwrite",
            "--direct=1",
            "--ioengine=psync",
            *words,
            *verify,
        )
        [image] = fs.info()["images"]
    assert image["counters"]["requests_write"] == SIZE // 4096
    assert image["counters"]["errors"] == 0
    assert (fs.path / "a.img").read_bytes() == (image_dir / "a.img").read_bytes()
