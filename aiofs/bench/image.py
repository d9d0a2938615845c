"""The image under test: opened as a mount opens it, locked, and not changed unless that was asked for."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .. import directio, locks
from ..backing import ImageLocked
from ..config import CacheMode
from ..directio import DirectRefused
from ..errors import AiofsError, BadInput, reason
from ..source import Kind, Source


@dataclass
class Image:
    """An open and locked image; a context manager."""

    path: Path
    fd: int
    size: int
    """Bytes."""
    filesystem: str
    cache: CacheMode
    """NONE or WRITEBACK."""
    alignment: int
    """What O_DIRECT needs, bytes; 1 when buffered."""
    block_device: bool
    notes: list[str]

    @property
    def open_flags(self) -> int:
        """The flag that a temporary file beside it is to be opened with as well."""
        return os.O_DIRECT if self.cache.direct else 0

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, locks.LocksUnsupported):
            locks.unlock(self.fd)
        os.close(self.fd)


def open_image(path: Path, cache: CacheMode | None, *, destructive: bool) -> Image:
    """Open and lock the image at `path`: for reading, or for reading and overwriting when `destructive`.

    `cache` None: O_DIRECT where it works. BadInput for a path that is no image, AiofsError when it is in use.
    """
    source = _source(path)
    try:
        fd, used, alignment, notes = _open_cached(source, cache, destructive)
        image = Image(
            path,
            fd,
            os.lseek(fd, 0, os.SEEK_END),
            source.filesystem(),
            used,
            alignment,
            source.kind is Kind.DEVICE,
            notes,
        )
    finally:
        source.close()
    try:
        _lock(image, destructive)
    except BaseException:
        os.close(fd)
        raise
    _note_holes(image)
    return image


def check_block_size(image: Image, block_size: int) -> None:
    """BadInput when the image holds no block of this size, or O_DIRECT does not take such blocks."""
    if image.size == 0:
        raise BadInput(f"{image.path} is empty: there is nothing to read; give an image with data in it")
    if image.size < block_size:
        raise BadInput(
            f"{image.path} has {image.size:,} bytes, less than one block of {block_size:,}; "
            "use a smaller --block-size"
        )
    if block_size % image.alignment:
        raise BadInput(
            f"block size {block_size}: O_DIRECT on {image.path} needs multiples of {image.alignment}; "
            f"use --block-size {image.alignment} or --cache writeback"
        )


def _source(path: Path) -> Source:
    try:
        source = Source.open(path, read_only=True)
    except FileNotFoundError:
        raise BadInput(f"image {path} does not exist; give an image file or a block device") from None
    except PermissionError as error:
        raise BadInput(f"no permission to read image {path} ({reason(error)}); run as its owner") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise BadInput(f"image {path} is neither a file nor a block device") from None
        raise BadInput(f"cannot use image {path}: {reason(error)}") from None
    if source.kind is Kind.TREE:
        source.close()
        raise BadInput(f"image {path} is a directory; give one of the images in it")
    return source


def _open_cached(
    source: Source, cache: CacheMode | None, destructive: bool
) -> tuple[int, CacheMode, int, list[str]]:
    """Descriptor, cache mode in use, alignment, notes."""
    if cache is CacheMode.WRITEBACK:
        return _open(source, 0, destructive), cache, 1, []
    filesystem = source.filesystem()
    try:
        directio.refuse_by_name(filesystem)
        fd = _open(source, os.O_DIRECT, destructive)
        try:
            return fd, CacheMode.NONE, directio.alignment(fd, filesystem).size, []
        except BaseException:
            os.close(fd)
            raise
    except DirectRefused as refused:
        why = str(refused)
    if cache is CacheMode.NONE:
        raise BadInput(f"cannot open {source.path} with O_DIRECT: {why}; use --cache writeback")
    note = f"no O_DIRECT ({why}): everything went through the page cache, as --cache writeback does"
    return _open(source, 0, destructive), CacheMode.WRITEBACK, 1, [note]


def _open(source: Source, flags: int, destructive: bool) -> int:
    """DirectRefused when the file system does not take O_DIRECT."""
    flags |= os.O_RDWR if destructive else os.O_RDONLY
    if destructive and source.kind is Kind.DEVICE:
        flags |= os.O_EXCL  # refused while a file system on it is mounted (open(2))
    try:
        return source.open_file(source.root_fd, source.name, flags)
    except OSError as error:
        if error.errno == errno.EINVAL and flags & os.O_DIRECT:
            raise DirectRefused(f"{source.filesystem()} does not support it") from None
        if error.errno == errno.EBUSY:
            raise AiofsError(
                f"{source.path} is in use: mounted, or part of another device; --destructive needs it alone"
            ) from None
        verb = "write" if destructive else "read"
        raise BadInput(f"cannot open {source.path} to {verb} it: {reason(error)}") from None


def _lock(image: Image, destructive: bool) -> None:
    try:
        (locks.lock_for_writing if destructive else locks.lock_for_reading)(image.fd)
    except locks.LockConflict:
        locked = ImageLocked(str(image.path), locks.locked_by(locks.Locked.ours(image.fd)))
        raise AiofsError(f"{reason(locked)}; stop that first, or measure a copy") from None
    except locks.LocksUnsupported:
        image.notes.append(f"{image.filesystem} has no locks: make sure that nobody writes to the image")


def _note_holes(image: Image) -> None:
    allocated = os.fstat(image.fd).st_blocks * 512
    if image.block_device or allocated >= image.size:
        return
    share = 1 - allocated / image.size
    image.notes.append(
        f"{share:.0%} of the image is holes: reads there are served without the device, and look too fast"
    )
