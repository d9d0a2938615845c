"""Image locks between open files: every open file description stands for another process."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiofs import locks
from aiofs.locks import LockConflict


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def lock_bytes(fd: int, kind: int, *positions: int) -> None:
    """Lock single bytes as QEMU does."""
    for position in positions:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, position, 1, 0))


def test_a_second_writer_is_refused(image: Path) -> None:
    """A write lock excludes another writer."""
    with opened(image) as one, opened(image) as two:
        locks.lock_for_writing(one)
        with pytest.raises(LockConflict):
            locks.lock_for_writing(two)


def test_a_reader_is_refused_while_a_writer_holds_the_image(image: Path) -> None:
    """A write lock excludes readers."""
    with opened(image) as writer, opened(image, os.O_RDONLY) as reader:
        locks.lock_for_writing(writer)
        with pytest.raises(LockConflict):
            locks.lock_for_reading(reader)


def test_readers_share_an_image(image: Path) -> None:
    """Two readers do not exclude each other, and together exclude a writer."""
    with opened(image, os.O_RDONLY) as one, opened(image, os.O_RDONLY) as two, opened(image) as writer:
        locks.lock_for_reading(one)
        locks.lock_for_reading(two)
        with pytest.raises(LockConflict):
            locks.lock_for_writing(writer)


def test_a_reader_becomes_the_writer_in_place(image: Path) -> None:
    """A reader's lock turns into a writer's on the same descriptor."""
    with opened(image) as fd, opened(image, os.O_RDONLY) as reader:
        locks.lock_for_reading(fd)
        locks.lock_for_writing(fd)
        with pytest.raises(LockConflict):
            locks.lock_for_reading(reader)


def test_a_refused_upgrade_keeps_the_readers_lock(image: Path) -> None:
    """A reader that may not write, because of another reader, still excludes writers."""
    with opened(image) as one, opened(image) as two, opened(image) as third:
        locks.lock_for_reading(one)
        locks.lock_for_reading(two)
        with pytest.raises(LockConflict):
            locks.lock_for_writing(one)
        locks.unlock(two)
        with pytest.raises(LockConflict):
            locks.lock_for_writing(third)


def test_a_refused_reader_holds_nothing(image: Path) -> None:
    """A reader that met a writer leaves no lock behind."""
    with opened(image) as qemu, opened(image, os.O_RDONLY) as reader, opened(image) as writer:
        lock_bytes(qemu, fcntl.F_RDLCK, 101)
        with pytest.raises(LockConflict):
            locks.lock_for_reading(reader)
        lock_bytes(qemu, fcntl.F_UNLCK, 101)
        locks.lock_for_writing(writer)


@pytest.mark.parametrize("byte", [101, 103, 200])
def test_a_reader_notices_a_qemu_that_writes_or_resizes_or_shares_no_reading(image: Path, byte: int) -> None:
    """QEMU holds shared locks only; a reader looks for those that exclude it."""
    with opened(image) as qemu, opened(image, os.O_RDONLY) as reader:
        lock_bytes(qemu, fcntl.F_RDLCK, byte)
        with pytest.raises(LockConflict):
            locks.lock_for_reading(reader)


def test_a_reader_lives_with_a_qemu_that_reads(image: Path) -> None:
    """QEMU opening read-only locks 100, 201 and 203 as we do."""
    with opened(image, os.O_RDONLY) as qemu, opened(image, os.O_RDONLY) as reader:
        lock_bytes(qemu, fcntl.F_RDLCK, 100, 201, 203)
        locks.lock_for_reading(reader)


def test_closing_another_descriptor_of_the_file_keeps_the_lock(image: Path) -> None:
    """Locks belong to the open file description, unlike POSIX locks."""
    with opened(image) as fd, opened(image) as other:
        locks.lock_for_writing(fd)
        os.close(os.open(image, os.O_RDWR))
        with pytest.raises(LockConflict):
            locks.lock_for_writing(other)


def test_the_process_that_holds_a_lock_is_named(image: Path) -> None:
    """The holder is found in /proc with its pid and name, and we are not."""
    program = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", program, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder,
        opened(image) as fd,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        found = locks.locked_by(locks.Locked.ours(fd))
        holder.communicate(b"")
    assert [who.pid for who in found] == [holder.pid]
    assert str(found[0]).startswith("python")
    assert str(found[0]).endswith(f"(pid {holder.pid})")


def test_nobody_holds_an_image_that_is_only_open(image: Path) -> None:
    """An open descriptor without a lock is no holder."""
    with opened(image) as fd, opened(image):
        assert locks.locked_by(locks.Locked.ours(fd)) == []
