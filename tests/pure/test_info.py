"""info.py and mounttable.py: what a mount tells about itself, and how people read it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from aiofs import info, mounttable
from aiofs.config import MountConfig
from aiofs.fusermount import mount_options

PLANE = {
    "requests": 1_234_567,
    "forwarded": 12,
    "refused": 0,
    "batches": 4000,
    "ios": 14_000,
    "batch_ios": [1000, 2000, 0, 1000, *[0] * 9],
    "sleeps": 1,
    "looks": 2,
    "look_trials": 4,
    "replies_together": 3,
    "halves": 6,
    "stood_in": 8,
    "in_flight": 3,
}
COUNTERS = {
    "requests_read": 12_345,
    "requests_write": 7,
    "merged": 0,
    "errors": 0,
    "in_flight": 1,
    "sticky_error": 0,
}


def exchange() -> tuple[bytes, bytes]:
    """An INIT request of protocol 7.45, and a reply with max_write 1 MiB and 128 background requests."""
    request = bytes(40) + struct.pack("<IIII", 7, 45, 131072, 0)
    reply = bytes(16) + struct.pack("<IIIIHHIIH", 7, 38, 65536, 0, 128, 96, 1 << 20, 1, 256) + bytes(34)
    return request, reply


def built(**changes: Any) -> dict[str, Any]:
    """Info as the server builds it."""
    return info.build(
        **{
            "version": "0.1.0",
            "config": MountConfig(source=Path("/srv/images"), mountpoint=Path("/mnt/vdisk")),
            "source_kind": "directory",
            "lineage": info.Lineage(os.getpid(), 9, 1000.0, 0, None),
            "privileges": {"no_new_privs": True, "capabilities": [], "note": ""},
            "exchange": exchange(),
            "memory": {"io_flusher": True, "locked": True, "oom_score_adj": -1000},
            "plane": PLANE,
            "latency_limits_ns": [1000, 1250],
            "closed": [],
            "images": [
                {
                    "name": "a.img",
                    "driver": "io_uring",
                    "cache": "none",
                    "block_size": 512,
                    "counters": COUNTERS,
                }
            ],
            **changes,
        }
    )


def test_every_field_is_documented_and_no_other() -> None:
    """FIELDS describes exactly what info.json holds."""
    assert set(built()) == set(info.FIELDS)


def test_the_init_exchange_is_read() -> None:
    """Protocol of the kernel's request; limits of the reply."""
    assert info.agreed(exchange()) == {
        "protocol": "7.45",
        "max_write": 1 << 20,
        "max_readahead": 65536,
        "max_pages": 256,
        "max_background": 128,
    }


def test_an_exchange_that_is_not_there_yet_tells_nothing() -> None:
    """Before INIT, and for messages that are too short."""
    assert info.agreed(None) == {}
    assert info.agreed((b"", b"")) == {}


def test_the_server_names_itself() -> None:
    """pid and start time are those of this process."""
    assert built()["pid"] == os.getpid()
    assert built()["start_ticks"] == info.start_ticks(os.getpid())


def test_a_mount_is_described_in_80_columns() -> None:
    """Also with a name of 200 characters and counts of 10^12, at the greatest queue depth."""
    image = {
        "name": f"{'deep/' * 38}disk.img",
        "driver": "io_uring",
        "cache": "writethrough",
        "block_size": 4096,
        "counters": dict.fromkeys(COUNTERS, 10**12) | {"in_flight": 4096, "sticky_error": -5},
    }
    text = info.describe(built(images=[image]), now=1061.0)
    assert max(map(len, text.splitlines())) <= 80
    assert "sk.img" in text
    assert "EIO!" in text


def test_the_description_says_what_matters() -> None:
    """Driver and why, cache, protocol, counters, the image."""
    text = info.describe(built(), now=1061.0)
    for part in (
        "auto (decided for each image)",
        "up 1 min 1 s",
        "FUSE 7.45",
        "max write 1 MiB",
        "locked, an I/O flusher, oom_score_adj -1000",
        "1,234,567",
        "a.img",
    ):
        assert part in text


def test_images_with_the_same_tests_are_explained_together() -> None:
    """One table for all images of a kind; those of a server without tests have none."""
    test = {"driver": "", "name": "O_DIRECT", "looked_at": "-", "verdict": "yes", "reason": "512"}
    other = test | {"reason": "4096"}
    images = [
        {"name": f"/srv/images/{name}.img", "driver": "io_uring", "driver_reason": "why", "tests": [tests]}
        for name, tests in (("a", test), ("b", other), ("c", test), ("d", test))
    ]
    told = built(images=[*images, {"name": "e.img", "driver": "sync"}])
    found = info.decisions(told)
    assert [title for title, _ in found] == ["a.img and 2 others", "b.img"]
    assert found[0][1] == {"driver": "io_uring", "reason": "why", "tests": [test]}


def test_no_open_image_is_said() -> None:
    """An empty table would look like a fault."""
    assert "no image is open" in info.describe(built(images=[]))


def test_a_listing_shows_mounts_that_do_not_answer() -> None:
    """One line each, and the complaint below."""
    [mount] = mounttable.mounts("40 1 0:50 / /mnt/dead rw - fuse.aiofs /srv/x rw")
    lines = info.listing([(mount, info.Unreadable("the server of /mnt/dead has died"))])
    assert any("/mnt/dead" in line and "/srv/x" in line for line in lines)
    assert lines[-1].strip() == "the server of /mnt/dead has died"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (456_789, "457k"),
        (999_960, "1.0M"),
        (4_500_000_000, "4.5G"),
    ],
)
def test_counts_are_short(number: int, text: str) -> None:
    """At most five characters."""
    assert info.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512 B"), (1 << 20, "1 MiB"), (1536, "1.5 KiB"), (1 << 42, "4 TiB")]
)
def test_sizes_have_binary_units(number: int, text: str) -> None:
    """Whole numbers without a decimal."""
    assert info.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (90061, "1 d 1 h"), (-5, "0 s")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """The two largest; a clock set back gives none."""
    assert info.duration(seconds) == text


def test_mountinfo_is_parsed() -> None:
    """Optional fields, escapes, device numbers."""
    text = "36 35 0:45 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.aiofs /srv/c\\134d rw,user_id=0"
    [mount] = mounttable.mounts(text)
    assert mount.is_aiofs
    assert mount.mountpoint == Path("/mnt/a b")
    assert mount.source == "/srv/c\\d"
    assert mount.device == os.makedev(0, 45)
    assert (mount.mount_id, mount.parent_id) == (36, 35)


def test_the_mount_of_a_path_is_the_innermost() -> None:
    """/proc/self is in /proc, not in /."""
    found = mounttable.mount_over(Path("/proc/self"))
    assert found is not None
    assert found.mountpoint == Path("/proc")


def test_a_source_with_commas_is_escaped_for_fusermount3() -> None:
    """Otherwise the rest of the name would be taken for options."""
    options = mount_options("/srv/a,allow_other\\", allow_other=False, read_only=False)
    assert "fsname=/srv/a\\,allow_other\\\\," in options


def test_the_mount_options_are_the_safe_ones() -> None:
    """nosuid, nodev, default_permissions always; allow_other and ro on request only."""
    usual = mount_options("/s", allow_other=False, read_only=False).split(",")
    assert usual == ["nosuid", "nodev", "default_permissions", "fsname=/s", "subtype=aiofs"]
    assert mount_options("/s", allow_other=True, read_only=True).split(",")[5:] == ["allow_other", "ro"]
