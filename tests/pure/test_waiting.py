"""waiting.c: whether the loop sleeps or looks for work. In simulated time, with callers of known pace."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest

from aiofs.dataplane.binding import ffi, lib

US = 1000
S = 10**9
LIMIT = 100 * US
FAST, SLOW = 40 * US, 70 * US
KERNEL_THREAD, LIGHT, BUSY = -1, 30, 120
"""What it uses of a core, percent; -1: it is no process."""
KINDS = {"process": LIGHT, "busy process": BUSY, "kernel thread": KERNEL_THREAD}


class Caller:
    """One that waits for each answer, from time 0 on; `share` is of the last stretch."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self._now = 0
        self._before = (0, 0)
        self.share = 0.0
        """Of the waits that looked."""

    def calls(self, seconds: float, *, asleep: int, looking: int) -> None:
        """For so long, at these times a request (ns) in the two manners."""
        looks = ffi.new("uint64_t *")
        self._now += int(seconds * S)
        requests = lib.aiofs_waiting_run(self._now, asleep, looking, self.kind, looks)
        self.share = (looks[0] - self._before[1]) / max(1, requests - self._before[0])
        self._before = (requests, looks[0])

    def begins(self) -> None:
        """Until it is known, and nothing has been tried yet."""
        self.calls(0.01, asleep=FAST, looking=FAST)  # the moving average comes down
        if self.kind == BUSY:
            self.calls(0.1, asleep=FAST, looking=FAST)

    @property
    def keeps_core(self) -> bool:
        """So looking is the first choice."""
        return self.kind in (BUSY, KERNEL_THREAD)


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def caller(request: pytest.FixtureRequest) -> Caller:
    """Each kind of caller, before a loop that has slept."""
    lib.aiofs_waiting_reset(LIMIT, 1, 0)
    return Caller(request.param)


def paces(*, look: bool) -> dict[str, int]:
    """Times a request when looking is the faster one, or the slower one."""
    return {"asleep": SLOW, "looking": FAST} if look else {"asleep": FAST, "looking": SLOW}


def test_the_first_choice_goes_by_who_asks(caller: Caller) -> None:
    """A process: asleep; one that keeps a core busy or a kernel thread: looking. Whatever is faster."""
    caller.begins()
    caller.calls(0.08, asleep=FAST, looking=FAST)
    assert caller.share == caller.keeps_core
    assert lib.aiofs_waiting_trials() == 0


def test_the_faster_one_is_found_and_kept(caller: Caller) -> None:
    """The first choice is wrong here: one trial, and 95 % of what follows is in the other manner."""
    better = not caller.keeps_core
    caller.begins()
    caller.calls(4.44, **paces(look=better))
    assert lib.aiofs_waiting_trials() == 1
    caller.calls(100, **paces(look=better))
    assert caller.share == pytest.approx(float(better), abs=0.05)


def test_a_right_choice_is_tried_ever_more_rarely(caller: Caller) -> None:
    """8 ms or 0.35 s of the other manner after 0.1 or 4 s, then 4 times as late: under 2 % of ten minutes."""
    right = caller.keeps_core
    caller.calls(600, **paces(look=right))
    assert caller.share == pytest.approx(float(right), abs=0.02)
    trials = lib.aiofs_waiting_trials()
    assert 8 <= trials <= 16
    caller.calls(600, **paces(look=right))
    assert lib.aiofs_waiting_trials() > trials


def test_a_gain_within_the_noise_changes_nothing(caller: Caller) -> None:
    """The other manner is 5 % faster."""
    right = caller.keeps_core
    one, other = 40 * US, 38 * US
    caller.calls(60, asleep=other if right else one, looking=one if right else other)
    assert lib.aiofs_waiting_trials() > 0
    assert caller.share == pytest.approx(float(right), abs=0.05)


def test_another_load_is_measured_anew(caller: Caller) -> None:
    """What was better becomes worse: changed back at the next trial."""
    right = caller.keeps_core
    caller.calls(30, **paces(look=not right))
    caller.calls(60, **paces(look=right))
    caller.calls(30, **paces(look=right))
    assert caller.share == pytest.approx(float(right), abs=0.1)


@pytest.mark.parametrize("other", list(KINDS.values()), ids=list(KINDS))
def test_another_caller_is_served_its_own_way(caller: Caller, other: int) -> None:
    """A loop device goes, a process comes, or it begins to spin: chosen anew within a window, or two."""
    caller.calls(2, asleep=FAST, looking=FAST)
    caller.kind = other
    caller.calls(0.22, asleep=FAST, looking=FAST)
    caller.calls(0.3, asleep=FAST, looking=FAST)
    assert caller.share == pytest.approx(float(caller.keeps_core), abs=0.1)


