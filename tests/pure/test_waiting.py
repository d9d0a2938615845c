"""waiting.c: whether the loop sleeps or looks for work. In simulated time, with callers of known pace."""

from __future__ import annotations

import pytest

from aiofs.dataplane.binding import ffi, lib

US = 1000
S = 10**9
LIMIT = 100 * US
FAST, SLOW = 40 * US, 70 * US


class Caller:
    """One that waits for each answer, from time 0 on; `share` is of the last stretch."""

    def __init__(self, *, by_kernel: bool) -> None:
        self._by_kernel = by_kernel
        self._now = 0
        self._before = (0, 0)
        self.share = 0.0
        """Of the waits that looked."""

    def calls(self, seconds: float, *, asleep: int, looking: int) -> None:
        """For so long, at these times a request (ns) in the two manners."""
        looks = ffi.new("uint64_t *")
        self._now += int(seconds * S)
        requests = lib.aiofs_waiting_run(self._now, asleep, looking, int(self._by_kernel), looks)
        self.share = (looks[0] - self._before[1]) / max(1, requests - self._before[0])
        self._before = (requests, looks[0])

    def becomes(self, *, by_kernel: bool) -> None:
        """Somebody else asks from now on."""
        self._by_kernel = by_kernel


@pytest.fixture(params=[False, True], ids=["process", "kernel thread"])
def caller(request: pytest.FixtureRequest) -> Caller:
    """Each kind of caller, before a loop that has slept."""
    lib.aiofs_waiting_reset(LIMIT)
    return Caller(by_kernel=request.param)


def is_kernel(request: pytest.FixtureRequest) -> bool:
    """The kind of this test's caller."""
    return bool(request.node.callspec.params["caller"])


def paces(*, look: bool) -> dict[str, int]:
    """Times a request when looking is the faster one, or the slower one."""
    return {"asleep": SLOW, "looking": FAST} if look else {"asleep": FAST, "looking": SLOW}


def test_the_first_choice_goes_by_who_asks(caller: Caller, request: pytest.FixtureRequest) -> None:
    """A process: asleep; a thread of the kernel: looking. At once, whatever is faster."""
    caller.calls(0.01, asleep=FAST, looking=FAST)  # the moving average comes down
    caller.calls(0.08, asleep=FAST, looking=FAST)
    assert caller.share == is_kernel(request)
    assert lib.aiofs_waiting_trials() == 0


def test_the_faster_one_is_found_and_kept(caller: Caller, request: pytest.FixtureRequest) -> None:
    """The first choice is wrong here: one trial, and 95 % of what follows is in the other manner."""
    better = not is_kernel(request)
    caller.calls(4.45, **paces(look=better))
    assert lib.aiofs_waiting_trials() == 1
    caller.calls(100, **paces(look=better))
    assert caller.share == pytest.approx(float(better), abs=0.05)


def test_a_right_choice_is_tried_ever_more_rarely(caller: Caller, request: pytest.FixtureRequest) -> None:
    """8 ms or 0.35 s of the other manner after 0.1 or 4 s, then 4 times as late: under 2 % of ten minutes."""
    right = is_kernel(request)
    caller.calls(600, **paces(look=right))
    assert caller.share == pytest.approx(float(right), abs=0.02)
    trials = lib.aiofs_waiting_trials()
    assert 8 <= trials <= 16
    caller.calls(600, **paces(look=right))
    assert lib.aiofs_waiting_trials() > trials


def test_a_gain_within_the_noise_changes_nothing(caller: Caller, request: pytest.FixtureRequest) -> None:
    """The other manner is 5 % faster."""
    right = is_kernel(request)
    one, other = 40 * US, 38 * US
    caller.calls(60, asleep=other if right else one, looking=one if right else other)
    assert lib.aiofs_waiting_trials() > 0
    assert caller.share == pytest.approx(float(right), abs=0.05)


def test_another_load_is_measured_anew(caller: Caller, request: pytest.FixtureRequest) -> None:
    """What was better becomes worse: changed back at the next trial."""
    right = is_kernel(request)
    caller.calls(30, **paces(look=not right))
    caller.calls(60, **paces(look=right))
    caller.calls(30, **paces(look=right))
    assert caller.share == pytest.approx(float(right), abs=0.1)


def test_another_caller_is_served_its_own_way(caller: Caller, request: pytest.FixtureRequest) -> None:
    """A loop device goes, a process comes, or the other way round: chosen anew within a window."""
    other = not is_kernel(request)
    caller.calls(2, asleep=FAST, looking=FAST)
    caller.becomes(by_kernel=other)
    caller.calls(0.11, asleep=FAST, looking=FAST)
    caller.calls(0.3, asleep=FAST, looking=FAST)
    assert caller.share == pytest.approx(float(other), abs=0.1)


@pytest.mark.parametrize("pause_at_s", [(0.103, 4.2), (0.106, 4.4), (0.107, 4.445)])
def test_a_pause_ends_a_trial(
    caller: Caller, request: pytest.FixtureRequest, pause_at_s: tuple[float, float]
) -> None:
    """In the middle of the trial's settling, of its window, just before its end: the choice is as it was."""
    right = is_kernel(request)
    caller.calls(pause_at_s[right], **paces(look=right))
    assert caller.share != right, "the trial has begun"
    caller.calls(0.1, asleep=10_000 * US, looking=10_000 * US)
    caller.calls(0.01, **paces(look=right))
    caller.calls(0.08, **paces(look=right))
    assert caller.share == right


@pytest.mark.parametrize("between", [100 * US, 10_000 * US])
def test_a_mount_with_time_to_sleep_never_looks(caller: Caller, between: int) -> None:
    """Sleeps are as long as a look would be, or longer: no look, no trial."""
    caller.calls(60, asleep=between, looking=between)
    assert caller.share == 0
    assert lib.aiofs_waiting_trials() == 0


def test_no_look_where_it_is_switched_off(caller: Caller) -> None:
    """A limit of 0, as in most tests of the data plane."""
    lib.aiofs_waiting_reset(0)
    caller.calls(10, asleep=FAST, looking=FAST)
    assert caller.share == 0
    assert lib.aiofs_waiting_trials() == 0
