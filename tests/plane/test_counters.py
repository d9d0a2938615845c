"""What the data plane counts of an image: latencies, batches, and that counters outlive a registration."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fakekernel import FakeKernel, fault, hold, release

from aiofs.dataplane import OPERATIONS, ImageCounters

K = 4096


def answered(kernel: FakeKernel, node: int = 10) -> dict[str, int]:
    """Requests whose latency was counted, by operation; without those of none."""
    latency = kernel.counters(node)["latency"]
    numbers = {operation: sum(latency[operation]["buckets"].values()) for operation in OPERATIONS}
    return {operation: number for operation, number in numbers.items() if number}


def test_each_answered_request_is_counted_once(kernel: FakeKernel, image: Path) -> None:
    """With its latency, under its own operation."""
    kernel.register(image)
    for _ in range(3):
        kernel.read(0, K)
    for _ in range(2):
        kernel.write(0, b"x" * K)
    kernel.fsync()
    kernel.fallocate(0, 0, K)
    kernel.lseek(0, os.SEEK_DATA)
    assert answered(kernel) == {"read": 3, "write": 2, "fsync": 1, "fallocate": 1, "lseek": 1}


def test_a_latency_covers_the_time_in_which_the_io_was_held(kernel: FakeKernel, image: Path) -> None:
    """Not less than the plane had the request, and not more than its sender waited."""
    kernel.register(image)
    hold()
    sent = time.monotonic_ns()
    read = kernel.send_read(0, K)
    kernel.settle()
    seen = time.monotonic_ns()
    for _ in range(50):
        kernel.settle()
    let_go = time.monotonic_ns()
    release()
    kernel.reply(read)
    latency = kernel.counters()["latency"]["read"]
    assert let_go - seen <= latency["sum_ns"] <= time.monotonic_ns() - sent
    [limit] = latency["buckets"]
    assert latency["sum_ns"] <= float(limit) <= max(1000, latency["sum_ns"] * 1.25)


def test_a_request_that_waits_for_another_one_counts_the_wait(kernel: FakeKernel, image: Path) -> None:
    """An overlapping WRITE is not answered sooner than the one before it."""
    kernel.register(image)
    hold()
    first = kernel.send_write(0, b"a" * K)
    kernel.settle()
    second = kernel.send_write(0, b"b" * K)
    kernel.settle()
    seen = time.monotonic_ns()
    kernel.settle()
    let_go = time.monotonic_ns()
    release()
    assert [kernel.reply(unique)[0] for unique in (first, second)] == [0, 0]
    assert answered(kernel)["write"] == 2
    assert kernel.counters()["latency"]["write"]["sum_ns"] >= 2 * (let_go - seen)


def test_every_request_of_a_merged_io_counts(kernel: FakeKernel, image: Path) -> None:
    """Four READs in one io are four latencies."""
    kernel.register(image)
    kernel.together(lambda: [kernel.send_read(i * K, K) for i in range(4)])
    counted = kernel.counters()
    assert answered(kernel)["read"] == counted["requests_read"] == 32 + 4
    assert (counted["ios_read"], counted["merged"]) == (32 + 1, 3)


def test_requests_that_fail_count_as_well(kernel: FakeKernel, image: Path) -> None:
    """An answer is an answer."""
    kernel.register(image)
    fault("read", -errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        kernel.read(0, K)
    assert answered(kernel)["read"] == kernel.counters()["errors"] == 1


def test_answers_without_io_count_as_well(kernel: FakeKernel, image: Path) -> None:
    """A READ of nothing, an fsync that is ignored, one that is known to fail."""
    kernel.register(image, no_fsync=True)
    kernel.register(image, node=11, sticky_error=errno.EIO)
    kernel.read(0, 0)
    kernel.fsync()
    with pytest.raises(OSError, match="Input/output error"):
        kernel.fsync(node=11)
    assert answered(kernel) == {"read": 1, "fsync": 1}
    assert answered(kernel, 11)["fsync"] == kernel.counters(11)["errors"] == 1


def test_a_resize_has_no_latency(kernel: FakeKernel, image: Path) -> None:
    """It is no request of the kernel to the data plane."""
    kernel.register(image)
    kernel.command(lambda: kernel.plane.truncate(10, K))
    assert kernel.counters()["requests_truncate"] == 1
    assert answered(kernel) == {}


def test_a_batch_counts_for_each_image_in_it(kernel: FakeKernel, image: Path) -> None:
    """Two ios of one image and one of another in one submit: one batch for both."""
    other = image.with_name("other.img")
    other.write_bytes(image.read_bytes())
    kernel.register(image)
    kernel.register(other, node=11)
    plane: dict[str, int] = {}

    def send() -> list[int]:
        # The answer to a command comes after the turn of the loop that submitted the last filler.
        kernel.command(lambda: kernel.plane.open_driver("fault:sync"))
        plane.update(kernel.plane.counters())
        return [kernel.send_read(0, K), kernel.send_read(8 * K, K), kernel.send_read(0, K, node=11)]

    kernel.together(send)
    now = kernel.plane.counters()
    assert (now["batches"] - plane["batches"], now["ios"] - plane["ios"]) == (1, 3)
    assert kernel.counters(11)["batches"] == 1
    mine = kernel.counters()
    assert mine["batches"] == now["batches"]
    assert mine["ios_read"] == now["ios"] - 1


def test_the_batches_hold_all_ios(kernel: FakeKernel, image: Path) -> None:
    """The number of ios fits the sizes of the batches that they were in."""
    kernel.register(image)
    kernel.together(lambda: [kernel.send_read(i * 2 * K, K) for i in range(20)])
    counted = kernel.plane.counters()
    sizes = counted["batch_ios"]
    assert sum(sizes) == counted["batches"]
    assert sum(number << power for power, number in enumerate(sizes)) <= counted["ios"]
    assert counted["ios"] <= sum(number * ((2 << power) - 1) for power, number in enumerate(sizes))


def test_counters_go_on_when_an_image_is_registered_again(kernel: FakeKernel, image: Path) -> None:
    """They are the control plane's memory; another image in the same slot has its own, from zero."""
    counters = ImageCounters()
    slot = kernel.register(image, counters=counters)
    kernel.read(0, K)
    kernel.unregister()
    assert kernel.register(image, node=11) == slot
    assert kernel.counters(11)["requests_read"] == 0
    kernel.register(image, node=10, counters=counters)
    kernel.read(0, K)
    kernel.settle()  # a request is answered before it counts as done
    read = counters.read()
    assert (read["requests_read"], read["bytes_read"], read["in_flight"]) == (2, 2 * K, 0)


def test_an_image_that_is_registered_already_keeps_its_counters(kernel: FakeKernel, image: Path) -> None:
    """The refused registration changes nothing."""
    counters = ImageCounters()
    kernel.register(image, counters=counters)
    with pytest.raises(OSError, match="File exists"):
        kernel.register(image)
    kernel.read(0, K)
    assert counters.read()["requests_read"] == 1


@pytest.mark.parametrize(
    "request_of", [FakeKernel.fsync, partial(FakeKernel.fallocate, mode=0, offset=0, length=1)]
)
def test_counters_without_requests_are_unused(
    kernel: FakeKernel, image: Path, request_of: Callable[[FakeKernel], None]
) -> None:
    """Until the first request, whatever it is."""
    counters = ImageCounters()
    kernel.register(image, counters=counters)
    assert counters.unused
    request_of(kernel)
    assert not counters.unused
