"""What a mount is asked to be: frozen, checked, free of I/O. cli.py makes it, everything else reads it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class CacheMode(enum.StrEnum):
    """How images are opened and what fsync does, in QEMU's words."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def direct(self) -> bool:
        """The image is opened with O_DIRECT."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def dsync(self) -> bool:
        """The image is opened with O_DSYNC: every write is durable before it is answered."""
        return self in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)

    @property
    def honours_fsync(self) -> bool:
        """fsync reaches the image (false for `unsafe` only)."""
        return self is not CacheMode.UNSAFE


DEFAULT_QUEUE_DEPTH = 128


@dataclass(frozen=True)
class MountConfig:
    """One mount, as asked for."""

    source: Path
    """A directory of images, one image file, or one block device; absolute."""
    mountpoint: Path
    """An existing directory; absolute."""
    aio: str | None = None
    """The name of a driver; None: the first that works."""
    cache: CacheMode | None = None
    """None: `none` where O_DIRECT works for the image, else `writeback`."""
    queue_depth: int = DEFAULT_QUEUE_DEPTH
    """Requests in work at once, 1 .. MAX_QUEUE_DEPTH."""
    merge: bool = True
    read_only: bool = False
    allow_other: bool = False
    foreground: bool = False
    log_level: str = "info"
    log_file: Path | None = None
