"""The node table: which file of the backing tree the kernel means by a node id.

A node id is the file's inode number (the root's is 1), so a restarted server gives the same ones; the
generation is the time of birth, so a reused inode number is a different file to the kernel. A node knows
the names it was seen under; its path is made by walking up. The backing tree may change at any time:
whatever is opened by name is checked to be the very file before it is used.

Invariant: a node is in the table while the kernel holds lookups of it, and what a server after this one has
to know of it is in the ledger. Used by one task at a time (no await inside), owns no descriptors but the
ones it hands out.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, pairwise

from .dataplane import system
from .dataplane.system import FileStat
from .ledger import MAX_NODES, Kind, Ledger, LedgerUnusable
from .source import Kind as SourceKind
from .source import Source

log = logging.getLogger(__name__)

ROOT = 1
FIRST_VIRTUAL = 2**64 - 2**32
"""Node ids and file handles from here on are no backing files: the info directory and its files."""

DELETED = "(deleted)"
"""What an image is called that was removed while it was open."""

_MAX_LOOKUPS = 1 << 63
"""More than a kernel can make in a lifetime; leaves room to count on from."""

_MAX_LINKS = 64
"""Names kept of one file; more hard links than that are served too, through the names kept."""


class Node:
    """One file or directory the kernel knows."""

    __slots__ = ("generation", "ino", "is_dir", "lookups", "name", "others", "parent", "slot")

    def __init__(
        self, ino: int, generation: int, parent: int, name: bytes, is_dir: bool, slot: int = 0
    ) -> None:
        self.slot = slot
        """Its place among the ledger's lookups."""
        self.ino = ino
        self.generation = generation
        self.parent = parent
        self.name = name
        """The name it was seen under last; empty: no name is left."""
        self.others: list[tuple[int, bytes]] | None = None
        """Further hard links: (parent, name)."""
        self.is_dir = is_dir
        self.lookups = 0

    def names(self) -> list[tuple[int, bytes]]:
        """All names known: (parent's node id, name), the newest first."""
        newest = [(self.parent, self.name)] if self.name else []
        return newest + (self.others or [])

    def add_name(self, parent: int, name: bytes, nlink: int) -> None:
        """It was seen under this name and has `nlink` names in all."""
        if (parent, name) == (self.parent, self.name):
            return
        if self.is_dir or nlink <= 1 or not self.name:
            self.others = None
        else:
            kept = [known for known in self.names() if known != (parent, name)]
            self.others = kept[: min(nlink, _MAX_LINKS) - 1]
        self.parent, self.name = parent, name

    def remove_name(self, parent: int, name: bytes) -> None:
        """It is no longer called that."""
        left = [known for known in self.names() if known != (parent, name)]
        self.parent, self.name = left[0] if left else (self.parent, b"")
        self.others = left[1:] or None


_RECORD = struct.Struct("<QI?")  # generation, slot, is_dir; then for each name, the newest first:
_NAME = struct.Struct("<QH")  # parent, length


def _pack(node: Node) -> bytes:
    """What the ledger keeps of a node, but its lookups."""
    packed = [_RECORD.pack(node.generation, node.slot, node.is_dir)]
    for parent, name in node.names():
        packed += (_NAME.pack(parent, len(name)), name)
    return b"".join(packed)


def _unpack(ino: int, record: bytes) -> Node:
    """The node of such a record. ValueError, struct.error: there can be none."""
    generation, slot, is_dir = _RECORD.unpack_from(record)
    if not ROOT < ino < FIRST_VIRTUAL or not 0 < slot < MAX_NODES:
        raise ValueError(f"no node has this id, or the slot {slot}")
    names = []
    at = _RECORD.size
    while at < len(record):
        parent, length = _NAME.unpack_from(record, at)
        at += _NAME.size + length
        name = record[at - length : at]
        if at > len(record) or not is_file_name(name):
            raise ValueError(f"{os.fsdecode(name)!r} is no name of a file")
        names.append((parent, name))
    parent, name = names[0] if names else (ROOT, b"")
    node = Node(ino, generation, parent, name, is_dir, slot)
    node.others = names[1:] or None
    return node


