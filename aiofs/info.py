"""`.aiofs/info.json`: what a mount tells about itself, as the server builds it and as people read it.

The server's side is `build`; FIELDS documents every field it fills. The reader's side is `read`, which
needs no socket and no import beyond the standard library, and the tables that `aiofs info` prints.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fusermount
from .config import MountConfig
from .errors import AiofsError, reason
from .faults import Plan
from .mounttable import Mount

if TYPE_CHECKING:
    from .dataplane import FaultCounts

INFO_FILE = ".aiofs/info.json"
WIDTH = 80
MIN_NAME = 10

FIELDS: Mapping[str, str] = {
    "version": "version of aiofs that serves the mount",
    "pid": "process id of the keeper, which ends when the mount has ended; of the server where there is none",
    "start_ticks": "when that process started, in clock ticks since boot (proc(5) stat, field 22): "
    "tells it from a later process with the same pid",
    "started": "when the mount became ready, in seconds since 1970",
    "outcome_fd": "descriptor of that process in which it says, at its end, what could not be synced",
    "server_pid": "process id of the server",
    "restarts": "servers that the mount had before this one",
    "keeper": "the abstract socket that takes requests for a restart; null: the mount ends with its server",
    "source": "the image directory, image file or block device",
    "source_kind": "directory, file or block device",
    "mountpoint": "where it is mounted",
    "driver": "the AIO driver asked for; auto: one is decided for each image",
    "driver_reason": "who decided",
    "cache": "cache mode asked for; auto: none where O_DIRECT works for an image, else writeback",
    "queue_depth": "requests in work at once, at most",
    "merge": "adjacent requests are merged",
    "read_only": "nothing can be written through the mount",
    "privileges": "what the server may still do: no_new_privs, capabilities (names without CAP_), and "
    "note: why it can gain others",
    "kernel": "release of the kernel",
    "fuse": "agreed with the kernel at INIT: protocol (the kernel's), max_write and max_readahead in "
    "bytes, max_pages, max_background",
    "memory": "what the kernel granted the server against shortage of memory: io_flusher (PR_SET_IO_FLUSHER "
    "of its threads), locked (what it has touched stays resident), oom_score_adj (-1000: never killed)",
    "clock_s": "when the counters were read, in seconds of CLOCK_MONOTONIC: rates are differences by it",
    "plane": "counters of the data plane: requests read from the kernel; forwarded of them to the control "
    "plane; refused as malformed; batches submitted, ios in all of them, and batch_ios: [k] counts those "
    "of 2^k to 2^(k+1)-1 ios; sleeps, and looks: sleeps avoided by looking a little longer; "
    "look_trials: how often the other of the two was tried; replies_together: answers that shared a system "
    "call; halves: batches after which requests were held back, since the device reports what it has done in "
    "lumps; stood_in: ios after which the thread that did them answered in the loop's place; in_flight now",
    "faults": "null, or what fault:DRIVER does on purpose: seed, reorder, ios given to it, overlaps (of them "
    "while one that they overlap was in flight: 0, or aiofs is wrong), and each fault's words and how many "
    "operations it struck",
    "latency_limits_ns": "the longest latency of each bucket of the images' latencies, in ns; one bucket "
    "more, inf, has no limit",
    "images": "the open images, one entry each: its name, path in the mount, node (inode number), driver and "
    "driver_reason, the tests that led to it (name, looked_at, verdict yes, no or noted, reason, and the "
    "driver that a test is about), cache mode, block size and counters since the mount began, over all opens "
    "(requests_*: by the kernel; ios_*: handed to the driver; batches: submits with at least one io of it; "
    "merged: requests that joined another one's io; bytes_*; errors: requests answered with an errno, not "
    "counting lseeks that found nothing; waits: for an overlapping request; unaligned: padded; retries; "
    "in_flight now; sticky_error: of a failed fsync; latency: of answered requests, by operation: sum_ns, "
    "and requests by the limit of their bucket in ns)",
    "closed": "images that were open earlier, the last 1,024: name, path, node and counters",
}
"""Every field of info.json. Fields are added, never renamed; a reader ignores those it does not know."""


# -- the server's side --


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot. OSError when there is none of that pid."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[19])  # after the name, which may hold anything


def agreed(exchange: tuple[bytes, bytes] | None) -> dict[str, int | str]:
    """What the INIT exchange settled (struct fuse_init_in and fuse_init_out of linux/fuse.h)."""
    if exchange is None or len(exchange[0]) < 48 or len(exchange[1]) < 46:
        return {}
    major, minor = struct.unpack_from("<II", exchange[0], 40)
    readahead, _flags, background, _, max_write, _, pages = struct.unpack_from("<IIHHIIH", exchange[1], 24)
    return {
        "protocol": f"{major}.{minor}",
        "max_write": max_write,
        "max_readahead": readahead,
        "max_pages": pages,
        "max_background": background,
    }


@dataclass(frozen=True)
class Lineage:
    """Which processes a mount hangs on."""

    pid: int
    outcome_fd: int
    started: float
    restarts: int
    keeper: str | None


def build(
    *,
    version: str,
    config: MountConfig,
    source_kind: str,
    lineage: Lineage,
    privileges: Mapping[str, Any],
    exchange: tuple[bytes, bytes] | None,
    memory: Mapping[str, Any],
    plane: Mapping[str, Any],
    faults: FaultCounts | None = None,
    latency_limits_ns: Iterable[int],
    images: Iterable[Mapping[str, Any]],
    closed: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of info.json; runs in the server."""
    return {
        "version": version,
        "pid": lineage.pid,
        "start_ticks": start_ticks(lineage.pid),
        "started": lineage.started,
        "outcome_fd": lineage.outcome_fd,
        "server_pid": os.getpid(),
        "restarts": lineage.restarts,
        "keeper": lineage.keeper,
        "source": str(config.source),
        "source_kind": source_kind,
        "mountpoint": str(config.mountpoint),
        "driver": config.asked_driver,
        "driver_reason": "asked for" if config.aio else "decided for each image",
        "cache": str(config.cache or "auto"),
        "queue_depth": config.queue_depth,
        "merge": config.merge,
        "read_only": config.read_only,
        "privileges": dict(privileges),
        "kernel": platform.release(),
        "fuse": agreed(exchange),
        "memory": dict(memory),
        "clock_s": time.monotonic(),
        "plane": dict(plane),
        "faults": _faults(config.faults, faults) if config.faults and faults else None,
        "latency_limits_ns": list(latency_limits_ns),
        "images": [dict(image) for image in images],
        "closed": [dict(image) for image in closed],
    }


