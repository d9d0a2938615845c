"""`.aiofs/metrics`: what info.json holds as Prometheus metrics, in its text format.

Made from the content of info.json alone, so both always tell the same. Names and units follow Prometheus's
conventions: seconds, bytes, `_total`. Every sample has the label `mountpoint`, because the textfile collector
of node_exporter joins the files of several mounts. Series appear when there is something to tell: an
operation that no request has asked for has none.

Imports prometheus_client, so it is imported itself when the file is read for the first time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from .latency import NO_LATENCY, Latency

DURATION_LIMITS_NS = tuple(1000 << doubling for doubling in (*range(3, 21), 22, 24))
"""Upper limits of the latency buckets told: 8 us to 1 s, doubling, then 4.2 s and 16.8 s. Each of them is a
limit of the data plane's finer buckets, so the sums are exact."""

_PLANE_COUNTERS = (
    ("kernel_requests", "requests", "Messages read from the kernel."),
    ("forwarded_requests", "forwarded", "Messages passed to the control plane: names, attributes, opens."),
    ("refused_requests", "refused", "Malformed messages."),
    ("sleeps", "sleeps", "Waits in which the data plane's thread slept."),
    ("looks", "looks", "Sleeps that were avoided by looking for work a little longer."),
    ("look_trials", "look_trials", "Times that the other of looking and sleeping was tried."),
    ("replies_together", "replies_together", "Answers that shared a system call with others."),
    ("stood_in", "stood_in", "I/Os after which the thread that did them answered in the loop's place."),
    ("halves", "halves", "Batches after which requests were held back until the device had done its lump."),
)
"""Name of the metric, field of `plane` in info.json, help."""

_BY_OPERATION = (
    (
        "requests",
        "Requests of the kernel.",
        {
            "read": "requests_read",
            "write": "requests_write",
            "fsync": "requests_fsync",
            "fallocate": "requests_fallocate",
            "lseek": "requests_lseek",
            "truncate": "requests_truncate",
        },
    ),
    ("bytes", "Bytes read and written.", {"read": "bytes_read", "write": "bytes_written"}),
    (
        "ios",
        "I/Os handed to the driver.",
        {
            "read": "ios_read",
            "write": "ios_write",
            "fsync": "ios_fsync",
            "fallocate": "ios_fallocate",
            "lseek": "ios_lseek",
        },
    ),
)
"""Name of the metric, help, field of the counters for each operation."""

_COUNTERS = (
    ("batches", "batches", "Submits that carried at least one I/O of the image."),
    ("merged_requests", "merged", "Requests that joined the I/O of another one."),
    ("errors", "errors", "Requests answered with an error."),
    ("waits", "waits", "Requests that waited for an earlier one that they overlap."),
    ("unaligned_requests", "unaligned", "Requests that had to be padded to whole blocks."),
    ("retries", "retries", "I/Os done again: split, short or interrupted."),
)
"""Name of the metric, field of the counters, help."""


def text(told: Mapping[str, Any]) -> bytes:
    """The metrics of a mount from the content of info.json."""
    return generate_latest(_Told(told))


class _Told(Collector):
    """One state of a mount as generate_latest wants it: it asks for nothing but `collect`."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        mountpoint = label(self._told["mountpoint"])
        yield from _mount_metrics(self._told, mountpoint)
        yield from _open_image_metrics(self._told["images"], mountpoint)
        yield from _counter_metrics([*self._told["images"], *self._told["closed"]], mountpoint)


def label(name: str) -> str:
    """A file's name as a label value: what is not UTF-8 becomes `\\xff`; the format escapes the rest."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _mount_metrics(told: Mapping[str, Any], mountpoint: str) -> Iterator[Metric]:
    about = InfoMetricFamily("aiofs", "What serves the mount.", labels=["mountpoint"])
    words = {name: label(str(told[name])) for name in ("version", "driver", "cache", "source", "kernel")}
    about.add_metric([mountpoint], words)
    yield about
    plane = told["plane"]
    yield _gauge(
        "aiofs_start_time_seconds", "When the mount became ready, since 1970.", mountpoint, told["started"]
    )
    yield _gauge("aiofs_queue_depth", "Requests in work at once, at most.", mountpoint, told["queue_depth"])
    yield _gauge("aiofs_in_flight", "Requests in work now.", mountpoint, plane["in_flight"])
    for name, field, what in _PLANE_COUNTERS:
        counter = CounterMetricFamily(f"aiofs_{name}", what, labels=["mountpoint"])
        counter.add_metric([mountpoint], plane[field])
        yield counter
    batches = HistogramMetricFamily("aiofs_batch_ios", "Batches by the I/Os in them.", labels=["mountpoint"])
    limits = [str((2 << power) - 1) for power in range(len(plane["batch_ios"]) - 1)]
    cumulative = itertools.accumulate(plane["batch_ios"])
    batches.add_metric([mountpoint], list(zip([*limits, "+Inf"], cumulative, strict=True)), plane["ios"])
    yield batches


