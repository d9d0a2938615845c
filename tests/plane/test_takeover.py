"""A data plane that takes over from another one: it waits, replays INIT, and has requests sent again."""

from __future__ import annotations

import errno
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import (
    CREATE,
    FORGET,
    GETATTR,
    HEADER,
    INIT,
    LOOKUP,
    OPEN,
    OUT_HEADER,
    RELEASE,
    FakeKernel,
    answer,
    at_control_plane,
)

INIT_IN = struct.Struct("<IIIIII11I")
INIT_OUT = struct.Struct("<IIIIHHIIHHI7I")
MAX_PAGES, INIT_EXT = 1 << 22, 1 << 30
BODY = INIT_IN.pack(7, 45, 131072, MAX_PAGES | INIT_EXT, 0, *[0] * 12)
SAVED = HEADER.pack(HEADER.size + len(BODY), INIT, 2, 0, 0, 0, 0, 0, 0) + BODY
ANSWER = INIT_OUT.pack(7, 38, 131072, 0, 12, 9, 131072, 1, 32, 0, 0, *[0] * 7)
RESENT = 1 << 63
PID_RESENT = 1 << 30
NOTIFY_RESEND = 7


@pytest.fixture
def successor() -> Iterator[FakeKernel]:
    """A data plane with a predecessor's INIT."""
    fake = FakeKernel(predecessor_init=SAVED)
    yield fake
    fake.close()


def take_over(kernel: FakeKernel) -> None:
    """Let it serve; what it asks the kernel for is the resend."""
    kernel.command(kernel.plane.serve)
    assert select.select([kernel.fuse], [], [], 20)[0]
    assert kernel.fuse.recv(1 << 20) == OUT_HEADER.pack(16, NOTIFY_RESEND, 0)


def test_the_control_plane_gets_the_saved_init_and_the_kernel_no_second_answer(
    successor: FakeKernel, image: Path
) -> None:
    """Byte for byte; the answer is amended and kept, but goes no further."""
    assert at_control_plane(successor) == SAVED
    answer(successor, 2, ANSWER)
    successor.register(image)
    take_over(successor)
    assert successor.read(0, 4) == image.read_bytes()[:4]
    assert not successor.has_reply(2)
    exchange = successor.plane.init_exchange()
    assert exchange is not None
    assert exchange[0] == SAVED
    assert INIT_OUT.unpack(exchange[1][OUT_HEADER.size :])[6] == 1 << 20  # max_write, as amended


def test_nothing_is_read_before_it_is_to_serve(successor: FakeKernel, image: Path) -> None:
    """Images are registered first: a request that came before would be answered EBADF."""
    unique = successor.send_read(0, 4)
    other = successor.send(LOOKUP, b"name\0", node=1)
    assert at_control_plane(successor) == SAVED
    answer(successor, 2, ANSWER)
    successor.register(image)
    assert successor.plane.counters()["requests"] == 0
    assert not select.select([successor.control_plane], [], [], 0)[0]
    take_over(successor)
    assert successor.reply(unique) == (0, image.read_bytes()[:4])
    assert HEADER.unpack_from(at_control_plane(successor))[2] == other


def test_a_control_plane_that_refuses_the_init_ends_the_loop(successor: FakeKernel) -> None:
    """The kernel has been answered long ago: nothing can be agreed on any more."""
    at_control_plane(successor)
    answer(successor, 2, error=-errno.EPROTO)
    successor.plane.join()
    assert successor.plane.result == -errno.EPROTO


def test_an_init_that_is_none_ends_the_loop() -> None:
    """Memory that was damaged is not taken for a message."""
    fake = FakeKernel(predecessor_init=HEADER.pack(HEADER.size, GETATTR, 2, 1, 0, 0, 0, 0, 0))
    try:
        fake.plane.join()
        assert fake.plane.result == -errno.EPROTO
    finally:
        fake.close()


def test_the_control_plane_learns_that_a_message_was_sent_before(kernel: FakeKernel) -> None:
    """In its pid, as the unique is not shown to the handlers; the answer keeps the mark of the unique."""
    kernel.send(LOOKUP, b"name\0", node=1, unique=RESENT | 8)
    message = at_control_plane(kernel)
    (_, _, unique, _, _, _, pid, _, _) = HEADER.unpack_from(message)
    assert (unique, pid) == (RESENT | 8, PID_RESENT)
    assert message[HEADER.size :] == b"name\0"
    answer(kernel, RESENT | 8, b"entry")
    assert kernel.reply(RESENT | 8) == (0, b"entry")
    kernel.send(LOOKUP, b"name\0", node=1, unique=10)
    assert HEADER.unpack_from(at_control_plane(kernel))[6] == 0


def opened(kernel: FakeKernel, opcode: int, body: bytes, error: int = 0) -> None:
    """One OPEN or CREATE, answered."""
    unique = kernel.send(opcode, bytes(8), node=10 if opcode == OPEN else 1)
    at_control_plane(kernel)
    answer(kernel, unique, body if not error else b"", error)
    assert kernel.reply(unique)[0] == error


def released(kernel: FakeKernel, handle: int = 0) -> None:
    """One RELEASE of this handle, answered."""
    unique = kernel.send(RELEASE, struct.pack("<Q", handle) + bytes(16))
    at_control_plane(kernel)
    answer(kernel, unique)
    assert kernel.reply(unique) == (0, b"")
    kernel.read(0, 1)  # what is done after the answer is done by now


def test_opens_are_counted_as_the_kernel_learns_of_them(kernel: FakeKernel, image: Path) -> None:
    """OPEN and CREATE when they are answered well, RELEASE when it is answered."""
    kernel.register(image)
    open_out = struct.pack("<QII", 10, 0, 0)
    opened(kernel, OPEN, open_out)
    assert kernel.opens() == 1
    opened(kernel, OPEN, open_out, error=-errno.EACCES)
    assert kernel.opens() == 1
    entry = struct.pack("<Q", 10) + bytes(120)
    opened(kernel, CREATE, entry + open_out)
    assert kernel.opens() == 2
    released(kernel)
    released(kernel)
    assert kernel.opens() == 0
    released(kernel)
    assert kernel.opens() == 0


def test_a_release_of_an_earlier_registration_is_not_counted(kernel: FakeKernel, image: Path) -> None:
    """It may be answered when the image has been closed and is open again; that open has another handle."""
    kernel.register(image, handle=7)
    opened(kernel, OPEN, struct.pack("<QII", 7, 0, 0))
    kernel.unregister()
    kernel.register(image, handle=8)
    opened(kernel, OPEN, struct.pack("<QII", 8, 0, 0))
    released(kernel, 7)
    assert kernel.opens() == 1
    released(kernel, 8)
    assert kernel.opens() == 0


def test_what_was_asked_and_answered_is_counted(kernel: FakeKernel, image: Path) -> None:
    """So that a keeper sees whether a server got anywhere before it died. A FORGET asks nothing."""
    kernel.register(image)
    for _ in range(3):
        kernel.read(0, 10)
    assert struct.unpack("<QQ", kernel.progress) == (3, 3)
    kernel.send(FORGET, bytes(8))
    kernel.send(LOOKUP, b"name\0", node=1)
    at_control_plane(kernel)
    at_control_plane(kernel)
    assert struct.unpack("<QQ", kernel.progress) == (4, 3)
