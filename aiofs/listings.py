"""Open directories and their file handles.

A handle holds the directory's node id in its low 48 bits and a number that tells openings apart above
them, so that a restarted server can go on with a handle that its predecessor gave. (Node ids beyond 48
bits are rare; after a restart a listing of such a directory fails once with ESTALE.)

Whoever may use the mount can open directories: each takes a descriptor, which the images need as well, and
the memory of its names. Both have a limit for the whole mount.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

from . import infofile
from .nodes import ROOT, NodeTable

MAX_OPEN = 4096
"""Directories open at once, or a quarter of the descriptors that the server may have; ENFILE beyond."""
MAX_NAMES = 1 << 22
"""Names of all open directories that are being read, some 100 bytes each; ENOMEM beyond."""

_NODE_BITS = 48
_NODE_MASK = (1 << _NODE_BITS) - 1
_NUMBERS = 1 << 16


@dataclass(slots=True)
class Listing:
    """An open directory."""

    ino: int
    fd: int
    """-1 for the info directory."""
    names: list[bytes]
    """What it held when reading began at the start."""


class Listings:
    """All open directories of a mount."""

    def __init__(self, nodes: NodeTable) -> None:
        self._nodes = nodes
        self._open: dict[int, Listing] = {}
        self._opened = 0
        self._names = 0
        self._limit = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def open(self, ino: int) -> int:
        """Open a directory; returns the handle. ENFILE, ENOTDIR, ESTALE, or what open said."""
        listing = self._listing(ino)
        while True:
            self._opened += 1
            handle = ino ^ (self._opened % _NUMBERS << _NODE_BITS)
            if handle not in self._open:
                self._open[handle] = listing
                return handle

    def get(self, handle: int) -> Listing:
        """The open directory of a handle; one that a server before this one gave is opened anew."""
        listing = self._open.get(handle)
        if listing is None:
            listing = self._open[handle] = self._listing(handle & _NODE_MASK)
        return listing

    def read_names(self, listing: Listing) -> None:
        """Look what the directory holds now. ENOMEM."""
        self._keep(listing, [])
        names = self._nodes.source.names(listing.fd)
        if listing.ino == ROOT and infofile.DIRECTORY_NAME in names:
            names.remove(infofile.DIRECTORY_NAME)
        if self._names + len(names) > MAX_NAMES:
            raise OSError(errno.ENOMEM, f"more than {MAX_NAMES} names are being listed")
        self._keep(listing, names)

    def _keep(self, listing: Listing, names: list[bytes]) -> None:
        self._names += len(names) - len(listing.names)
        listing.names = names

    def close(self, handle: int) -> None:
        """Close a directory."""
        listing = self._open.pop(handle, None)
        if listing is None:
            return
        self._keep(listing, [])
        if listing.fd >= 0:
            os.close(listing.fd)

    def _listing(self, ino: int) -> Listing:
        if len(self._open) >= self._limit:
            raise OSError(errno.ENFILE, f"more than {self._limit} directories are open")
        if ino == infofile.DIRECTORY:
            return Listing(ino, -1, [])
        return Listing(ino, self._nodes.open_directory(ino, os.O_RDONLY), [])
