"""What is no data request goes to the control plane and back, and nothing malformed gets through."""

from __future__ import annotations

import errno
import select
import struct
from pathlib import Path

import pytest
import trio
import trio.testing
from fakekernel import (
    BATCH_FORGET,
    CREATE,
    FSYNC,
    GETATTR,
    HEADER,
    INIT,
    INTERRUPT,
    LOOKUP,
    OPEN,
    OUT_HEADER,
    PATIENCE_S,
    READ,
    READ_IN,
    WRITE,
    WRITE_IN,
    FakeKernel,
    answer,
    at_control_plane,
    hold,
    release,
    submitted,
)

INIT_IN = struct.Struct("<IIIIII11I")
INIT_OUT = struct.Struct("<IIIIHHIIHHI7I")
ASYNC_READ, WRITEBACK_CACHE, AUTO_INVAL, ASYNC_DIO, MAX_PAGES, INIT_EXT = (
    1 << 0, 1 << 16, 1 << 12, 1 << 15, 1 << 22, 1 << 30,
)  # fmt: skip
HAS_RESEND = 1 << (39 - 32)
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PARALLEL_DIRECT_WRITES = 1, 2, 64


def test_other_messages_go_up_whole_and_their_answers_come_back(kernel: FakeKernel) -> None:
    """A LOOKUP reaches the control plane byte for byte, and so does the answer the kernel."""
    unique = kernel.send(LOOKUP, b"disk.img\0", node=1)
    message = at_control_plane(kernel)
    assert message == HEADER.pack(49, LOOKUP, unique, 1, 0, 0, 0, 0, 0) + b"disk.img\0"
    answer(kernel, unique, b"entry" * 20)
    assert kernel.reply(unique) == (0, b"entry" * 20)


def test_a_resent_message_keeps_bit_63_of_its_unique(kernel: FakeKernel, image: Path) -> None:
    """The kernel marks a resend in the unique, and takes no answer without the mark."""
    kernel.register(image)
    resent = 1 << 63 | 77
    kernel.send_read(0, 10, unique=resent)
    assert kernel.reply(resent) == (0, image.read_bytes()[:10])


def test_a_message_longer_than_its_fixed_part_goes_up_whole(kernel: FakeKernel) -> None:
    """A name of 200 bytes crosses the boundary between head and payload unharmed."""
    name = b"n" * 200 + b"\0"
    kernel.send(LOOKUP, name, node=1)
    assert at_control_plane(kernel)[HEADER.size :] == name


def test_reads_of_nodes_that_are_no_images_go_up(kernel: FakeKernel) -> None:
    """The control plane's own files are read through it."""
    unique = kernel.send_read(0, 100, node=77)
    assert at_control_plane(kernel)[4:8] == struct.pack("<I", READ)
    answer(kernel, unique, b"{}")
    assert kernel.reply(unique) == (0, b"{}")


def test_init_is_amended_and_kept(kernel: FakeKernel) -> None:
    """The INIT reply allows 1 MiB, async direct I/O and a queue of our depth, and no writeback cache."""
    offered = ASYNC_READ | ASYNC_DIO | MAX_PAGES | INIT_EXT | WRITEBACK_CACHE | AUTO_INVAL
    unique = kernel.send(INIT, INIT_IN.pack(7, 45, 131072, offered, HAS_RESEND, *[0] * 12), node=0)
    assert kernel.plane.init_exchange() is None
    request = at_control_plane(kernel)
    libfuse = INIT_OUT.pack(7, 38, 131072, WRITEBACK_CACHE | AUTO_INVAL, 12, 9, 131072, 1, 32, 0, 0, *[0] * 7)
    answer(kernel, unique, libfuse)
    error, reply = kernel.reply(unique)
    (major, minor, _, flags, background, congestion, max_write, _, max_pages, _, flags2, *_) = (
        INIT_OUT.unpack(reply)
    )
    assert (error, major, minor) == (0, 7, 38)
    assert (max_write, max_pages) == (1 << 20, 256)
    assert (background, congestion) == (32, 24)
    assert (
        flags & (ASYNC_READ | ASYNC_DIO | MAX_PAGES | INIT_EXT)
        == ASYNC_READ | ASYNC_DIO | MAX_PAGES | INIT_EXT
    )
    assert not flags & (WRITEBACK_CACHE | AUTO_INVAL)
    assert flags2 & HAS_RESEND
    assert kernel.plane.init_exchange() == (request, OUT_HEADER.pack(80, 0, unique) + reply)


