"""What is mounted: a directory of images, one image file, or one block device.

The place where names meet the backing file system. Everything is reached through one directory
descriptor and single names or paths beneath it; what is served and what stays invisible is decided here.
Knows no nodes and no open images.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from . import mounttable, storage
from .dataplane import system
from .dataplane.system import FileStat
from .mounttable import Mount
from .storage import Storage

DEVICE_BLOCK = 4096
"""The unit of a block device's statvfs in bytes."""

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Kind(enum.Enum):
    """What the source is."""

    TREE = "directory"
    FILE = "image file"
    DEVICE = "block device"


@dataclass
class Source:
    """The backing tree, opened once. For a file or device: its directory, with one name of it served."""

    kind: Kind
    path: Path
    """As the user named it; for messages."""
    root_fd: int
    """The directory that all names are resolved beneath; O_PATH."""
    device: int
    """st_dev of the file system that is served; nothing on another one is."""
    read_only: bool
    name: bytes = b""
    """For a file or device: the only name shown."""
    backing_name: bytes = b""
    """For a file or device: its name in the directory of `root_fd` (`name` may be a symbolic link to it)."""
    device_fd: int = -1
    """For a block device: open for reading, to ask its size."""

    @classmethod
    def open(cls, path: Path, read_only: bool) -> Source:
        """Open the source at `path`. OSError when it is missing, not permitted, or none of the kinds."""
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode):
            return cls._directory(path, real, read_only)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.EINVAL, "neither a directory, an image file nor a block device", str(path))
        source = cls._directory(path, real.parent, read_only)
        source.name, source.backing_name = os.fsencode(path.name), os.fsencode(real.name)
        source.kind = Kind.FILE
        try:
            # Tried now, so that a source that cannot be served fails the mount and not the first open.
            fd = system.open_beneath(source.root_fd, source.backing_name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            source.close()
            raise OSError(error.errno, error.strerror, str(path)) from error
        if stat.S_ISBLK(mode):
            source.kind, source.device_fd = Kind.DEVICE, fd
        else:
            os.close(fd)
        return source

    @classmethod
    def _directory(cls, path: Path, real: Path, read_only: bool) -> Source:
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return cls(Kind.TREE, path, fd, system.stat(fd).dev, read_only)

    def close(self) -> None:
        """Close the source's descriptors."""
        for fd in (self.root_fd, self.device_fd):
            if fd >= 0:
                os.close(fd)
        self.root_fd = self.device_fd = -1

    def describe(self) -> str:
        """For people: `directory /srv/images`, `block device /dev/sdb, read-only`."""
        return f"{self.kind.value} {self.path}{', read-only' if self.read_only else ''}"

    def display(self, path: bytes) -> str:
        """The name of an image in messages, from its path in the mount."""
        return str(self.path / os.fsdecode(path)) if self.kind is Kind.TREE else str(self.path)

    # -- names --

    def serves(self, st: FileStat) -> bool:
        """A file of this kind is shown: regular files and directories of the one file system."""
        if self.kind is Kind.DEVICE:
            return stat.S_ISBLK(st.mode)
        if st.dev != self.device or st.mount_root:
            return False
        return stat.S_ISREG(st.mode) or (self.kind is Kind.TREE and stat.S_ISDIR(st.mode))

    def stat(self, dir_fd: int, name: bytes) -> FileStat:
        """The attributes of `name` in a directory of the tree. ENOENT when it is missing or not served."""
        st = system.stat(dir_fd, self._backing(name))
        if not self.serves(st):
            raise FileNotFoundError(errno.ENOENT, "not served", os.fsdecode(name))
        return self.sized(st)

    def sized(self, st: FileStat) -> FileStat:
        """`st` with the size that a block device has; unchanged for files."""
        if self.kind is not Kind.DEVICE or not stat.S_ISBLK(st.mode):
            return st
        size = os.lseek(self.device_fd, 0, os.SEEK_END)
        return st._replace(size=size, blocks=size // 512, nlink=1)

    def open_file(self, dir_fd: int, name: bytes, flags: int) -> int:
        """Open a name of a directory of the tree; never blocks on a fifo. OSError as openat2 says."""
        if flags & os.O_PATH:
            return system.open_beneath(dir_fd, self._backing(name), flags)
        fd = system.open_beneath(dir_fd, self._backing(name), flags | os.O_NONBLOCK | os.O_NOCTTY)
        # io_uring and AIO would take the flag for "return EAGAIN rather than wait".
        os.set_blocking(fd, True)
        return fd

    def open_directory(self, path: bytes, flags: int = os.O_PATH) -> int:
        """Open a directory of the tree by its path, `b""` for the root."""
        return system.open_beneath(self.root_fd, path or b".", _OPEN_DIRECTORY | flags)

    def names(self, dir_fd: int) -> list[bytes]:
        """The names of a directory that may be served, sorted. `dir_fd` must be readable."""
        if self.kind is not Kind.TREE:
            return [self.name]
        with os.scandir(dir_fd) as entries:
            found = [
                os.fsencode(entry.name)
                for entry in entries
                if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            ]
        found.sort()
        return found

    def _backing(self, name: bytes) -> bytes:
        if self.kind is Kind.TREE:
            return name
        if name != self.name:
            raise FileNotFoundError(errno.ENOENT, "not served", os.fsdecode(name))
        return self.backing_name

    # -- the file system --

    def filesystem(self) -> str:
        """The type of the backing file system as mount(8) names it; "the file system" when not known."""
        if self.kind is Kind.DEVICE:
            return "the block device"
        mount = self._mount()
        return mount.fstype if mount else "the file system"

    def storage(self) -> Storage:
        """The file system and the devices below it; for a block device that one."""
        if self.kind is Kind.DEVICE:
            return storage.of_block_device(os.fstat(self.device_fd).st_rdev)
        return storage.of_filesystem(self._mount(), self.device)

    def _mount(self) -> Mount | None:
        info = Path(f"/proc/self/fdinfo/{self.root_fd}").read_text().splitlines()
        mount_id = next((int(line.split()[1]) for line in info if line.startswith("mnt_id:")), -1)
        return next((mount for mount in mounttable.mounts() if mount.mount_id == mount_id), None)

    def statvfs(self) -> os.statvfs_result:
        """statvfs(3) of the backing file system; a block device is a full one of its own size."""
        there = os.statvfs(self.root_fd)
        if self.kind is not Kind.DEVICE:
            return there
        blocks = os.lseek(self.device_fd, 0, os.SEEK_END) // DEVICE_BLOCK
        return os.statvfs_result(
            (DEVICE_BLOCK, DEVICE_BLOCK, blocks, 0, 0, 1, 0, 0, there.f_flag, there.f_namemax)
        )
