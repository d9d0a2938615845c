"""A request that comes alone is done in a call that sleeps: whoever comes then is served all the same."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fakekernel import LOOKUP, PATIENCE_S, FakeKernel, answer, at_control_plane
from lone import IO_URING_ENTER, Lone, system_call

K = 4096


@pytest.fixture
def served(kernel: FakeKernel, image: Path, lone: Lone) -> FakeKernel:
    """Another image is registered beside the one that hangs."""
    kernel.register(image, driver="io_uring")
    assert lone.kernel is kernel
    return kernel


@pytest.fixture
def waiting(served: FakeKernel, lone: Lone) -> int:  # noqa: ARG001 -- it registers
    """The unique of a request that hangs."""
    return lone.hang()


def test_requests_of_other_images_do_not_wait_for_it(
    served: FakeKernel, waiting: int, lone: Lone, image: Path
) -> None:
    """Many, and several at once, while it hangs."""
    kernel = served
    for i in range(100):
        assert kernel.read(i % 8 * 100, 100) == image.read_bytes()[i % 8 * 100 :][:100]
    assert kernel.write(0, b"hello") == 5
    kernel.fsync()
    for other in [kernel.send_read(i * K, K) for i in range(4)]:
        assert kernel.reply(other)[0] == 0
    lone.let_go(waiting)


def test_the_control_plane_does_not_wait_for_it(served: FakeKernel, waiting: int, lone: Lone) -> None:
    """A message goes up, its answer comes back."""
    kernel = served
    for _ in range(50):
        lookup = kernel.send(LOOKUP, b"disk.img\0", node=1)
        assert at_control_plane(kernel).endswith(b"disk.img\0")
        answer(kernel, lookup, b"entry")
        assert kernel.reply(lookup) == (0, b"entry")
    lone.let_go(waiting)


def test_commands_do_not_wait_for_it(served: FakeKernel, waiting: int, lone: Lone, image: Path) -> None:
    """Images come and go."""
    kernel = served
    for node in range(30, 50):
        kernel.register(image, node=node, driver="io_uring")
        assert kernel.read(0, K, node=node) == image.read_bytes()[:K]
        kernel.unregister(node)
    lone.let_go(waiting)


def test_it_is_woken_by_each_of_them(served: FakeKernel, image: Path, lone: Lone) -> None:
    """100 times: asleep on one that hangs, and then one thing happens."""
    for round_ in range(100):
        unique = lone.hang()
        if round_ % 4 == 0:
            assert served.read(0, K) == image.read_bytes()[:K]
        elif round_ % 4 == 1:
            served.register(image, node=30, driver="io_uring")
            served.unregister(30)
        elif round_ % 4 == 2:
            lookup = served.send(LOOKUP, b"disk.img\0", node=1)
            at_control_plane(served)
            answer(served, lookup, b"entry")
            assert served.reply(lookup) == (0, b"entry")
        lone.let_go(unique)


def test_a_stop_is_seen(served: FakeKernel, waiting: int, lone: Lone) -> None:
    """No new requests are taken from then on, and the loop ends with the one in work."""
    served.plane.stop()
    deadline = time.monotonic() + PATIENCE_S
    while system_call("aiofs-loop") == IO_URING_ENTER:
        assert time.monotonic() < deadline, "the loop sleeps on"
        time.sleep(0.001)
    served.send_read(0, K)
    lone.let_go(waiting)
    assert_ends(served)


def test_the_end_of_the_mount_is_seen(served: FakeKernel, waiting: int, lone: Lone) -> None:
    """The kernel goes away while the loop sleeps on a request: it ends when that is done."""
    assert not served.has_reply(waiting)
    served.fuse.shutdown(2)
    lone.release()
    assert_ends(served)


def assert_ends(kernel: FakeKernel) -> None:
    thread = threading.Thread(target=kernel.plane.join, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the loop goes on"
