"""A request that comes alone is started and slept on in one call: whoever comes then is served all the same.

The images are pipes: what is read from one waits until the test writes to it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import LOOKUP, PATIENCE_S, FakeKernel, answer, at_control_plane

from aiofs.dataplane import drivers

K = 4096
SLOW = 20
"""The node of an image that answers when it is told to."""

IO_URING_ENTER = "426"
EPOLL_WAIT = {"x86_64": "232", "aarch64": "22"}.get(os.uname().machine, "")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[int]:
    """What is written here is what SLOW reads."""
    [status] = [status for status in drivers() if status.name == "io_uring"]
    if not status.works:
        pytest.skip(status.reason)
    path = tmp_path / "slow.img"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.write(fd, b"-" * 100)  # a test that failed may have left somebody waiting
    os.close(fd)


@pytest.fixture
def served(kernel: FakeKernel, image: Path, pipe: int) -> FakeKernel:
    """Both images are registered."""
    kernel.register(image, driver="io_uring")
    kernel.register(Path(f"/proc/self/fd/{pipe}"), node=SLOW, driver="io_uring")
    return kernel


@pytest.fixture
def waiting(served: FakeKernel, pipe: int) -> int:
    """The unique of a READ that is in work, and the loop asleep in the call that submitted it."""
    return one_waits(served, pipe)


def one_waits(kernel: FakeKernel, pipe: int) -> int:
    """Some that come one by one, and are answered; then one that hangs: its unique.

    Tried again when the loop sleeps elsewhere: a socket says that it can be read when its message has been
    read already, and then the call returns too early. /dev/fuse does not.
    """
    for _ in range(20):
        for _ in range(5):
            kernel.read(0, K)
        unique = kernel.send_read(0, 1, node=SLOW)
        if sleeps_in(kernel) == IO_URING_ENTER:
            return unique
        os.write(pipe, b"-")
        kernel.reply(unique)
    raise AssertionError("the loop never slept in the call that submitted it")


def sleeps_in(kernel: FakeKernel) -> str:
    """The system call that the loop sleeps in with one request in work."""
    deadline = time.monotonic() + PATIENCE_S
    while kernel.plane.counters()["in_flight"] != 1 or system_call() not in (IO_URING_ENTER, EPOLL_WAIT):
        assert time.monotonic() < deadline, f"the loop is in system call {system_call()}"
    return system_call()


def system_call() -> str:
    """The number of the call that the loop sleeps in; "running" when it does not sleep."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "aiofs-loop\n":
            return (task / "syscall").read_text().split()[0]
    raise AssertionError("there is no loop")


def let_it_go(kernel: FakeKernel, unique: int, pipe: int) -> None:
    assert not kernel.has_reply(unique)
    os.write(pipe, b"x")
    assert kernel.reply(unique) == (0, b"x")


def test_requests_of_other_images_do_not_wait_for_it(
    served: FakeKernel, waiting: int, pipe: int, image: Path
) -> None:
    """Many, and several at once, while it hangs."""
    kernel = served
    for i in range(100):
        assert kernel.read(i % 8 * 100, 100) == image.read_bytes()[i % 8 * 100 :][:100]
    assert kernel.write(0, b"hello") == 5
    kernel.fsync()
    for other in [kernel.send_read(i * K, K) for i in range(4)]:
        assert kernel.reply(other)[0] == 0
    let_it_go(kernel, waiting, pipe)


def test_the_control_plane_does_not_wait_for_it(served: FakeKernel, waiting: int, pipe: int) -> None:
    """A message goes up, its answer comes back."""
    kernel = served
    for _ in range(50):
        lookup = kernel.send(LOOKUP, b"disk.img\0", node=1)
        assert at_control_plane(kernel).endswith(b"disk.img\0")
        answer(kernel, lookup, b"entry")
        assert kernel.reply(lookup) == (0, b"entry")
    let_it_go(kernel, waiting, pipe)


def test_commands_do_not_wait_for_it(served: FakeKernel, waiting: int, pipe: int, image: Path) -> None:
    """Images come and go."""
    kernel = served
    for node in range(30, 50):
        kernel.register(image, node=node, driver="io_uring")
        assert kernel.read(0, K, node=node) == image.read_bytes()[:K]
        kernel.unregister(node)
    let_it_go(kernel, waiting, pipe)


def test_it_is_woken_by_each_of_them(served: FakeKernel, image: Path, pipe: int) -> None:
    """100 times: asleep on one that hangs, and then one thing happens."""
    for round_ in range(100):
        unique = one_waits(served, pipe)
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
        let_it_go(served, unique, pipe)


def test_a_stop_is_seen(served: FakeKernel, waiting: int, pipe: int) -> None:
    """No new requests are taken from then on, and the loop ends with the one in work."""
    served.plane.stop()
    deadline = time.monotonic() + PATIENCE_S
    while system_call() == IO_URING_ENTER:
        assert time.monotonic() < deadline, "the loop sleeps on"
        time.sleep(0.001)
    served.send_read(0, K)
    os.write(pipe, b"x")
    assert served.reply(waiting) == (0, b"x")
    assert_ends(served)


def test_the_end_of_the_mount_is_seen(served: FakeKernel, waiting: int, pipe: int) -> None:
    """The kernel goes away while the loop sleeps on a request: it ends when that is done."""
    assert not served.has_reply(waiting)
    served.fuse.shutdown(2)
    os.write(pipe, b"x")
    assert_ends(served)


def assert_ends(kernel: FakeKernel) -> None:
    thread = threading.Thread(target=kernel.plane.join, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the loop goes on"
