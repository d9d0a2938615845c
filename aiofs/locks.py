"""Image locks: one writer per image, or several readers, across processes.

Open-file-description locks on the bytes that QEMU uses for its own image locks, so that aiofs and QEMU
notice each other. QEMU locks byte 100 + p while it uses permission p, and 200 + p while it lets nobody
else use p (p: 0 consistent read, 1 write, 2 write unchanged, 3 resize; QEMU's block/file-posix.c).
A writer here locks the whole file; a reader says "I read, and nobody may write or resize".
Knows descriptors only: no names, no nodes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of Linux on 64-bit machines: type, whence, start, length, pid."""

READER_BYTES = (100, 201, 203)
"""Shared locks of a reader: it reads; it allows neither writing nor resizing."""
WRITER_BYTES = (101, 103, 200)
"""Locked by others when somebody writes, resizes, or allows no consistent read."""

_CONFLICT = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without open-file-description locks answer."""


class LockConflict(Exception):
    """Another open file holds a lock that excludes ours."""


class LocksUnsupported(Exception):
    """The file system has no open-file-description locks."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock."""

    pid: int
    command: str
    """Its name as in /proc/PID/comm."""

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def lock_for_writing(fd: int) -> None:
    """Take a write lock on the whole file, replacing the read locks that `fd` may hold.

    Raises LockConflict (locks held before stay held), LocksUnsupported, OSError.
    """
    _set(fd, fcntl.F_WRLCK, 0, 0)


def lock_for_reading(fd: int) -> None:
    """Take a reader's locks, and make sure that nobody writes.

    Raises LockConflict (nothing is held then), LocksUnsupported, OSError.
    """
    try:
        for byte in READER_BYTES:
            _set(fd, fcntl.F_RDLCK, byte, 1)
        # Looked at after locking, as QEMU does: of two that come at once at least one sees the other.
        if any(_held(fd, byte) for byte in WRITER_BYTES):
            raise LockConflict
    except LockConflict:
        unlock(fd)
        raise


def unlock(fd: int) -> None:
    """Give up all locks of `fd`."""
    _set(fd, fcntl.F_UNLCK, 0, 0)


@dataclass(frozen=True)
class Locked:
    """An open file whose other lockers are looked for."""

    pid: int
    fd: int
    """A descriptor of that process."""
    device: int
    inode: int

    @classmethod
    def ours(cls, fd: int) -> Locked:
        """The file of a descriptor of this process."""
        st = os.fstat(fd)
        return cls(os.getpid(), fd, st.st_dev, st.st_ino)


def locked_by(file: Locked) -> list[Holder]:
    """The processes whose locks on a file can be seen in /proc, its own descriptor left out.

    Takes some 10 us per descriptor of the machine: call it from a thread. An OFD lock names no process
    (its l_pid is -1), so the lock lines of every /proc/PID/fdinfo are read. Processes of other users are
    invisible to an ordinary user.
    """
    holders: dict[int, Holder] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (found := _holder(process, file)):
            holders[found.pid] = found
    return list(holders.values())


def _holder(process: Path, file: Locked) -> Holder | None:
    """This process, when one of its descriptors holds a lock on the file."""
    marker, own = f":{file.inode} ", Path(f"/proc/{file.pid}/fdinfo/{file.fd}")
    try:
        for info in (process / "fdinfo").iterdir():
            if info == own or not _has_lock(info, marker):
                continue
            there = (process / "fd" / info.name).stat()
            if (there.st_dev, there.st_ino) == (file.device, file.inode):
                return Holder(int(process.name), (process / "comm").read_text().strip())
    except OSError:
        return None  # it has ended, or belongs to somebody else
    return None


def _has_lock(info: Path, marker: str) -> bool:
    try:
        text = info.read_text()
    except OSError:
        return False
    # lock:   1: OFDLCK ADVISORY  WRITE -1 fe:00:2146407 0 EOF
    return any(
        line.startswith("lock:") and marker in line and ("OFDLCK" in line or "POSIX" in line)
        for line in text.splitlines()
    )


def _set(fd: int, kind: int, start: int, length: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in _CONFLICT:
            raise LockConflict from error
        if error.errno in _NO_LOCKS:
            raise LocksUnsupported from error
        raise


def _held(fd: int, byte: int) -> bool:
    """Somebody else holds any lock on this byte."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
