"""Images that aiofs attaches, as tests need them; conftest.py has the fixture that takes the devices away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mounting import run_aiofs

from aiofs import loopdevices
from aiofs.loopdevices import LoopDevice

Attaching = Callable[..., Path]
"""`attach(image, *flags)`: the device that aiofs prints."""


def attach(image: Path, *flags: str) -> Path:
    """Attach an image; the device that aiofs prints."""
    done = run_aiofs("attach", image, *flags)
    assert done.returncode == 0, done
    return Path(done.stdout.splitlines()[0])


def devices(below: Path) -> list[LoopDevice]:
    """The loop devices on files in a directory."""
    return [device for device in loopdevices.attached() if device.path.is_relative_to(below)]


def refused(*args: str | Path, status: int = 2) -> str:
    """What a command says that does nothing."""
    done = run_aiofs(*args)
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("aiofs: ")
    return done.stderr