def is_file_name(name: bytes) -> bool:
    """It can be the name of a file in a directory."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def generation_of(st: FileStat) -> int:
    """Tells files apart that get the same inode number one after the other; 0 when birth is not known."""
    return st.birth_ns & (2**64 - 1)


class NodeTable:
    """All nodes the kernel knows of one source."""

    def __init__(self, source: Source, ledger: Ledger, orphans: Mapping[int, int]) -> None:
        """With the nodes that the ledger has from a server before this one.

        `orphans`: descriptors (O_PATH) of files without a name, by node id; they become this table's.
        LedgerUnusable.
        """
        self.source = source
        self.orphans = dict(orphans)
        self._ledger = ledger
        root = Node(ROOT, 0, ROOT, b"", is_dir=True)
        root.lookups = 1  # the kernel never forgets the root
        self._nodes: dict[int, Node] = {ROOT: root}
        self._refused: set[int] = set()
        for node in ledger.restored(Kind.NODE, _unpack):
            node.lookups = ledger.lookups[node.slot]
            self._nodes[node.ino] = node
        used = {node.slot for node in self._nodes.values()}
        if len(used) < len(self._nodes):
            raise LedgerUnusable("the memory of the mount is damaged: two nodes share their count of lookups")
        if any(node.lookups > _MAX_LOOKUPS for node in self._nodes.values()):
            raise LedgerUnusable("the memory of the mount is damaged: a node has too many lookups")
        # Made one by one: a few nodes that are left of millions may be in slots far apart.
        between = pairwise([*sorted(used), MAX_NODES])
        self._unused_slots = chain.from_iterable(range(low + 1, high) for low, high in between)
        self._free_slots: list[int] = []
        """Those given back since."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, ino: int) -> bool:
        return ino in self._nodes

    def get(self, ino: int) -> Node:
        """The node with this id; ESTALE when it is not known (any more)."""
        node = self._nodes.get(ino)
        if node is None:
            raise OSError(errno.ESTALE, f"node {ino} is not known")
        return node

    def find(self, ino: int) -> Node | None:
        """The node with this id, if it is known."""
        return self._nodes.get(ino)

    # -- what the kernel knows --

    def seen(self, parent: int, name: bytes, st: FileStat) -> Node:
        """The node of a file that was found under this name, added or brought up to date.

        The caller raises `lookups` when the kernel is told of it. ENOENT for the few inode numbers that
        have another meaning here.
        """
        if st.ino <= ROOT or st.ino >= FIRST_VIRTUAL:
            self._refuse(parent, name, st.ino)
        node = self._nodes.get(st.ino)
        if node is None:
            node = Node(st.ino, generation_of(st), parent, name, stat.S_ISDIR(st.mode), self._new_slot())
            self._nodes[st.ino] = node
        elif (node.parent, node.name) == (parent, name) and _same(node, st):
            return node
        elif node.generation != generation_of(st) or node.is_dir != stat.S_ISDIR(st.mode):
            # Another file got the inode number. The kernel learns it from the generation.
            node.generation, node.is_dir = generation_of(st), stat.S_ISDIR(st.mode)
            node.parent, node.name, node.others = parent, name, None
        else:
            node.add_name(parent, name, st.nlink)
        self._keep(node)
        return node

    def _keep(self, node: Node) -> None:
        self._ledger.put(Kind.NODE, node.ino, _pack(node))

    def _new_slot(self) -> int:
        slot = self._free_slots.pop() if self._free_slots else next(self._unused_slots, None)
        if slot is None:
            raise OSError(errno.ENOMEM, f"more than {MAX_NODES} files are known")
        return slot

    def looked_up(self, node: Node) -> None:
        """The kernel is told of the node, and holds one lookup more of it with that."""
        node.lookups += 1
        self._ledger.lookups[node.slot] = node.lookups

    def _refuse(self, parent: int, name: bytes, ino: int) -> None:
        if ino not in self._refused:
            self._refused.add(ino)
            shown = self.source.display(self.path_of(parent, name))
            log.error("%s is not served: its inode number %d has a meaning of its own here", shown, ino)
        raise FileNotFoundError(errno.ENOENT, "reserved inode number", os.fsdecode(name))

    def forget(self, ino: int, count: int) -> bool:
        """The kernel gave back `count` lookups; True when the node is gone with that."""
        node = self._nodes.get(ino)
        if node is None or ino == ROOT:
            return False
        node.lookups = max(node.lookups - count, 0)
        self._ledger.lookups[node.slot] = node.lookups
        if node.lookups:
            return False
        self._ledger.drop(Kind.NODE, ino)
        self._free_slots.append(node.slot)
        del self._nodes[ino]
        return True

    # -- changes of names through the mount --

    def removed(self, parent: int, name: bytes, ino: int) -> None:
        """The name was removed; it belonged to `ino`."""
        node = self._nodes.get(ino)
        if node is not None:
            node.remove_name(parent, name)
            self._keep(node)

    def renamed(self, old: tuple[int, bytes], new: tuple[int, bytes], ino: int) -> None:
        """The file `ino` has the name `new` instead of `old` (parent's node id, name)."""
        node = self._nodes.get(ino)
        if node is not None:
            node.remove_name(*old)
            node.add_name(*new, len(node.names()) + 1)
            self._keep(node)

    def catch_up(self, old: tuple[int, bytes], new: tuple[int, bytes], ino: int) -> None:
        """Note that a rename is done, if the server before this one did it and had no time to."""
        node = self._nodes.get(ino)
        if node is None or old not in node.names() or self._found_at(node, *old):
            return
        if self._found_at(node, *new):
            self.renamed(old, new, ino)

    # -- from nodes to files --

    def path_of(self, parent: int, name: bytes) -> bytes:
        """The path of a name beneath the root. ESTALE when a directory on the way is not known.

        Directories that others moved between two looks may be known as each other's parents: ESTALE, too.
        """
        parts = [name]
        while parent != ROOT:
            node = self.get(parent)
            if not node.name:
                raise OSError(errno.ESTALE, "a directory on the path has been removed", os.fsdecode(name))
            if len(parts) > len(self._nodes):
                raise OSError(errno.ESTALE, "a directory on the path has been moved", os.fsdecode(name))
            parts.append(node.name)
            parent = node.parent
        return b"/".join(reversed(parts))

    def display(self, node: Node) -> str:
        """The node's name for messages."""
        try:
            return self.source.display(self.path_of(node.parent, node.name))
        except OSError:
            return self.source.display(node.name)

    def path(self, node: Node) -> str:
        """Where the node is in the mount: `guests/a.img`, or DELETED when it has no name left."""
        if not node.name:
            return DELETED
        try:
            return os.fsdecode(self.path_of(node.parent, node.name))
        except OSError:
            return os.fsdecode(node.name)

    @contextmanager
    def directory(self, ino: int, flags: int = os.O_PATH) -> Iterator[int]:
        """A descriptor of the directory `ino`, checked to be that one, closed afterwards. ESTALE, OSError."""
        if ino == ROOT and flags == os.O_PATH:
            yield self.source.root_fd
            return
        fd = self.open_directory(ino, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def open_directory(self, ino: int, flags: int = os.O_PATH) -> int:
        """A descriptor of the directory `ino`, checked to be that one; the caller closes it."""
        if ino == ROOT:
            return self.source.open_directory(b"", flags)
        node = self.get(ino)
        if not node.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(node.name))
        if not node.name:
            raise OSError(errno.ESTALE, "the directory has been removed")
        try:
            fd = self.source.open_directory(self.path_of(node.parent, node.name), flags)
        except OSError as error:
            raise _gone(error) from error
        if not _same(node, system.stat(fd)):
            os.close(fd)
            raise OSError(errno.ESTALE, "another directory is there now", os.fsdecode(node.name))
        return fd

    def stat(self, node: Node) -> FileStat:
        """The attributes of a node, found by one of its names. ESTALE when it is under none of them."""
        if node.ino == ROOT:
            return self._root_stat()
        for name in node.names():
            st = self._found_at(node, *name)
            if st is not None:
                return st
        raise OSError(errno.ESTALE, "it is under none of its names any more", os.fsdecode(node.name))

    def _found_at(self, node: Node, parent: int, name: bytes) -> FileStat | None:
        """The attributes of a node if it is the one with that name."""
        try:
            with self.directory(parent) as dir_fd:
                st = self.source.stat(dir_fd, name)
        except OSError as error:
            _gone(error)
            return None
        return st if _same(node, st) else None

    def _root_stat(self) -> FileStat:
        root_fd = self.source.root_fd
        st = system.stat(root_fd)
        if self.source.kind is SourceKind.TREE:
            return st
        # A made-up directory: the source's own is not served. Nothing can be created in it.
        with suppress(FileNotFoundError):
            there = self.source.stat(root_fd, self.source.name)
            st = st._replace(uid=there.uid, gid=there.gid, mtime_ns=there.mtime_ns, ctime_ns=there.ctime_ns)
        return st._replace(mode=stat.S_IFDIR | 0o555, nlink=2, size=0, blocks=0)

    def open(self, node: Node, flags: int) -> int:
        """Open a file by one of its names, checked to be that one. ESTALE, or what open said."""
        for parent, name in node.names():
            try:
                with self.directory(parent) as dir_fd:
                    # Looked at first: opening a device or fifo that took the name would have effects.
                    if not _same(node, self.source.stat(dir_fd, name)):
                        continue
                    fd = self.source.open_file(dir_fd, name, flags)
            except OSError as error:
                _gone(error)
                continue
            if _same(node, system.stat(fd)):
                return fd
            os.close(fd)
        orphan = self.orphans.get(node.ino)
        if orphan is not None and _same(node, system.stat(orphan)):
            return os.open(f"/proc/self/fd/{orphan}", flags)
        raise OSError(errno.ESTALE, "it is under none of its names any more", os.fsdecode(node.name))


def _same(node: Node, st: FileStat) -> bool:
    same_file = node.ino == st.ino and node.generation == generation_of(st)
    return same_file and node.is_dir == stat.S_ISDIR(st.mode)


def _gone(error: OSError) -> OSError:
    """ESTALE for "not there any more"; other errors are raised."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE):
        return OSError(errno.ESTALE, error.strerror, error.filename)
    raise error
