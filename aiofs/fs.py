"""pyfuse3.Operations of a mount: names, attributes, listings, open and release.

READ, WRITE, FSYNC, FALLOCATE and LSEEK of images never come here: the data plane serves them. File handles
carry no state, so a restarted server can go on with those of its predecessor: an image's is its node id
(pyfuse3's release is told nothing else), a directory's contains it (listings.py). This is the only module
that raises FUSEError; the others raise OSError, and `_answered` turns it into the answer.
"""
# ruff: noqa: ARG002 -- pyfuse3 prescribes the handlers' arguments

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from . import infofile
from .changes import Changes
from .dataplane import system
from .dataplane.system import FileStat
from .entries import entry_of, give_to_caller, path_to
from .images import ImageTable
from .infofile import Content, InfoDirectory, is_virtual
from .ledger import Ledger
from .listings import Listings
from .nodes import ROOT, Node
from .pagecache import wants_direct_io
from .source import Kind

log = logging.getLogger(__name__)

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_Handler = Callable[Concatenate["Operations", _Args], Coroutine[Any, Any, _Result]]


def _answered(handler: _Handler[_Args, _Result]) -> _Handler[_Args, _Result]:
    """OSError becomes the errno that the kernel gets; a bug becomes EIO and a log entry, and no exit."""

    @functools.wraps(handler)
    async def answer(self: Operations, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        while self._before_first:
            self._before_first.pop()()
        try:
            return await handler(self, *args, **kwargs)
        except OSError as error:
            log.debug("%s%r: %s", handler.__name__, args, error)
            raise FUSEError(error.errno or errno.EIO) from error
        except FUSEError:
            raise
        except Exception as error:
            log.exception("%s%r failed", handler.__name__, args)
            raise FUSEError(errno.EIO) from error

    return answer


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _invalidate_attributes(ino: int) -> None:
    pyfuse3.invalidate_inode(ino, attr_only=True)


class Operations(pyfuse3.Operations):
    """The control plane's answers to the kernel."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        *,
        table: ImageTable,
        files: Mapping[bytes, Content],
        ledger: Ledger,
        invalidate_attributes: Callable[[int], None] = _invalidate_attributes,
        before_first: Callable[[], None] = lambda: None,
    ) -> None:
        """`files` make what is in the directory .aiofs; `invalidate_attributes` tells the kernel to ask
        for a node's attributes again; `before_first` is called once, before anything is answered."""
        super().__init__()
        self._before_first = [before_first]
        self._table = table
        self._nodes = table.nodes
        self._source = table.source
        self._info = InfoDirectory(files)
        self._invalidate_attributes = invalidate_attributes
        self._listings = Listings(table.nodes)
        self._changes = Changes(ledger)

    # -- names to nodes --

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name in a directory."""
        if parent_inode == infofile.DIRECTORY:
            return self._virtual_entry(self._info.lookup(name))
        if parent_inode == ROOT and name == infofile.DIRECTORY_NAME:
            return self._virtual_entry(infofile.DIRECTORY)
        with self._nodes.directory(parent_inode) as dir_fd:
            st = self._source.stat(dir_fd, name)
        return self._found(parent_inode, name, st)

    def _found(self, parent: int, name: bytes, st: FileStat) -> EntryAttributes:
        """The entry of a name for the kernel, which holds one lookup more of it with that."""
        node = self._nodes.seen(parent, name, st)
        self._nodes.looked_up(node)
        return entry_of(st, node.ino)

    def _virtual_entry(self, ino: int) -> EntryAttributes:
        return entry_of(self._info.stat(ino), ino)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel gives lookups back."""
        for ino, count in inode_list:
            self._table.forget(ino, count)

    # -- attributes --

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """The attributes of a node."""
        return self._attributes(inode)

    def _attributes(self, ino: int) -> EntryAttributes:
        if is_virtual(ino):
            return self._virtual_entry(ino)
        return entry_of(self._table.stat(self._nodes.get(ino)), ino)

    @_answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Change size, mode, owner and times."""
        node = self._changeable(inode)
        if fields.update_size:
            await self._table.truncate(node, attr.st_size)
        if fields.update_uid or fields.update_gid or fields.update_mode:
            self._set_owner_and_mode(node, attr, fields)
        # A change of size has set the time of change already, in a way that needs no ownership.
        if fields.update_atime or (fields.update_mtime and not fields.update_size):
            self._set_times(node, attr, fields)
        return self._attributes(inode)

    def _set_owner_and_mode(self, node: Node, attr: EntryAttributes, fields: SetattrFields) -> None:
        with self._path_to(node) as path:
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(path, uid, gid)
            if fields.update_mode:
                path.chmod(stat.S_IMODE(attr.st_mode))

    def _set_times(self, node: Node, attr: EntryAttributes, fields: SetattrFields) -> None:
        st = self._table.stat(node)
        atime_ns = attr.st_atime_ns if fields.update_atime else st.atime_ns
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else st.mtime_ns
        with self._path_to(node) as path:
            os.utime(path, ns=(atime_ns, mtime_ns))

    @contextmanager
    def _path_to(self, node: Node) -> Iterator[Path]:
        """A path that means the very file of a node, without opening its content."""
        if node.ino == ROOT and self._source.kind is not Kind.TREE:
            _refuse(errno.EPERM)
        with self._table.descriptor(node) as fd:
            yield path_to(fd)

    def _changeable(self, ino: int) -> Node:
        if self._table.read_only:
            _refuse(errno.EROFS)
        if is_virtual(ino):
            _refuse(errno.EPERM)
        return self._nodes.get(ino)

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Room on the backing file system."""
        there = self._source.statvfs()
        data = StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(data, f"f_{name}", getattr(there, f"f_{name}"))
        return data

    # -- creating and removing names --

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make an image and open it."""
        self._check_change(parent_inode, name)
        again = self._changes.begun(ctx, "make", (parent_inode, name)) is not None
        with self._nodes.directory(parent_inode) as dir_fd:
            self._changes.begin("make", [(parent_inode, name)])
            st, made = self._make_or_find(dir_fd, name, mode, bool(flags & os.O_EXCL), again)
            node = self._nodes.seen(parent_inode, name, st)
            self._nodes.looked_up(node)
            try:
                info = await self._open_image(node, flags & ~os.O_TRUNC if made else flags, known=not made)
            except BaseException:
                # The kernel is told of no entry, so it will not give this lookup back.
                self._table.forget(node.ino, 1)
                if made:
                    os.unlink(name, dir_fd=dir_fd)
                raise
            if made:
                with self._table.descriptor(node) as fd:
                    give_to_caller(fd, dir_fd, mode, ctx)
        return info, self._attributes(node.ino)

    def _make_or_find(
        self, dir_fd: int, name: bytes, mode: int, exclusive: bool, again: bool
    ) -> tuple[FileStat, bool]:
        """A new file, and True; or the one that came into being underneath meanwhile, and False.

        `again`: a server before this one had begun to make it.
        """
        try:
            # Readable and writable by us whatever its mode will be: it is opened more than once.
            return self._make_file(dir_fd, name, mode | stat.S_IRUSR | stat.S_IWUSR), True
        except FileExistsError as exists:
            if exclusive and not again:
                raise
            try:
                return self._source.stat(dir_fd, name), again
            except FileNotFoundError:
                raise exists from None  # something that is not served has the name

    def _make_file(self, dir_fd: int, name: bytes, mode: int) -> FileStat:
        fd = system.open_beneath(dir_fd, name, os.O_CREAT | os.O_EXCL | os.O_RDWR, stat.S_IMODE(mode))
        try:
            return system.stat(fd)
        finally:
            os.close(fd)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a regular file."""
        self._check_change(parent_inode, name)
        if not stat.S_ISREG(mode):
            _refuse(errno.EPERM)
        with self._nodes.directory(parent_inode) as dir_fd:
            with self._making((parent_inode, name), ctx):
                self._make_file(dir_fd, name, mode)
            return self._made(parent_inode, dir_fd, name, mode, ctx)

    @contextmanager
    def _making(self, name: tuple[int, bytes], ctx: RequestContext) -> Iterator[None]:
        """The body makes this name; that a server before this one made it, for the same request, is well."""
        again = self._changes.begun(ctx, "make", name)
        self._changes.begin("make", [name])
        try:
            yield
        except FileExistsError:
            if again is None:
                raise

    @_answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory."""
        self._check_change(parent_inode, name)
        with self._nodes.directory(parent_inode) as dir_fd:
            with self._making((parent_inode, name), ctx):
                os.mkdir(name, stat.S_IMODE(mode), dir_fd=dir_fd)
            return self._made(parent_inode, dir_fd, name, mode, ctx)

    def _made(self, parent: int, dir_fd: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """The entry of a file or directory just made, given to the one who asked for it."""
        fd = self._source.open_file(dir_fd, name, os.O_PATH)
        try:
            give_to_caller(fd, dir_fd, mode, ctx)
            return self._found(parent, name, system.stat(fd))
        finally:
            os.close(fd)

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Symbolic links are not served."""
        self._check_change(parent_inode, name)
        _refuse(errno.EPERM)

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Give an image another name."""
        self._check_change(new_parent_inode, new_name)
        node = self._changeable(inode)
        with self._nodes.directory(new_parent_inode) as dir_fd, self._path_to(node) as path:
            with self._making((new_parent_inode, new_name), ctx):
                # From the descriptor, so that it is this very file that gets the name.
                os.link(path, new_name, dst_dir_fd=dir_fd, follow_symlinks=True)
            return self._found(new_parent_inode, new_name, self._source.stat(dir_fd, new_name))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove the name of an image."""
        await self._remove(parent_inode, name, os.unlink, ctx)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._remove(parent_inode, name, os.rmdir, ctx)

    async def _remove(
        self, parent: int, name: bytes, remove: Callable[..., None], ctx: RequestContext
    ) -> None:
        self._check_change(parent, name, hidden=errno.EPERM)
        again = self._changes.begun(ctx, "remove", (parent, name))
        with self._nodes.directory(parent) as dir_fd:
            ino = self._ino_of(dir_fd, name)
            if again and ino != again[0]:
                ino = again[0]  # it has been removed; what has the name now is another file
            elif not ino:
                _refuse(errno.ENOENT)
            else:
                self._changes.begin("remove", [(parent, name)], ino)
                # In a thread: to free the blocks of a huge image takes long.
                await trio.to_thread.run_sync(functools.partial(remove, name, dir_fd=dir_fd))
        self._table.removed(parent, name, ino)

    def _ino_of(self, dir_fd: int, name: bytes) -> int:
        """The inode number of what is served under a name; 0: nothing is."""
        try:
            return self._source.stat(dir_fd, name).ino
        except FileNotFoundError:
            return 0

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Rename, replacing the target unless `flags` say NOREPLACE, or exchanging both."""
        self._check_change(parent_inode_old, name_old, hidden=errno.EPERM)
        self._check_change(parent_inode_new, name_new)
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        exchange = bool(flags & pyfuse3.RENAME_EXCHANGE)
        again = self._changes.begun(ctx, "rename", old, new)
        with self._nodes.directory(old[0]) as old_dir, self._nodes.directory(new[0]) as new_dir:
            there = self._ino_of(old_dir, name_old), self._ino_of(new_dir, name_new)
            if again and there == (again[1] if exchange else 0, again[0]):
                moved, target = again  # it has been done
            else:
                moved = self._source.stat(old_dir, name_old).ino
                target = self._target(new_dir, name_new, must_exist=exchange)
                self._changes.begin("rename", [old, new], moved, target)
                system.rename(old_dir, name_old, new_dir, name_new, flags)
        if target == moved:
            return  # two names of one file: rename(2) leaves both
        if target:
            self._table.removed(*new, target)
        self._nodes.renamed(old, new, moved)
        if target and exchange:
            self._nodes.renamed(new, old, target)

    def _target(self, dir_fd: int, name: bytes, must_exist: bool) -> int:
        """The inode number of what a rename would replace, or 0; EEXIST for something that is not served."""
        ino = self._ino_of(dir_fd, name)
        if ino:
            return ino
        if must_exist:
            _refuse(errno.ENOENT)
        try:
            system.stat(dir_fd, name)
        except FileNotFoundError:
            return 0
        _refuse(errno.EEXIST)

    def _check_change(self, parent: int, name: bytes, hidden: int = errno.EEXIST) -> None:
        """The name may be made or removed. EROFS, EPERM, and `hidden` for the name of the info directory."""
        if self._table.read_only:
            _refuse(errno.EROFS)
        if parent == ROOT and name == infofile.DIRECTORY_NAME:
            _refuse(hidden)
        if is_virtual(parent) or self._source.kind is not Kind.TREE:
            _refuse(errno.EPERM)

    # -- opening --

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open an image; its data requests go to the data plane from then on."""
        if is_virtual(inode):
            return FileInfo(fh=await self._info.open(inode, flags), direct_io=True, keep_cache=False)
        return await self._open_image(self._nodes.get(inode), flags)

    async def _open_image(self, node: Node, flags: int, known: bool = True) -> FileInfo:
        if node.is_dir:
            _refuse(errno.EISDIR)
        handle, unchanged = await self._table.open(node, flags)
        if known and not unchanged:
            self._forget_attributes(node.ino)
        return FileInfo(fh=handle, direct_io=wants_direct_io(flags), keep_cache=unchanged)

    def _forget_attributes(self, ino: int) -> None:
        """Have the kernel ask for the size again: it may have changed underneath."""
        try:
            self._invalidate_attributes(ino)
        except OSError as error:  # ENOENT: the kernel does not know the node yet
            log.debug("attributes of node %d not invalidated: %s", ino, error)

    @_answered
    async def release(self, fh: int) -> None:
        """One open less."""
        if is_virtual(fh):
            self._info.release(fh)
        else:
            await self._table.release(fh)

    @_answered
    async def flush(self, fh: int) -> None:
        """Nothing is kept back at close; ENOSYS so that the kernel stops asking."""
        _refuse(errno.ENOSYS)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Of a file that the data plane does not serve."""
        if not is_virtual(fh):
            await self._table.fdatasync(fh)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Of a file in .aiofs; images are read through the data plane."""
        if not is_virtual(fh):
            _refuse(errno.EBADF)
        return await self._info.read(fh, off, size)

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Images are written through the data plane."""
        _refuse(errno.EBADF)

    # -- listing --

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory."""
        return self._listings.open(inode)

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from `start_id` on, with their attributes; `start_id` 0 looks at the directory anew."""
        listing = self._listings.get(fh)
        if listing.fd < 0:
            self._list_virtual(start_id, token)
            return
        if start_id == 0 or not listing.names:
            self._listings.read_names(listing)
        for index in range(start_id, len(listing.names)):
            name = listing.names[index]
            try:
                st = self._source.stat(listing.fd, name)
                node = self._nodes.seen(listing.ino, name, st)
            except FileNotFoundError:
                continue  # removed meanwhile, or not served
            if not pyfuse3.readdir_reply(token, name, entry_of(st, node.ino), index + 1):
                if not node.lookups:
                    self._table.forget(node.ino, 0)
                return
            self._nodes.looked_up(node)

    def _list_virtual(self, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for index, name in enumerate(self._info.names[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._virtual_entry(self._info.lookup(name)), index):
                return

    @_answered
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        self._listings.close(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make the names of a directory durable."""
        listing = self._listings.get(fh)
        if listing.fd >= 0 and not self._table.read_only:
            await trio.to_thread.run_sync(os.fsync, listing.fd)