def _faults(plan: Plan, counts: FaultCounts) -> dict[str, Any]:
    return {
        "seed": plan.seed,
        "reorder": plan.reorder,
        "ios": counts.ios,
        "overlaps": counts.overlaps,
        "faults": [
            {"words": fault.text, "struck": struck}
            for fault, struck in zip(plan.faults, counts.struck, strict=True)
        ],
    }


# -- the reader's side --


class Unreadable(AiofsError):
    """A mount that does not give its info: `why`, and what helps, where the mount is to stay."""

    def __init__(self, why: str, way_out: str = "") -> None:
        super().__init__(f"{why}; {way_out}" if way_out else why)
        self.why = why


def read(mountpoint: Path, timeout_s: float = 10.0) -> dict[str, Any]:
    """The info of a live mount. Unreadable says why not, and what helps."""
    result: list[dict[str, Any] | Exception] = []

    def load() -> None:
        try:
            result.append(json.loads((mountpoint / INFO_FILE).read_bytes()))
        except (OSError, ValueError) as error:
            result.append(error)

    # A thread, because no signal ends a read that the kernel has passed to a server that is stuck.
    reader = threading.Thread(target=load, daemon=True)
    reader.start()
    reader.join(timeout_s)
    if not result:
        raise Unreadable(f"the server of {mountpoint} does not answer (waited {timeout_s:g} s)")
    if isinstance(result[0], Exception):
        raise _unreadable(mountpoint, result[0]) from result[0]
    return result[0]