def _gauge(name: str, what: str, mountpoint: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, what, labels=["mountpoint"])
    gauge.add_metric([mountpoint], value)
    return gauge


def _open_image_metrics(images: Iterable[Mapping[str, Any]], mountpoint: str) -> Iterator[Metric]:
    """What only an open image has."""
    labels = ["mountpoint", "image"]
    about = InfoMetricFamily("aiofs_image", "How an open image is served.", labels=labels)
    opens = GaugeMetricFamily("aiofs_image_opens", "Opens of the image now.", labels=labels)
    size = GaugeMetricFamily("aiofs_image_size_bytes", "Size of the image.", labels=labels)
    for name, (image, *_) in _by_name(images).items():
        values = [mountpoint, name]
        about.add_metric(values, {"driver": image["driver"], "cache": str(image["cache"])})
        opens.add_metric(values, image["opens"])
        size.add_metric(values, image["size"])
    yield from (about, opens, size)


def _counter_metrics(images: Iterable[Mapping[str, Any]], mountpoint: str) -> Iterator[Metric]:
    """What is counted of images, open or not. Those of one name are counted together: a file that was
    removed, and the one that has its name now."""
    counted = {name: [image["counters"] for image in same] for name, same in _by_name(images).items()}
    labels = ["mountpoint", "image"]
    for name, what, fields in _BY_OPERATION:
        counter = CounterMetricFamily(f"aiofs_image_{name}", what, labels=[*labels, "op"])
        for image, counters in counted.items():
            for operation, field in fields.items():
                value = _sum(counters, field)
                if value:
                    counter.add_metric([mountpoint, image, operation], value)
        yield counter
    for name, field, what in _COUNTERS:
        counter = CounterMetricFamily(f"aiofs_image_{name}", what, labels=labels)
        for image, counters in counted.items():
            counter.add_metric([mountpoint, image], _sum(counters, field))
        yield counter
    yield _durations(counted, mountpoint)
    in_flight = GaugeMetricFamily("aiofs_image_in_flight", "Requests in work now.", labels=labels)
    sticky = GaugeMetricFamily("aiofs_image_sticky_error", "errno of a failed fsync; 0: none.", labels=labels)
    for image, counters in counted.items():
        in_flight.add_metric([mountpoint, image], _sum(counters, "in_flight"))
        sticky.add_metric([mountpoint, image], max(-one["sticky_error"] for one in counters))
    yield from (in_flight, sticky)


def _durations(counted: Mapping[str, list[Mapping[str, Any]]], mountpoint: str) -> Metric:
    durations = HistogramMetricFamily(
        "aiofs_image_request_duration_seconds",
        "How long requests took, from being read from the kernel until they could be answered.",
        labels=["mountpoint", "image", "op"],
    )
    for image, counters in counted.items():
        for operation in counters[0]["latency"]:
            latency = sum((Latency.told(one["latency"][operation]) for one in counters), NO_LATENCY)
            if latency.count:
                buckets = [(str(limit / 1e9), latency.up_to(limit)) for limit in DURATION_LIMITS_NS]
                durations.add_metric(
                    [mountpoint, image, operation], [*buckets, ("+Inf", latency.count)], latency.sum_ns / 1e9
                )
    return durations


def _by_name(images: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    named: dict[str, list[Mapping[str, Any]]] = {}
    for image in images:
        named.setdefault(label(image["path"]), []).append(image)
    return named


def _sum(counters: Iterable[Mapping[str, Any]], field: str) -> int:
    return sum(one[field] for one in counters)
