"""Answers written one by one and several in one system call: the same answers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import FakeKernel, fault, hold, release

K = 4096
COUNT = 24
"""Requests in work at once: more than are reaped, and more than are gathered, at a time."""


@pytest.fixture(params=["singly", "together"])
def kernel(request: pytest.FixtureRequest) -> Iterator[FakeKernel]:
    """A fake kernel whose data plane writes its answers in the one or the other manner, always."""
    fake = FakeKernel(replies=request.param, merge=False)
    yield fake
    fake.close()


def held(kernel: FakeKernel, image: Path) -> None:
    """`image` is served, and what is sent is held back until `release`."""
    kernel.register(image)
    hold()


def test_each_answer_goes_to_its_own_request(
    kernel: FakeKernel, image: Path, request: pytest.FixtureRequest
) -> None:
    """Reads, writes and one fsync that all finish at once; some reads past the end, so with empty answers."""
    before = image.read_bytes()
    held(kernel, image)
    reads = {kernel.send_read(i * 3 * K + i, 100 + i): i for i in range(COUNT // 2)}
    writes = [kernel.send_write((100 + i) * K, bytes([i]) * K) for i in range(COUNT // 4)]
    ends = [kernel.send_read(len(before) + i * K, K) for i in range(COUNT // 4)]
    kernel.settle()
    release()
    for unique, i in reads.items():
        at = i * 3 * K + i
        assert kernel.reply(unique) == (0, before[at : at + 100 + i])
    for unique in writes:
        assert kernel.reply(unique) == (0, K.to_bytes(4, "little") + bytes(4))
    for unique in ends:
        assert kernel.reply(unique) == (0, b"")
    together = kernel.plane.counters()["replies_together"]
    assert (together > 0) == (request.node.callspec.params["kernel"] == "together")


def test_errors_are_answered_in_company(kernel: FakeKernel, image: Path) -> None:
    """The one that fails gets its errno, those beside it their bytes."""
    held(kernel, image)
    fault("read", -errno.EIO, first=3 * K, end=4 * K, times=-1)
    uniques = [kernel.send_read(i * K, K) for i in range(8)]
    kernel.settle()
    release()
    answers = [kernel.reply(unique) for unique in uniques]
    data = image.read_bytes()
    good = [(0, data[i * K : (i + 1) * K]) for i in range(8)]
    assert answers == [*good[:3], (-errno.EIO, b""), *good[4:]]


def test_answers_wait_for_a_reader_that_is_slow(kernel: FakeKernel, image: Path) -> None:
    """More than the socket holds: the rest is written when there is room, none twice and none lost."""
    size = 3 * K
    kernel.fuse_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * size)
    held(kernel, image)
    uniques = [kernel.send_read(i * K, size) for i in range(COUNT)]
    kernel.settle()
    release()
    data = image.read_bytes()
    for i, unique in enumerate(uniques):
        assert kernel.reply(unique) == (0, data[i * K : i * K + size])


def test_an_image_that_waits_for_its_last_answer_is_served_again(kernel: FakeKernel, image: Path) -> None:
    """UNREGISTER is answered behind the last answer of its image, which can then be registered anew."""
    held(kernel, image)
    uniques = [kernel.send_read(i * K, K) for i in range(COUNT)]
    kernel.settle()
    release()
    kernel.unregister()
    assert all(kernel.has_reply(unique) for unique in uniques)
    kernel.register(image)
    assert len(kernel.read(0, K)) == K