def test_only_what_the_kernel_offers_is_switched_on(kernel: FakeKernel) -> None:
    """A kernel without max_pages gets 128 KiB requests, and no flag it does not know."""
    unique = kernel.send(INIT, INIT_IN.pack(7, 45, 131072, ASYNC_READ, HAS_RESEND, *[0] * 12), node=0)
    at_control_plane(kernel)
    answer(kernel, unique, INIT_OUT.pack(7, 38, 131072, 0, 12, 9, 131072, 1, 32, 0, 0, *[0] * 7))
    fields = INIT_OUT.unpack(kernel.reply(unique)[1])
    assert fields[3] == ASYNC_READ
    assert fields[6] == 128 * 1024
    assert fields[10] == 0


@pytest.mark.parametrize(("opcode", "entry"), [(OPEN, b""), (CREATE, bytes(128))])
def test_files_opened_for_direct_io_take_parallel_writes(
    kernel: FakeKernel, opcode: int, entry: bytes
) -> None:
    """FOPEN_PARALLEL_DIRECT_WRITES is added to an OPEN that bypasses the page cache, to no other."""
    for flags, expected in (
        (FOPEN_DIRECT_IO, FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES),
        (FOPEN_KEEP_CACHE, FOPEN_KEEP_CACHE),
    ):
        unique = kernel.send(opcode, bytes(16))
        at_control_plane(kernel)
        answer(kernel, unique, entry + struct.pack("<QII", 0, flags, 0))
        assert kernel.reply(unique)[1] == entry + struct.pack("<QII", 0, expected, 0)


def test_a_reply_of_the_size_of_an_open_is_left_alone(kernel: FakeKernel) -> None:
    """Only answers to OPEN and CREATE are amended, whatever others look like."""
    unique = kernel.send(GETATTR, bytes(16))
    at_control_plane(kernel)
    body = struct.pack("<QII", 0, FOPEN_DIRECT_IO, 0)
    answer(kernel, unique, body)
    assert kernel.reply(unique)[1] == body


def test_interrupts_are_dropped(kernel: FakeKernel) -> None:
    """INTERRUPT gets no answer and goes nowhere."""
    kernel.send(INTERRUPT, struct.pack("<Q", 2))
    kernel.send(GETATTR, bytes(16))
    assert struct.unpack_from("<I", at_control_plane(kernel), 4) == (GETATTR,)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2050, 40_000])
def test_many_forgets_go_up_in_parts(kernel: FakeKernel, count: int) -> None:
    """A BATCH_FORGET of any length arrives whole, in messages that every socket can carry."""
    forgets = [(node, node % 7 + 1) for node in range(1, count + 1)]
    body = struct.pack("<II", count, 0) + b"".join(struct.pack("<QQ", *f) for f in forgets)
    kernel.send(BATCH_FORGET, body, node=0)
    kernel.send(GETATTR, bytes(16))
    seen: list[tuple[int, int]] = []
    while True:
        message = at_control_plane(kernel)
        length, opcode = struct.unpack_from("<II", message)
        assert length == len(message) <= 1 << 16
        if opcode == GETATTR:
            break
        assert opcode == BATCH_FORGET
        (part, _) = struct.unpack_from("<II", message, HEADER.size)
        seen += struct.iter_unpack("<QQ", message[HEADER.size + 8 :])
        assert len(message) == HEADER.size + 8 + 16 * part
    assert seen == forgets


def test_a_full_socket_loses_and_reorders_nothing(kernel: FakeKernel, image: Path) -> None:
    """While the control plane does not read, its messages wait in order, and data requests in flight end."""
    kernel.register(image)
    hold()
    read = kernel.send_read(0, 10)
    kernel.settle()
    sent: list[int] = []
    kernel.fuse.setblocking(False)
    try:
        while len(sent) < 200_000:
            sent.append(kernel.send(LOOKUP, b"%d\0" % len(sent), node=1))
    except BlockingIOError:
        kernel.unique -= 2
    kernel.fuse.setblocking(True)
    release()
    assert kernel.reply(read)[0] == 0
    for unique in sent:
        assert struct.unpack_from("<Q", at_control_plane(kernel), 8) == (unique,)


# -- malformed --