def test_a_load_of_most_of_a_core_changes_nothing() -> None:
    """Neither does a process that uses 80 % count as busy, nor does it cease to be when it has been."""
    lib.aiofs_waiting_reset(LIMIT, 1, 0)
    caller = Caller(80)
    caller.calls(3, asleep=FAST, looking=FAST)
    assert caller.share < 0.05
    caller.kind = BUSY
    caller.calls(0.22, asleep=FAST, looking=FAST)
    caller.kind = 80
    caller.calls(3, asleep=FAST, looking=FAST)
    assert caller.share == 1


def test_what_a_process_has_used_is_known() -> None:
    """Of another one, and of oneself; not of nobody, of a thread, or of a process that has ended."""
    known = lib.aiofs_waiting_processor_ns
    before = time.process_time_ns()
    assert before <= known(os.getpid()) <= time.process_time_ns()
    assert known(1) > 0
    assert known(0) == 0
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert known(ended.pid) == 0
    thread = threading.Thread(target=lambda: used.append(known(threading.get_native_id())))
    used: list[int] = []
    thread.start()
    thread.join()
    assert used == [0]


@pytest.mark.parametrize("pause_at_s", [(0.093, 4.19), (0.096, 4.39), (0.097, 4.435)])
def test_a_pause_ends_a_trial(caller: Caller, pause_at_s: tuple[float, float]) -> None:
    """In the middle of the trial's settling, of its window, just before its end: the choice is as it was."""
    right = caller.keeps_core
    caller.begins()
    caller.calls(pause_at_s[right], **paces(look=right))
    assert caller.share != right, "the trial has begun"
    caller.calls(0.1, asleep=10_000 * US, looking=10_000 * US)
    caller.calls(0.01, **paces(look=right))
    caller.calls(0.08, **paces(look=right))
    assert caller.share == right


def test_who_works_a_moment_at_a_time_meets_no_trial_in_each(caller: Caller) -> None:
    """Rests do not bring the next trial nearer: only work in which it could have been tried does."""
    right = caller.keeps_core
    caller.begins()
    caller.calls(1, **paces(look=right))  # what is right has been found
    trials = lib.aiofs_waiting_trials()
    for _ in range(6):
        caller.calls(9, asleep=10_000 * US, looking=10_000 * US)
        caller.calls(0.01, **paces(look=right))
        caller.calls(0.39, **paces(look=right))
        assert caller.share == right
    assert lib.aiofs_waiting_trials() == trials


def lone_caller() -> Caller:
    """A process whose requests come one by one, and are done by the kernel."""
    lib.aiofs_waiting_reset(LIMIT, 1, 1)
    return Caller(LIGHT)


def test_who_asks_for_one_at_a_time_is_looked_for_first() -> None:
    """From the end of the first window on, which is where that is known; so in short streams, too."""
    caller = lone_caller()
    caller.calls(0.12, asleep=FAST, looking=FAST)
    caller.calls(3.9, asleep=FAST, looking=FAST)
    assert caller.share == 1
    assert lib.aiofs_waiting_trials() == 0


