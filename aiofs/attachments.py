"""The loop devices of a mount as `aiofs info` tells them: found by the reader, not by the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import deviceusers, info, loopdevices
from .mounttable import Mount

FIELDS: Mapping[str, str] = {
    "device": "the loop device, /dev/loopN",
    "image": "the image's path in the mount",
    "read_only": "nothing can be written to the device",
    "direct_io": "it bypasses the page cache of the mount's files",
    "sector_size": "its logical sectors, in bytes",
    "size": "its size in bytes, as it was when attached or last told to look (losetup --set-capacity)",
    "used_by": "file systems, swap and devices on it or its partitions",
}
"""Every field of an entry of `attached`, which `aiofs info --json` adds to what info.json holds."""


def told(mount: Mount) -> list[dict[str, Any]]:
    """One entry for each loop device on the mount."""
    return [
        {
            "device": str(device.node),
            "image": device.image(mount),
            "read_only": device.read_only,
            "direct_io": device.direct,
            "sector_size": device.sector_bytes,
            "size": device.size_bytes,
            "used_by": [str(user) for user in deviceusers.claims(device)],
        }
        for device in loopdevices.on_mount(mount)
    ]


def table(attached: list[dict[str, Any]]) -> list[str]:
    """For people, in 80 columns."""
    rows = [
        [
            entry["image"],
            entry["device"],
            "ro" if entry["read_only"] else "rw",
            info.size(entry["size"]),
            str(entry["sector_size"]),
            ", ".join(entry["used_by"]) or "-",
        ]
        for entry in attached
    ]
    return info.table(("ATTACHED", "DEVICE", "MODE", "SIZE", "SECTOR", "USED BY"), rows, right=(3, 4))