MALFORMED = {
    "a length that is not the size": HEADER.pack(4096, GETATTR, 9, 1, 0, 0, 0, 0, 0),
    "READ without its fields": HEADER.pack(48, READ, 9, 10, 0, 0, 0, 0, 0) + bytes(8),
    "READ of 2 MiB": HEADER.pack(80, READ, 9, 10, 0, 0, 0, 0, 0) + READ_IN.pack(0, 0, 2 << 20, 0, 0, 0, 0),
    "READ at a negative offset": HEADER.pack(80, READ, 9, 10, 0, 0, 0, 0, 0)
    + READ_IN.pack(0, 1 << 63, 10, 0, 0, 0, 0),
    "READ past the largest offset": HEADER.pack(80, READ, 9, 10, 0, 0, 0, 0, 0)
    + READ_IN.pack(0, (1 << 63) - 5, 10, 0, 0, 0, 0),
    "WRITE with less data than it says": HEADER.pack(90, WRITE, 9, 10, 0, 0, 0, 0, 0)
    + WRITE_IN.pack(0, 0, 11, 0, 0, 0, 0)
    + bytes(10),
    "WRITE with more data than it says": HEADER.pack(90, WRITE, 9, 10, 0, 0, 0, 0, 0)
    + WRITE_IN.pack(0, 0, 9, 0, 0, 0, 0)
    + bytes(10),
    "WRITE of 4 GiB": HEADER.pack(80, WRITE, 9, 10, 0, 0, 0, 0, 0)
    + WRITE_IN.pack(0, 0, 0xFFFFFFFF, 0, 0, 0, 0),
    "FSYNC without its fields": HEADER.pack(40, FSYNC, 9, 10, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_refused(kernel: FakeKernel, image: Path, message: bytes) -> None:
    """Refused with EINVAL and counted; the next request goes on."""
    kernel.register(image)
    kernel.fuse.send(message)
    assert kernel.reply(9)[0] == -errno.EINVAL
    assert kernel.plane.counters()["refused"] == 1
    assert kernel.read(0, 4) == image.read_bytes()[:4]
    assert submitted() == [("read", 0, 4)]


@pytest.mark.parametrize("size", [1, 4, 39])
def test_a_message_without_a_whole_header_is_dropped(kernel: FakeKernel, image: Path, size: int) -> None:
    """There is no unique to answer: counted, and the next request goes on."""
    kernel.register(image)
    kernel.fuse.send(b"\xff" * size)
    assert kernel.read(0, 4) == image.read_bytes()[:4]
    assert kernel.plane.counters()["refused"] == 1


def test_a_batch_forget_that_counts_more_than_it_holds_is_dropped(kernel: FakeKernel) -> None:
    """The count of a BATCH_FORGET is checked against its size."""
    kernel.send(BATCH_FORGET, struct.pack("<II", 1000, 0) + bytes(32), node=0)
    kernel.settle()
    assert kernel.plane.counters()["refused"] == 1


def test_a_write_to_no_image_is_ebadf(kernel: FakeKernel) -> None:
    """Nothing but registered images is written."""
    with pytest.raises(OSError) as caught:
        kernel.write(0, b"x", node=12345)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(
    "reply",
    [
        OUT_HEADER.pack(100, 0, 5),
        OUT_HEADER.pack(16, 5, 5),
        OUT_HEADER.pack(16, -600, 5),
        OUT_HEADER.pack(16, 3, 0),
        OUT_HEADER.pack(16 + 24, 2, 0) + struct.pack("<Qqq", 10, 0, 0),
        b"\0" * 7,
    ],
    ids=["length", "positive error", "error out of range", "notify entry", "notify with pages", "short"],
)
def test_replies_that_could_harm_do_not_pass(kernel: FakeKernel, reply: bytes) -> None:
    """A broken reply, or a notification that would block this thread for ever, is refused."""
    kernel.control_plane.send(reply)
    good = kernel.send(GETATTR, bytes(16))
    at_control_plane(kernel)
    answer(kernel, good)
    assert kernel.reply(good) == (0, b"")
    assert kernel.plane.counters()["refused"] == 1


def test_an_attribute_invalidation_passes(kernel: FakeKernel) -> None:
    """The one notification that cannot block goes up to the kernel."""
    body = struct.pack("<Qqq", 10, -1, 0)
    kernel.control_plane.send(OUT_HEADER.pack(16 + len(body), 2, 0) + body)
    assert select.select([kernel.fuse], [], [], PATIENCE_S)[0]
    assert kernel.fuse.recv(100) == OUT_HEADER.pack(40, 2, 0) + body


# -- the end --


def test_the_loop_ends_when_the_kernel_unmounts(kernel: FakeKernel) -> None:
    """An end of the kernel's descriptor ends the loop with 0."""
    kernel.fuse.shutdown(1)
    kernel.plane.join()
    assert kernel.plane.result == 0


def test_stop_finishes_what_is_in_flight(kernel: FakeKernel, image: Path) -> None:
    """Rule 7: after stop the loop still answers what it had read, WRITEs that wait included."""
    kernel.register(image)
    hold()
    first = kernel.send_write(0, b"1" * 4096)
    second = kernel.send_write(100, b"2" * 4096)
    kernel.settle()
    kernel.plane.stop()
    release()
    kernel.plane.join()
    assert kernel.plane.result == 1
    assert kernel.reply(first)[0] == 0
    assert kernel.reply(second)[0] == 0
    assert image.read_bytes()[:4196] == b"1" * 100 + b"2" * 4096


def test_the_loop_fails_when_the_control_plane_goes(kernel: FakeKernel) -> None:
    """Without a control plane there is no mount: the loop ends with EPIPE."""
    kernel.control_plane.close()
    kernel.plane.join()
    assert kernel.plane.result == -errno.EPIPE


# -- commands --


def test_unregister_waits_for_what_is_in_flight(kernel: FakeKernel, image: Path) -> None:
    """The answer to unregister means that nothing uses the descriptor any more."""
    kernel.register(image)
    hold()
    write = kernel.send_write(0, b"x" * 4096)
    kernel.settle()

    async def unregister() -> None:
        done = trio.Event()

        async def call() -> None:
            await kernel.plane.unregister(10)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await kernel.plane.open_driver("fault:sync")  # commands are handled in order: unregister was, too
            assert not done.is_set()
            assert not kernel.has_reply(write)
            release()

    kernel.command(unregister)
    assert kernel.reply(write)[0] == 0
    with pytest.raises(OSError) as caught:
        kernel.write(0, b"x")
    assert caught.value.errno == errno.EBADF


def test_a_resize_waits_for_all_before_it_and_holds_back_all_after_it(
    kernel: FakeKernel, image: Path
) -> None:
    """TRUNCATE is a barrier: no WRITE in flight can land behind the new end."""
    kernel.register(image)
    size = image.stat().st_size
    hold()
    write = kernel.send_write(size - 4096, b"x" * 4096)
    kernel.wait_for_submits(1)  # commands come another way, and could overtake it

    async def resize() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.plane.truncate, 10, 5000)
            await trio.testing.wait_all_tasks_blocked()
            release()

    kernel.command(resize)
    assert kernel.reply(write)[0] == 0
    assert image.stat().st_size == 5000
    assert [op for op, _, _ in submitted()] == ["write", "truncate"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"block_size": 3, "direct": True}, errno.EINVAL),
        ({"block_size": 8192, "direct": True}, errno.EINVAL),
        ({"block_size": 512}, errno.EINVAL),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    kernel: FakeKernel, image: Path, fields: dict[str, int], error: int
) -> None:
    """Block sizes are powers of two up to 4096, and 1 for buffered images."""
    with pytest.raises(OSError) as caught:
        kernel.register(image, **fields)
    assert caught.value.errno == error