def _unreadable(mountpoint: Path, error: Exception) -> Unreadable:
    if not isinstance(error, OSError):
        return Unreadable(f"{mountpoint / INFO_FILE} is not JSON: {error}")
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        clear = f"clear it: {fusermount.clear_hint(mountpoint)}"
        return Unreadable(f"the server of {mountpoint} has died", clear)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Unreadable(
            f"{mountpoint} was mounted by another user without --allow-other", "ask as that user"
        )
    return Unreadable(f"cannot read {mountpoint / INFO_FILE}: {reason(error)}")


def describe(info: Mapping[str, Any], now: float | None = None) -> str:
    """One mount for people, in 80 columns."""
    fuse, plane = info.get("fuse", {}), info.get("plane", {})
    up = duration((time.time() if now is None else now) - info["started"])
    rows = [
        (
            "source",
            f"{info['source']} ({info['source_kind']}, {'read-only' if info['read_only'] else 'read-write'})",
        ),
        ("server", f"pid {info['pid']}, aiofs {info['version']}, up {up}"),
        ("driver", f"{info['driver']} ({info['driver_reason']})"),
        (
            "cache",
            f"{info['cache']}, merging {'on' if info['merge'] else 'off'}, queue depth {info['queue_depth']}",
        ),
        ("kernel", _kernel(info["kernel"], fuse)),
    ]
    if info.get("memory"):
        rows.append(("memory", _memory(info["memory"])))
    if "privileges" in info:
        rows.insert(2, ("rights", _rights(info["privileges"])))
    if plane:
        rows.append(("requests", _requests(plane)))
        rows.append(("batches", _batches(plane)))
    if info.get("faults"):
        rows += _fault_rows(info["faults"])
    lines = [info["mountpoint"], *(f"  {name:<9} {text}" for name, text in rows), ""]
    images = [_named_inside(image, info["source"]) for image in info.get("images", [])]
    lines += image_table(images) if images else ["  no image is open"]
    return "\n".join(lines)


