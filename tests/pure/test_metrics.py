"""metrics.py: info.json as Prometheus metrics, in its text format."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiofs import info, metrics
from aiofs.config import MountConfig
from aiofs.dataplane import LATENCY_LIMITS_NS, ImageCounters

PLANE = {
    "requests": 1000,
    "forwarded": 12,
    "refused": 1,
    "batches": 7,
    "ios": 30,
    "batch_ios": [4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    "sleeps": 3,
    "looks": 2,
    "look_trials": 4,
    "replies_together": 3,
    "halves": 6,
    "stood_in": 8,
    "in_flight": 5,
}
ODD_NAMES = [
    'quote".img',
    "back\\slash.img",
    "new\nline.img",
    "tab\tand\rreturn.img",
    "\u2028\u0085.img",
    "{a=1,b=2} 3.img",
    "#.img",
    "",
]


def counters(**changes: Any) -> dict[str, Any]:
    """The counters of an image that did nothing but this."""
    return {**ImageCounters().read(), **changes}


def image(path: str = "a.img", **changes: Any) -> dict[str, Any]:
    """An open image."""
    return {
        "name": f"/srv/images/{path}",
        "path": path,
        "driver": "io_uring",
        "cache": "none",
        "opens": 1,
        "size": 1 << 30,
        "counters": counters(**changes),
    }


def told(**changes: Any) -> dict[str, Any]:
    """The content of info.json."""
    return info.build(
        **{
            "version": "0.1.0",
            "config": MountConfig(source=Path("/srv/images"), mountpoint=Path("/mnt/vdisk")),
            "source_kind": "directory",
            "lineage": info.Lineage(os.getpid(), 9, 1000.5, 0, None),
            "privileges": {"no_new_privs": True, "capabilities": [], "note": ""},
            "exchange": None,
            "memory": {"io_flusher": True, "locked": True, "oom_score_adj": -1000},
            "plane": PLANE,
            "latency_limits_ns": LATENCY_LIMITS_NS,
            "images": [image()],
            "closed": [],
            **changes,
        }
    )


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a text by name and labels, without the mountpoint; none is there twice."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "mountpoint"}
            key = (sample.name, frozenset(labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    """One sample."""
    return samples(text)[name, frozenset(labels.items())]


def check(text: bytes) -> None:
    """Prometheus's own linter has nothing to say against a text; skips where it is not installed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there: scripts/test borrows it, or apt-get install prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_counters_are_told_under_conventional_names() -> None:
    """Base units, `_total`, one label for the operation."""
    text = metrics.text(
        told(images=[image("guests/a.img", requests_read=7, requests_fsync=1, bytes_read=512, merged=3)])
    )
    mine = {"image": "guests/a.img"}
    assert value(text, "aiofs_image_requests_total", **mine, op="read") == 7
    assert value(text, "aiofs_image_requests_total", **mine, op="fsync") == 1
    assert value(text, "aiofs_image_bytes_total", **mine, op="read") == 512
    assert value(text, "aiofs_image_merged_requests_total", **mine) == 3
    assert value(text, "aiofs_image_size_bytes", **mine) == 1 << 30
    assert value(text, "aiofs_kernel_requests_total") == 1000
    assert value(text, "aiofs_start_time_seconds") == 1000.5
    assert value(text, "aiofs_image_info", **mine, driver="io_uring", cache="none") == 1


def test_every_sample_says_which_mount() -> None:
    """So that the texts of two mounts can be joined."""
    for family in text_string_to_metric_families(metrics.text(told()).decode()):
        assert {sample.labels["mountpoint"] for sample in family.samples} <= {"/mnt/vdisk"}


def test_every_counter_of_the_data_plane_is_told() -> None:
    """Each changes some sample when it changes."""
    before = metrics.text(told())
    for name, old in counters().items():
        if name == "latency":
            continue
        after = metrics.text(told(images=[image(**{name: old - 5 if name == "sticky_error" else old + 5})]))
        assert samples(after) != samples(before), name


