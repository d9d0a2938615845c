"""Calls on a mount that would never return are made to fail, so that a test does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer


@contextmanager
def never_hanging(path: Path, after_s: float) -> Iterator[None]:
    """The block may use the mount at `path` for so long; then its calls fail with ECONNABORTED."""
    # Asked now: a stat of a mount that hangs would hang.
    abort = Path(f"/sys/fs/fuse/connections/{os.minor(path.stat().st_dev)}/abort")
    timer = Timer(after_s, lambda: abort.write_text("1"))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
