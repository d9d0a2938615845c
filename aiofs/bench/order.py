"""The order in which sequential requests reach the kernel, measured without privilege.

Numbered blocks are written through a descriptor that was opened with O_APPEND. On Linux pwrite(2) to such
a descriptor appends, whatever its offset (pwrite(2), BUGS); io_uring, Linux AIO and glibc end in the same
function of the kernel. So the file holds the blocks in the order in which the file system took them: that in
which a driver's threads got to its door.

The descriptor is buffered also where the image is not. The block layer's own record (tracefs,
block_bio_queue, which needs root) of O_DIRECT reads and overwrites through every driver says what buffered
appends say. On Linux 6.18, ext4, 2,048 blocks of 4 KiB, depths 4 to 128: io_uring, linux and sync 0 % late in
both, threads 0-4 % and 0-2 %, posix at depth 128 81 % and 65-74 %. O_DIRECT appends say something else
(io_uring 3-30 %, threads 0-52 %): each holds the inode until it is on disk, and those that wait for it are
let in in any order.

What it does not show: what the block layer and the disk make of the order afterwards.
"""

from __future__ import annotations

import array
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

NUMBER_BYTES = 8
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Disorder:
    """How far a file of numbered blocks is from sorted."""

    late: float
    """Share of the blocks that stand behind one with a higher number, 0 .. 1."""
    displacement: int
    """The farthest that a block is from its place, in blocks."""


def disorder(numbers: Sequence[int]) -> Disorder:
    """Of the numbers 0, 1, 2 .. as they stand in the file. ValueError when one is missing or twice there."""
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError("blocks are missing: this file system does not append what is written with O_APPEND")
    late, highest = 0, -1
    for number in numbers:
        late += number < highest
        highest = max(highest, number)
    farthest = max((abs(place - number) for place, number in enumerate(numbers)), default=0)
    return Disorder(late / max(1, len(numbers)), farthest)


def numbers_in(fd: int, block_size: int) -> list[int]:
    """The number of each block, as they stand in the file. `fd` may be O_DIRECT; blocks divide READ_BYTES."""
    found = array.array("Q")
    with mmap.mmap(-1, READ_BYTES) as buffer:
        offset = 0
        while (got := os.preadv(fd, [buffer], offset)) > 0:
            for at in range(0, got - NUMBER_BYTES + 1, block_size):
                found.frombytes(buffer[at : at + NUMBER_BYTES])
            offset += got
    return list(found)
