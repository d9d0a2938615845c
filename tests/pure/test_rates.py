"""rates.py: what a mount did between two readings of its info.json."""

from __future__ import annotations

from typing import Any

import pytest

from aiofs.dataplane import LATENCY_LIMITS_NS, ImageCounters
from aiofs.rates import between, same_server

PLANE = {"requests": 0, "forwarded": 0, "batches": 0, "ios": 0, "sleeps": 0, "looks": 0, "in_flight": 0}


def reading(clock_s: float, *images: dict[str, Any], closed: Any = (), **plane: int) -> dict[str, Any]:
    """What `rates` reads of info.json."""
    return {
        "pid": 7,
        "start_ticks": 70,
        "restarts": 0,
        "clock_s": clock_s,
        "plane": {**PLANE, **plane},
        "latency_limits_ns": LATENCY_LIMITS_NS,
        "images": images,
        "closed": closed,
    }


def image(node: int = 10, path: str = "a.img", **counters: Any) -> dict[str, Any]:
    """One image that did nothing but this."""
    return {"node": node, "path": path, "counters": {**ImageCounters().read(), **counters}}


def latency(**operations: dict[str, int]) -> dict[str, Any]:
    """Requests by the limit of their bucket; each took just so long."""
    nothing: dict[str, dict[str, int]] = {"read": {}, "write": {}, "fsync": {}}
    return {
        operation: {
            "sum_ns": sum(int(limit) * number for limit, number in buckets.items()),
            "buckets": buckets,
        }
        for operation, buckets in {**nothing, **operations}.items()
    }


def test_rates_are_differences_by_the_servers_clock() -> None:
    """Two seconds, 300 requests in them."""
    before = reading(5.0, image(requests_read=1000, bytes_read=1 << 20), requests=2000)
    after = reading(
        7.0, image(requests_read=1200, requests_write=99, requests_fsync=1, bytes_read=3 << 20), requests=2400
    )
    rates = between(before, after)
    assert (rates.interval_s, rates.requests_s) == (2.0, 200.0)
    [mine] = rates.images
    assert (mine.requests_s, mine.bytes_s) == (150.0, 1 << 20)
    assert mine.read_share == pytest.approx(200 / 299)


def test_the_depth_is_the_time_of_all_requests_by_the_interval() -> None:
    """Little's law: 1,000 requests of 4 ms in one second are 4 at a time."""
    after = reading(1.0, image(requests_read=1000, latency=latency(read={"4000000": 1000})))
    [mine] = between(reading(0.0, image()), after).images
    assert mine.depth == pytest.approx(4.0)


def test_batches_and_merging_are_averages_of_the_interval() -> None:
    """12 ios in 4 batches; 3 of 12 requests joined another one's io."""
    before = image(ios_read=100, batches=100)
    after = image(ios_read=109, ios_write=3, batches=104, requests_read=12, merged=3)
    [mine] = between(reading(0.0, before), reading(1.0, after)).images
    assert (mine.batch, mine.merged_share) == (3.0, 0.25)


def test_percentiles_are_of_the_reads_and_writes_in_the_interval() -> None:
    """What was slow before the interval, and a slow fsync, are not in them."""
    before = image(requests_read=50, latency=latency(read={"67108864000": 50}))
    now = latency(read={"67108864000": 50, "8000": 90}, write={"16000": 10}, fsync={"1000000000": 5})
    after = image(requests_read=140, requests_write=10, requests_fsync=5, latency=now)
    [mine] = between(reading(0.0, before), reading(1.0, after)).images
    assert mine.p50_ns is not None
    assert mine.p99_ns is not None
    assert 7000 < mine.p50_ns <= 8000
    assert 14000 < mine.p99_ns <= 16000


def test_an_idle_image_has_no_shares_and_no_latency() -> None:
    """Not 0, which would be a measurement."""
    [mine] = between(reading(0.0, image(requests_read=5)), reading(1.0, image(requests_read=5))).images
    assert (mine.requests_s, mine.depth) == (0, 0)
    assert (mine.read_share, mine.batch, mine.merged_share, mine.p50_ns, mine.p99_ns) == (None,) * 5


def test_an_image_that_was_closed_again_is_shown_if_it_did_something() -> None:
    """An open of 100 ms is in the interval that it was in, and not in the next."""
    done = image(requests_read=10)
    assert [i.requests_s for i in between(reading(0.0), reading(1.0, closed=[done])).images] == [10]
    assert between(reading(1.0, closed=[done]), reading(2.0, closed=[done])).images == []


def test_an_image_opened_again_goes_on_from_its_close() -> None:
    """Its counters of earlier opens are not of the interval."""
    [mine] = between(
        reading(0.0, closed=[image(requests_read=10)]), reading(1.0, image(requests_read=15))
    ).images
    assert mine.requests_s == 5


def test_a_renamed_image_is_the_same_one() -> None:
    """It is known by its inode number."""
    before = reading(0.0, image(path="old.img", requests_read=1000))
    [mine] = between(before, reading(1.0, image(path="new.img", requests_read=1001))).images
    assert (mine.path, mine.requests_s) == ("new.img", 1)


def test_another_file_with_the_inode_number_begins_at_zero() -> None:
    """No rate is negative."""
    [mine] = between(reading(0.0, image(requests_read=1000)), reading(1.0, image(requests_read=3))).images
    assert mine.requests_s == 3


@pytest.mark.parametrize(("counters", "failing"), [({}, False), ({"errors": 1}, True)])
def test_an_image_with_new_errors_is_failing(counters: dict[str, Any], failing: bool) -> None:
    """In the interval."""
    [mine] = between(reading(0.0, image()), reading(1.0, image(**counters))).images
    assert mine.failing == failing


def test_an_image_whose_fsync_failed_is_failing_from_then_on() -> None:
    """Every later fsync fails too."""
    lost = image(sticky_error=-5, errors=1)
    assert [mine.failing for mine in between(reading(0.0, lost), reading(1.0, lost)).images] == [True]


def test_another_server_is_noticed() -> None:
    """By pid and start."""
    assert same_server(reading(0.0), reading(1.0))
    assert not same_server(reading(0.0), {**reading(1.0), "start_ticks": 71})
    assert not same_server(reading(0.0), {**reading(1.0), "restarts": 1})
