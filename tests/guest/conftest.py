"""Fixtures of the tests with virtual machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import Guest

Boot = Callable[..., Guest]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """`boot(job, *drives)` starts a guest. Name it after `mounted`: guests end before the mount does."""
    guests: list[Guest] = []

    def start(job: str, *drives: str) -> Guest:
        guest = Guest(tmp_path, f"guest{len(guests)}", job, drives)
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.clean_up()
