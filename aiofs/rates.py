"""What a mount did between two readings of its info.json: rates, shares and latencies of each image. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .latency import NO_LATENCY, Latency

_REQUESTS = ("requests_read", "requests_write", "requests_fsync")
_IOS = ("ios_read", "ios_write", "ios_fsync")
_COUNTED = (*_REQUESTS, *_IOS, "batches", "merged", "bytes_read", "bytes_written", "errors")


@dataclass(frozen=True)
class ImageRates:
    """One image in one interval."""

    path: str
    """Its name in the mount."""
    requests_s: float
    """Reads, writes and fsyncs of the kernel a second."""
    read_share: float | None
    """Reads of the reads and writes, 0 to 1; None: there were none. So are the other shares and averages."""
    bytes_s: float
    """Read and written."""
    depth: float
    """Requests in work, on average: the time that requests took in all, by the interval (Little's law)."""
    batch: float | None
    """Ios of this image in a batch, on average over the batches that had any."""
    merged_share: float | None
    """Reads and writes that joined the io of another one, of all."""
    p50_ns: float | None
    """Half of the reads and writes took no longer."""
    p99_ns: float | None
    failing: bool
    """Requests failed in the interval, or every fsync does."""


@dataclass(frozen=True)
class MountRates:
    """One mount in one interval."""

    interval_s: float
    requests_s: float
    forwarded_s: float
    batches_s: float
    batch: float | None
    """Ios in a batch, on average."""
    sleeps_s: float
    looks_s: float
    in_flight: int
    """Now."""
    images: Sequence[ImageRates]
    """The open ones, and those closed again that did something in the interval."""


def same_server(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Both readings are of one server's life; counters of another one began anew."""
    return all(before[field] == after[field] for field in ("pid", "start_ticks", "restarts"))


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> MountRates:
    """The rates of the interval between two readings, the same server's."""
    interval_s = max(after["clock_s"] - before["clock_s"], 1e-9)
    plane = {name: after["plane"][name] - before["plane"][name] for name in _PLANE}
    earlier = {image["node"]: image["counters"] for image in (*before["closed"], *before["images"])}
    limits_ns = after["latency_limits_ns"]
    images = [_image(image, earlier, interval_s, limits_ns) for image in after["images"]]
    closed = [_image(image, earlier, interval_s, limits_ns) for image in after["closed"]]
    return MountRates(
        interval_s=interval_s,
        requests_s=plane["requests"] / interval_s,
        forwarded_s=plane["forwarded"] / interval_s,
        batches_s=plane["batches"] / interval_s,
        batch=_ratio(plane["ios"], plane["batches"]),
        sleeps_s=plane["sleeps"] / interval_s,
        looks_s=plane["looks"] / interval_s,
        in_flight=after["plane"]["in_flight"],
        images=[*images, *(image for image in closed if image.requests_s)],
    )


_PLANE = ("requests", "forwarded", "batches", "ios", "sleeps", "looks")


def _image(
    image: Mapping[str, Any],
    earlier: Mapping[int, Mapping[str, Any]],
    interval_s: float,
    limits_ns: Sequence[int],
) -> ImageRates:
    now, then = image["counters"], earlier.get(image["node"])
    if then is None or any(
        now[name] < then[name] for name in _COUNTED
    ):  # new, or another file of that number
        then = None
    did = {name: now[name] - (then[name] if then else 0) for name in _COUNTED}
    latency = {operation: _latency(now, then, operation) for operation in now["latency"]}
    data = latency["read"] + latency["write"]
    transfers = did["requests_read"] + did["requests_write"]
    return ImageRates(
        path=image["path"],
        requests_s=sum(did[name] for name in _REQUESTS) / interval_s,
        read_share=_ratio(did["requests_read"], transfers),
        bytes_s=(did["bytes_read"] + did["bytes_written"]) / interval_s,
        depth=sum(one.sum_ns for one in latency.values()) / 1e9 / interval_s,
        batch=_ratio(sum(did[name] for name in _IOS), did["batches"]),
        merged_share=_ratio(did["merged"], transfers),
        p50_ns=data.percentile_ns(50, limits_ns),
        p99_ns=data.percentile_ns(99, limits_ns),
        failing=bool(did["errors"] or now["sticky_error"]),
    )


def _latency(now: Mapping[str, Any], then: Mapping[str, Any] | None, operation: str) -> Latency:
    before = Latency.told(then["latency"][operation]) if then else NO_LATENCY
    return Latency.told(now["latency"][operation]).since(before)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