def _named_inside(image: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The image with its name as it is in the mount, where that is shorter."""
    return {**image, "name": str(image.get("name", "?")).removeprefix(source.rstrip("/") + "/")}


def _kernel(release: str, fuse: Mapping[str, Any]) -> str:
    if not fuse:
        return release
    return (
        f"{release}, FUSE {fuse['protocol']}, max write {size(fuse['max_write'])}, "
        f"max background {fuse['max_background']}"
    )


def _memory(memory: Mapping[str, Any]) -> str:
    flusher, locked = ("" if memory[name] else "not " for name in ("io_flusher", "locked"))
    return f"{locked}locked, {flusher}an I/O flusher, oom_score_adj {memory['oom_score_adj']}"


def _rights(privileges: Mapping[str, Any]) -> str:
    held = ", ".join(privileges["capabilities"]) or "no capabilities"
    return held + ("; it can gain no others" if privileges["no_new_privs"] else f"; {privileges['note']}")


def _requests(plane: Mapping[str, Any]) -> str:
    return (
        f"{plane['requests']:,} ({plane['forwarded']:,} to the control plane, {plane['refused']:,} refused), "
        f"{plane['in_flight']} in flight"
    )


def _batches(plane: Mapping[str, Any]) -> str:
    shares = [
        f"{1 << k if k == 0 else f'{1 << k}-{(2 << k) - 1}'} x {count(number)}"
        for k, number in enumerate(plane["batch_ios"])
        if number
    ]
    return f"{plane['batches']:,}" + (f" (ios each: {', '.join(shares)})" if shares else "")


def _fault_rows(faults: Mapping[str, Any]) -> list[tuple[str, str]]:
    order = ", any order" if faults["reorder"] else ""
    rows = [
        ("faults", f"{faults['ios']:,} I/Os, {faults['overlaps']:,} overlaps, seed {faults['seed']}{order}")
    ]
    return rows + [("", f"{fault['words']}: struck {fault['struck']:,}") for fault in faults["faults"]]


def decisions(info: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What was decided for the open images: those with the same tests together, under their names."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for image in info.get("images", []):
        if image.get("tests"):
            groups.setdefault(json.dumps(image["tests"]), []).append(_named_inside(image, info["source"]))
    return [
        (
            _title([image["name"] for image in group]),
            {"driver": group[0]["driver"], "reason": group[0]["driver_reason"], "tests": group[0]["tests"]},
        )
        for group in groups.values()
    ]


def _title(names: list[str]) -> str:
    others = len(names) - 1
    return names[0] + (f" and {others} {'others' if others > 1 else 'other'}" if others else "")


_COLUMNS = ("IMAGE", "DRIVER", "CACHE", "BLOCK", "BUSY", "READS", "WRITES", "MERGED", "ERRS")


def image_table(images: Iterable[Mapping[str, Any]]) -> list[str]:
    """The open images, a line each; long names are cut in the middle so that the line keeps to 80 columns."""
    rows = [_image_row(image) for image in images]
    return table(_COLUMNS, rows, right=range(3, len(_COLUMNS)))


def _image_row(image: Mapping[str, Any]) -> list[str]:
    counters = image.get("counters") or {}

    def of(name: str) -> int:
        return int(counters.get(name, 0))

    sticky = of("sticky_error")
    return [
        str(image.get("name", "?")),
        str(image.get("driver", "-")),
        str(image.get("cache", "-")),
        str(image.get("block_size", "-")),
        str(of("in_flight")),
        count(of("requests_read")),
        count(of("requests_write")),
        count(of("merged")),
        errno.errorcode.get(-sticky, str(sticky)) + "!" if sticky else count(of("errors")),
    ]


def table(header: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> list[str]:
    """Lines with columns as wide as needed; the first gives way, down to MIN_NAME, when they pass 80."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    excess = sum(widths) + 2 * len(widths) - WIDTH
    if excess > 0:
        widths[0] = max(MIN_NAME, widths[0] - excess)
    numeric = set(right)
    return [
        "  "
        + "  ".join(
            _cut(cell, width).rjust(width) if column in numeric else _cut(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def listing(found: Iterable[tuple[Mount, Mapping[str, Any] | Unreadable]]) -> list[str]:
    """All aiofs mounts of the machine, a line each, and what is wrong with those that do not answer."""
    rows, complaints = [], []
    for mount, answer in found:
        if isinstance(answer, Unreadable):
            rows.append([str(mount.mountpoint), mount.source, "?", "?", "?"])
            complaints.append(f"  {answer}")
        else:
            rows.append(
                [
                    str(mount.mountpoint),
                    mount.source,
                    str(answer["driver"]),
                    str(answer["pid"]),
                    str(len(answer.get("images", []))),
                ]
            )
    return [*table(("MOUNTPOINT", "SOURCE", "DRIVER", "PID", "OPEN"), rows, right=(3, 4)), *complaints]


def size(amount: int) -> str:
    """Bytes in the largest binary unit that divides them, or with one decimal: `1 MiB`, `1.5 KiB`."""
    value = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}".replace(".0 ", " ")
        value /= 1024
    return f"{value:.1f} TiB".replace(".0 ", " ")


def count(number: int) -> str:
    """A count in at most 5 characters: `999`, `12.3k`, `456k`, `4.5M`."""
    if number < 10_000:
        return str(number)
    value = float(number)
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
    return f"{value:.0f}T"


def duration(seconds: float) -> str:
    """A time span in its two largest units: `3 d 4 h`, `12 s`."""
    left = max(0, int(seconds))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"
