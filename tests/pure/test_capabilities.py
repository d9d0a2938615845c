"""Which capabilities a server keeps, by its options and its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiofs import privilege
from aiofs.config import MountConfig
from aiofs.source import Kind


@pytest.mark.parametrize(
    ("setting", "aio", "kept"),
    [
        ("0", None, False),
        ("1", None, True),
        ("1", "io_uring", True),
        ("1", "threads", False),
        ("2", None, False),
        (None, None, False),
    ],
)
def test_rings_for_administrators_take_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None, aio: str | None, kept: bool
) -> None:
    """kernel.io_uring_disabled=1, and a ring may be wanted: SYS_ADMIN stays. Old kernels lack it."""
    monkeypatch.setattr(privilege, "IO_URING_DISABLED", tmp_path / "io_uring_disabled")
    if setting is not None:
        (tmp_path / "io_uring_disabled").write_text(f"{setting}\n")
    config = MountConfig(source=Path("/a"), mountpoint=Path("/b"), aio=aio)
    assert ("SYS_ADMIN" in privilege.needs(config, Kind.TREE, keeper=True)) is kept


def test_capabilities_are_known_by_their_numbers() -> None:
    """Against linux/capability.h: the first, some that matter, and the last."""
    numbers = {"CHOWN": 0, "DAC_READ_SEARCH": 2, "IPC_LOCK": 14, "SYS_PTRACE": 19, "SYS_ADMIN": 21}
    assert {name: privilege._NAMES.index(name) for name in numbers} == numbers
    assert privilege._NAMES.index("CHECKPOINT_RESTORE") == len(privilege._NAMES) - 1 == 40