def test_a_node_is_registered_once(kernel: FakeKernel, image: Path) -> None:
    """A second registration of a node is EEXIST; after unregister it works again."""
    kernel.register(image)
    with pytest.raises(OSError) as caught:
        kernel.register(image)
    assert caught.value.errno == errno.EEXIST
    kernel.unregister()
    kernel.register(image)


def test_as_many_images_as_configured_can_be_registered(kernel: FakeKernel, image: Path) -> None:
    """64 images are found by their nodes, whatever order they come and go in; the 65th is ENFILE."""
    for node in range(100, 164):
        kernel.register(image, node=node)
    with pytest.raises(OSError) as caught:
        kernel.register(image, node=1)
    assert caught.value.errno == errno.ENFILE
    for node in range(100, 164, 3):
        kernel.unregister(node)
    for node in range(100, 164):
        if (node - 100) % 3:
            assert kernel.read(0, 4, node=node) == image.read_bytes()[:4]


def test_more_long_requests_than_ever_wait_for_no_answer(kernel: FakeKernel, image: Path) -> None:
    """A device that answers nothing keeps what it has been given; memory for others comes all the same."""
    kernel.register(image)
    hold()
    large = [kernel.send_read(0, 1 << 15) for _ in range(kernel.queue_depth)]
    kernel.wait_for_submits(len(large))
    release()
    for unique in large:
        assert kernel.reply(unique) == (0, image.read_bytes()[: 1 << 15])