def test_latencies_become_a_histogram_in_seconds() -> None:
    """Cumulative, its buckets sums of the data plane's finer ones."""
    buckets = {"1000": 1, "7000": 2, "8000": 4, "10000": 8, "67108864000": 16, "inf": 32}
    latency = {**counters()["latency"], "write": {"sum_ns": 2_500_000_000, "buckets": buckets}}
    text = metrics.text(told(images=[image(latency=latency)]))
    name, mine = "aiofs_image_request_duration_seconds", {"image": "a.img", "op": "write"}
    assert value(text, f"{name}_bucket", **mine, le="8e-06") == 7
    assert value(text, f"{name}_bucket", **mine, le="1.6e-05") == 15
    assert value(text, f"{name}_bucket", **mine, le="16.777216") == 15
    assert value(text, f"{name}_bucket", **mine, le="+Inf") == 63
    assert value(text, f"{name}_count", **mine) == 63
    assert value(text, f"{name}_sum", **mine) == 2.5
    assert not any(dict(labels).get("op") == "read" for _, labels in samples(text)), "nothing was read"


def test_the_limits_are_limits_of_the_data_plane() -> None:
    """Otherwise the sums were not exact."""
    assert set(metrics.DURATION_LIMITS_NS) <= set(LATENCY_LIMITS_NS)
    assert list(metrics.DURATION_LIMITS_NS) == sorted(metrics.DURATION_LIMITS_NS)


def test_batch_sizes_become_a_histogram() -> None:
    """Four of one io, two of 4 to 7, one of 4,096 or more."""
    text = metrics.text(told())
    limits = ("1", "3", "7", "15", "4095", "+Inf")
    assert [value(text, "aiofs_batch_ios_bucket", le=le) for le in limits] == [4, 4, 6, 6, 6, 7]
    assert (value(text, "aiofs_batch_ios_count"), value(text, "aiofs_batch_ios_sum")) == (7, 30)


def test_an_image_and_one_that_had_its_name_are_one_series() -> None:
    """A file that was removed while closed, and the new one: two samples of one name would be refused."""
    gone = {"name": "/srv/images/a.img", "path": "a.img", "counters": counters(requests_read=10, errors=1)}
    text = metrics.text(told(images=[image(requests_read=1)], closed=[gone]))
    assert value(text, "aiofs_image_requests_total", image="a.img", op="read") == 11
    assert value(text, "aiofs_image_errors_total", image="a.img") == 1


def test_a_closed_image_keeps_its_counters_only() -> None:
    """It has no size and no driver that one could tell."""
    gone = {"name": "/srv/images/b.img", "path": "b.img", "counters": counters(requests_read=10)}
    text = metrics.text(told(images=[], closed=[gone]))
    assert value(text, "aiofs_image_requests_total", image="b.img", op="read") == 10
    assert not any(name in ("aiofs_image_info", "aiofs_image_size_bytes") for name, _ in samples(text))


def test_an_error_that_stays_is_told_by_its_number() -> None:
    """errno of the fsync that failed."""
    text = metrics.text(told(images=[image(sticky_error=-5)]))
    assert value(text, "aiofs_image_sticky_error", image="a.img") == 5


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_come_back_as_they_are(name: str) -> None:
    """Quotes, backslashes, newlines: escaped, and read back by a parser."""
    text = metrics.text(told(images=[image(name, requests_read=1)]))
    assert value(text, "aiofs_image_requests_total", image=name, op="read") == 1
    check(text)


def test_a_name_that_is_not_utf8_is_shown_by_its_bytes() -> None:
    """The format knows UTF-8 only."""
    text = metrics.text(told(images=[image(os.fsdecode(b"a\xff\xfe.img"), requests_read=1)]))
    assert value(text, "aiofs_image_requests_total", image="a\\xff\\xfe.img", op="read") == 1
    check(text)


def busy() -> bytes:
    """The metrics of a mount where everything that can be counted has been."""
    latency = {
        operation: {"sum_ns": 5, "buckets": {"1000": 1, "inf": 2}} for operation in counters()["latency"]
    }
    changes: dict[str, Any] = {**dict.fromkeys(counters(), 3), "latency": latency}
    return metrics.text(told(images=[image(**changes), image("b.img")]))


def test_prometheus_has_nothing_against_it() -> None:
    """promtool check metrics: names, types, help, no sample twice."""
    check(busy())


def test_every_metric_is_documented_and_no_other() -> None:
    """The table in docs/monitoring.md has exactly those that there are."""
    page = Path(__file__).resolve().parents[2] / "docs/monitoring.md"
    rows = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| `aiofs_")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    families = text_string_to_metric_families(busy().decode())
    assert documented == {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }


def test_a_mount_without_images_has_metrics_too() -> None:
    """Those of the mount."""
    text = metrics.text(told(images=[]))
    assert value(text, "aiofs_queue_depth") == 128
    check(text)
