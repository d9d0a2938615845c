"""Open directories and their file handles.

A handle holds the directory's node id in its low 48 bits and a number that tells openings apart above
them, so that a restarted server can go on with a handle that its predecessor gave. (Node ids beyond 48
bits are rare; after a restart a listing of such a directory fails once with ESTALE.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import infofile
from .nodes import ROOT, NodeTable

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

    def open(self, ino: int) -> int:
        """Open a directory; returns the handle. ENOTDIR, ESTALE, or what open said."""
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
        """Look what the directory holds now."""
        names = self._nodes.source.names(listing.fd)
        if listing.ino == ROOT and infofile.DIRECTORY_NAME in names:
            names.remove(infofile.DIRECTORY_NAME)
        listing.names = names

    def close(self, handle: int) -> None:
        """Close a directory."""
        listing = self._open.pop(handle, None)
        if listing is not None and listing.fd >= 0:
            os.close(listing.fd)

    def _listing(self, ino: int) -> Listing:
        if ino == infofile.DIRECTORY:
            return Listing(ino, -1, [])
        return Listing(ino, self._nodes.open_directory(ino, os.O_RDONLY), [])
