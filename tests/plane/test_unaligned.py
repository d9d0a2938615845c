"""Rule 4: an O_DIRECT image takes requests of any offset and length, exact to the byte."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from fakekernel import FakeKernel, fault, hold, overlaps, release, submitted

from aiofs.dataplane import driver_names

K = 4096


@pytest.fixture
def direct(image: Path) -> Path:
    """The image, on a file system with O_DIRECT."""
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no O_DIRECT on {image.parent}: {error.strerror}")
    return image


def test_an_unaligned_read_is_widened(kernel: FakeKernel, direct: Path) -> None:
    """The image is read in whole blocks, the caller gets what it asked for."""
    kernel.register(direct, direct=True, block_size=K)
    assert kernel.read(5000, 100) == direct.read_bytes()[5000:5100]
    assert kernel.read(4095, 2) == direct.read_bytes()[4095:4097]
    assert submitted() == [("read", K, K), ("read", 0, 2 * K)]


@pytest.mark.parametrize(
    ("offset", "length", "ios"),
    [
        (K + 100, 50, [("read", K, K), ("write", K, K)]),
        (K, 50, [("read", K, K), ("write", K, K)]),
        (K + 50, K - 50, [("read", K, K), ("write", K, K)]),
        (K + 50, K, [("read", K, K), ("read", 2 * K, K), ("write", K, 2 * K)]),
        (K + 50, 3 * K - 50, [("read", K, K), ("write", K, 3 * K)]),
        (K, 2 * K + 50, [("read", 3 * K, K), ("write", K, 3 * K)]),
    ],
)
def test_an_unaligned_write_reads_its_edges_first(
    kernel: FakeKernel, direct: Path, offset: int, length: int, ios: list[tuple[str, int, int]]
) -> None:
    """Read-modify-write touches only the blocks at the edges, and nothing around the data changes."""
    expected = bytearray(direct.read_bytes())
    data = os.urandom(length)
    expected[offset : offset + length] = data
    kernel.register(direct, direct=True, block_size=K)
    assert kernel.write(offset, data) == length
    assert submitted() == ios
    assert direct.read_bytes() == expected


def test_neighbours_in_one_block_do_not_lose_each_other(kernel: FakeKernel, direct: Path) -> None:
    """Two WRITEs into one block, together: the second reads what the first has written."""
    kernel.register(direct, direct=True, block_size=K)
    hold()
    first = kernel.send_write(K + 10, b"A" * 10)
    second = kernel.send_write(K + 30, b"B" * 10)
    kernel.settle()
    assert submitted() == [("read", K, K)]
    release()
    assert kernel.reply(first)[0] == 0
    assert kernel.reply(second)[0] == 0
    data = direct.read_bytes()
    assert (data[K + 10 : K + 20], data[K + 30 : K + 40]) == (b"A" * 10, b"B" * 10)
    assert overlaps() == 0


def test_a_write_at_the_tail_keeps_the_size_exact(kernel: FakeKernel, direct: Path) -> None:
    """An image of 5000 bytes stays one, and grows by just what is written behind its end."""
    direct.write_bytes(b"t" * 5000)
    kernel.register(direct, direct=True, block_size=K)
    kernel.write(4990, b"x" * 10)
    assert direct.read_bytes() == b"t" * 4990 + b"x" * 10
    kernel.write(4995, b"y" * 100)
    assert direct.read_bytes() == b"t" * 4990 + b"x" * 5 + b"y" * 100
    kernel.write(10_001, b"z")
    assert direct.stat().st_size == 10_002
    assert kernel.read(0, 20_000) == direct.read_bytes()
    assert direct.read_bytes()[5095:] == bytes(10_001 - 5095) + b"z"


def test_an_error_at_an_edge_is_the_write_s_error(kernel: FakeKernel, direct: Path) -> None:
    """A block that cannot be read cannot be modified: the WRITE fails, the image is unchanged."""
    before = direct.read_bytes()
    kernel.register(direct, direct=True, block_size=K)
    fault("read", -errno.EIO, times=1)
    with pytest.raises(OSError) as caught:
        kernel.write(100, b"x")
    assert caught.value.errno == errno.EIO
    assert direct.read_bytes() == before


def test_a_read_that_met_an_end_that_is_no_more_is_read_again(kernel: FakeKernel, direct: Path) -> None:
    """Less than a block, and the image goes on behind it: a write made it longer meanwhile, no error."""
    kernel.register(direct, direct=True, block_size=K)
    fault("read", 512, times=1)
    assert kernel.read(0, 2 * K) == direct.read_bytes()[: 2 * K]
    assert submitted() == [("read", 0, 2 * K), ("read", 0, 2 * K)]


def test_a_short_direct_write_goes_on_at_whole_blocks(kernel: FakeKernel, direct: Path) -> None:
    """After a write of a block and a half, the half is written again: O_DIRECT takes no less."""
    kernel.register(direct, direct=True, block_size=512)
    fault("write", 512, times=1)
    data = os.urandom(2048)
    assert kernel.write(0, data) == 2048
    assert submitted() == [("write", 0, 2048), ("write", 512, 1536)]
    assert direct.read_bytes()[:2048] == data


@pytest.mark.parametrize("driver", driver_names())
def test_random_unaligned_requests_match_a_bytearray(direct: Path, driver: str) -> None:
    """400 requests of odd offsets and lengths, several at once, on every driver: image equals model."""
    rng = random.Random(f"unaligned-{driver}")
    kernel = FakeKernel(look_us=50)
    try:
        model = bytearray(rng.randbytes(100_003))
        direct.write_bytes(model)
        kernel.register(direct, driver=driver, direct=True, block_size=K)
        for _ in range(100):
            uniques: dict[int, bytes | None] = {}
            for _ in range(4):
                offset, length = rng.randrange(110_000), rng.randrange(1, 9000)
                if rng.random() < 0.5:
                    data = rng.randbytes(length)
                    if offset > len(model):
                        model.extend(bytes(offset - len(model)))
                    model[offset : offset + length] = data
                    uniques[kernel.send_write(offset, data)] = None
                else:
                    uniques[kernel.send_read(offset, length)] = bytes(model[offset : offset + length])
            for unique, expected in uniques.items():
                error, body = kernel.reply(unique)
                assert error == 0
                assert expected is None or body == expected
        assert direct.read_bytes() == model
    finally:
        kernel.close()


# -- less than a block --


def test_a_part_of_a_block_is_written_again_whole(kernel: FakeKernel, direct: Path) -> None:
    """It is no lack of room: ENOSPC would make a hypervisor stop its guest."""
    kernel.register(direct, direct=True, block_size=K)
    fault("write", 512, times=2)
    assert kernel.write(K, b"w" * K) == K
    assert submitted() == [("write", K, K)] * 3
    assert direct.read_bytes()[K : 2 * K] == b"w" * K
    fault("write", 512, times=-1)
    with pytest.raises(OSError) as caught:
        kernel.write(K, b"v" * K)
    assert caught.value.errno == errno.EIO


def test_an_edge_that_came_in_part_is_read_again(kernel: FakeKernel, direct: Path) -> None:
    """What is missing of it is no zeros; after 64 tries it is an error, and nothing has been written."""
    expected = bytearray(direct.read_bytes())
    kernel.register(direct, direct=True, block_size=K)
    fault("read", 512, times=2)
    assert kernel.write(K + 10, b"w" * 20) == 20
    expected[K + 10 : K + 30] = b"w" * 20
    assert submitted() == [("read", K, K)] * 3 + [("write", K, K)]
    fault("read", 512, times=-1)
    with pytest.raises(OSError) as caught:
        kernel.write(K + 10, b"v" * 20)
    assert caught.value.errno == errno.EIO
    assert direct.read_bytes() == expected