@pytest.mark.parametrize("looking, share", [(FAST * 3 // 4, 1), (FAST * 19 // 20, 0), (FAST, 0), (SLOW, 0)])
def test_looking_for_one_at_a_time_has_to_be_worth_its_cores(looking: int, share: int) -> None:
    """After 4 s of it sleeping is tried, and stays also where it is a little slower."""
    caller = lone_caller()
    caller.calls(4.8, asleep=FAST, looking=looking)
    assert lib.aiofs_waiting_trials() >= 1
    caller.calls(60, asleep=FAST, looking=looking)
    assert caller.share == pytest.approx(share, abs=0.05)


def test_a_trial_that_is_no_better_than_its_review_is_worth_it() -> None:
    """Looking was slow after the trial of sleeping, too: asleep."""
    caller = lone_caller()
    while lib.aiofs_waiting_trials() == 0:
        caller.calls(0.001, asleep=SLOW, looking=FAST)
    caller.calls(0.2, asleep=SLOW, looking=SLOW)
    assert caller.share == 1
    caller.calls(0.2, asleep=SLOW, looking=SLOW)
    caller.calls(60, asleep=SLOW, looking=SLOW)
    assert caller.share == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("between", [100 * US, 10_000 * US])
def test_a_mount_with_time_to_sleep_never_looks(caller: Caller, between: int) -> None:
    """Sleeps are as long as a look would be, or longer: no look, no trial."""
    caller.calls(60, asleep=between, looking=between)
    assert caller.share == 0
    assert lib.aiofs_waiting_trials() == 0


def test_two_long_waits_are_no_idle_mount() -> None:
    """A device that stutters is waited for as before."""
    lib.aiofs_waiting_reset(LIMIT, 1, 0)
    caller = Caller(KERNEL_THREAD)
    pace = LIMIT * 55 // 100
    caller.calls(1, asleep=pace, looking=pace)
    caller.calls(0.02, asleep=S // 100, looking=S // 100)
    caller.calls(1, asleep=pace, looking=pace)
    assert caller.share == 1


def test_no_look_where_it_is_switched_off(caller: Caller) -> None:
    """A limit of 0, as in most tests of the data plane."""
    lib.aiofs_waiting_reset(0, 1, 0)
    caller.calls(10, asleep=FAST, looking=FAST)
    assert caller.share == 0
    assert lib.aiofs_waiting_trials() == 0


def test_where_callers_only_are_waited_for_a_trial_of_looking_is_long() -> None:
    """Storage as fast as memory: looking gains once the caller runs elsewhere, which takes a while."""
    lib.aiofs_waiting_reset(LIMIT, 0, 0)
    caller = Caller(LIGHT)
    caller.begins()
    caller.calls(0.15, asleep=FAST, looking=FAST)
    assert 0 < caller.share < 1, "the trial has begun"
    caller.calls(0.1, asleep=FAST, looking=SLOW)
    caller.calls(0.3, asleep=FAST, looking=FAST // 2)
    assert lib.aiofs_waiting_trials() == 1
    caller.calls(3, asleep=FAST, looking=FAST // 2)
    assert caller.share == 1


LEVEL = 60 * US
UNDECIDED = 50 * US
"""Faster by a sixth: more than the noise, less than a short trial can promise."""


def in_an_undecided_trial() -> Caller:
    """One that is 60 us a request asleep, whose short trial of looking has found 50 and goes on."""
    lib.aiofs_waiting_reset(LIMIT, 1, 0)
    caller = Caller(LIGHT)
    caller.begins()
    caller.calls(0.115, asleep=LEVEL, looking=UNDECIDED)
    assert lib.aiofs_waiting_trials() == 0
    return caller


def test_a_gain_that_a_short_trial_leaves_open_is_tried_longer() -> None:
    """It is still there when the caller has gone: looking stays."""
    caller = in_an_undecided_trial()
    caller.calls(0.17, asleep=LEVEL, looking=UNDECIDED)
    assert lib.aiofs_waiting_trials() == 1
    assert caller.share == 1
    caller.calls(3, asleep=LEVEL, looking=UNDECIDED)
    assert caller.share == 1


def test_a_gain_that_goes_when_the_caller_does_is_none() -> None:
    """Looking is fast until the caller runs elsewhere, then level: asleep again after 0.15 s of it."""
    caller = in_an_undecided_trial()
    caller.calls(0.035, asleep=LEVEL, looking=UNDECIDED // 2)
    caller.calls(0.085, asleep=LEVEL, looking=LEVEL)
    assert lib.aiofs_waiting_trials() == 0
    assert caller.share == 1
    caller.calls(0.03, asleep=LEVEL, looking=LEVEL)
    assert lib.aiofs_waiting_trials() == 1
    caller.calls(3, asleep=LEVEL, looking=LEVEL)
    assert caller.share == 0


def slow_after_a_level_trial(caller: Caller) -> dict[str, int]:
    """Have it pass a trial that finds both level. Paces in which its first choice is slow from then on."""
    caller.begins()
    while lib.aiofs_waiting_trials() == 0:
        caller.calls(0.001, asleep=FAST, looking=FAST)
    return paces(look=not caller.keeps_core)


@pytest.mark.parametrize("on_device", [0, 1])
def test_a_trial_that_changed_what_it_returns_to_is_reviewed(caller: Caller, on_device: int) -> None:
    """Both were level; after the trial the first choice is slow for good, and the other one is taken."""
    lib.aiofs_waiting_reset(LIMIT, on_device, 0)
    right = caller.keeps_core
    slow = slow_after_a_level_trial(caller)
    caller.calls(0.2, **slow)
    assert caller.share == right
    caller.calls(0.2, **slow)
    caller.calls(2, **slow)
    assert caller.share == pytest.approx(float(not right), abs=0.3)


def test_a_pause_ends_a_review(caller: Caller) -> None:
    """Nothing is known then, so the choice is as it was, until the next trial."""
    right = caller.keeps_core
    slow = slow_after_a_level_trial(caller)
    caller.calls(0.3, **slow)
    caller.calls(0.1, asleep=10_000 * US, looking=10_000 * US)
    caller.calls(0.01, **slow)
    caller.calls(3, **slow)
    assert caller.share == right
    assert lib.aiofs_waiting_trials() == 1
