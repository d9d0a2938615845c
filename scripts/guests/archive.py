"""A cpio archive in memory, as the kernel takes it for its first file system."""

from __future__ import annotations

import stat


class Archive:
    """A cpio archive in memory, as the kernel takes it (Documentation: early-userspace/buffer-format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._number = 0

    def directory(self, name: str) -> None:
        """Add an empty directory."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file."""
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def finished(self) -> bytes:
        """The whole archive; add no more."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._number += 1
        path = name.encode() + b"\0"
        fields = [self._number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [_padded(head), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
