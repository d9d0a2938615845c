"""The five drivers, and which of them work on this machine."""

from __future__ import annotations

import pytest

from aiofs.dataplane import drivers

DRIVERS = ("io_uring", "linux", "threads", "posix", "sync")


def require_driver(name: str) -> str:
    """The name again; skips the test where this kernel refuses the driver, and prints its reason."""
    [status] = [status for status in drivers() if status.name == name]
    if not status.works:
        pytest.skip(f"{name}: {status.reason}")
    return name
