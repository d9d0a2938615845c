""".aiofs/metrics of a real mount: what a real Prometheus makes of it, and that nothing counted is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mounting import MountedFs
from scraping import scraped
from waiting import wait_until

Mounting = Callable[..., MountedFs]
K = 4096
ODD = b'odd "name"\\\n\xff.img'


def read_direct(path: Path | bytes, count: int) -> None:
    """Open an image, read its first block so many times past the page cache, close it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(count):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(os.pread(fd, K, 0)) == K
    finally:
        os.close(fd)


def reads_of(fs: MountedFs, image: str) -> int:
    """What the metrics say that was read of an image, in requests; 0 when they do not name it."""
    text = (fs.path / ".aiofs/metrics").read_text()
    pattern = rf'^aiofs_image_requests_total{{image="{re.escape(image)}",.*op="read"}} (\S+)$'
    found = re.findall(pattern, text, re.MULTILINE)
    return int(float(found[0])) if found else 0


def test_prometheus_scrapes_a_mount(mounted: Mounting, image_dir: Path, tmp_path: Path) -> None:
    """The target is up, and queries give what was done; also of an image with an odd name."""
    for name in (b"a.img", ODD):
        Path(os.fsdecode(os.path.join(os.fsencode(image_dir), name))).write_bytes(bytes(16 * K))  # noqa: PTH118
    fs = mounted(image_dir)
    read_direct(fs.path / "a.img", 3)
    read_direct(os.fsencode(fs.path) + b"/" + ODD, 2)
    wait_until(lambda: not fs.info()["images"])  # the release comes after close(2) has returned
    with scraped(fs.path / ".aiofs/metrics", tmp_path) as prometheus:
        target = prometheus.target()
        assert (target["health"], target["lastError"]) == ("up", "")
        where = f'mountpoint="{fs.path}"'
        assert prometheus.value(f"aiofs_queue_depth{{{where}}}") == 128
        told = prometheus.value('aiofs_image_requests_total{image="a.img",op="read"}')
        [closed] = [image for image in fs.info()["closed"] if image["path"] == "a.img"]
        assert told == closed["counters"]["requests_read"] > 0
        odd = r'aiofs_image_bytes_total{image="odd \"name\"\\\n\\xff.img",op="read"}'
        assert (prometheus.value(odd) or 0) >= K
        median = (
            "histogram_quantile(0.5, aiofs_image_request_duration_seconds_bucket{image='a.img',op='read'})"
        )
        assert 0 < (prometheus.value(median) or 0) < 10


def test_counters_of_an_image_never_go_backwards(mounted: Mounting, image_dir: Path) -> None:
    """Not at its close, and not when it is opened again."""
    (image_dir / "a.img").write_bytes(bytes(16 * K))
    fs = mounted(image_dir)
    seen = [0]
    for _ in range(3):
        read_direct(fs.path / "a.img", 2)
        seen.append(reads_of(fs, "a.img"))
        wait_until(lambda: not fs.info()["images"])
        seen.append(reads_of(fs, "a.img"))
    assert seen == sorted(seen)
    assert seen[1] < seen[3] < seen[5]


def test_metrics_can_be_read_while_an_image_is_open(mounted: Mounting, image_dir: Path) -> None:
    """With its driver and size, and with what was counted so far."""
    (image_dir / "a.img").write_bytes(bytes(16 * K))
    fs = mounted(image_dir)
    with (fs.path / "a.img").open("rb") as image:
        image.read(K)
        text = (fs.path / ".aiofs/metrics").read_text()
        assert re.search(rf'^aiofs_image_size_bytes{{image="a.img",.*}} {16 * K}.0$', text, re.MULTILINE)
        assert reads_of(fs, "a.img") >= 1
