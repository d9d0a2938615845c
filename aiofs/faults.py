"""`--aio fault:DRIVER,...`: what is to go wrong on purpose, from words to a plan. Pure; dataplane/faults.py
sets it up.

A fault word (`error=`, `short`, `delay=`, `stall=`) begins a fault; the words after it say which operations
it strikes, up to the next fault word. `reorder` and `seed=` are about all of them.
"""

from __future__ import annotations

import enum
import errno
import math
import re
from dataclasses import dataclass, replace

from .errors import BadInput

PREFIX = "fault:"
"""What a driver's name begins with when faults are put before it."""
OPERATIONS = ("read", "write", "fsync", "truncate", "fallocate", "lseek")
"""What a fault may strike, in the order of io.h's io_op."""
MAX_FAULTS = 64
MAX_TIME_NS = 24 * 3600 * 10**9
MAX_BYTES = (1 << 63) - 1
MAX_NUMBER = (1 << 64) - 1


class Kind(enum.IntEnum):
    """What happens to an operation that is struck; the values are those of api.h."""

    ERROR = 0
    """It is not done, and its result is the errno `value`."""
    SHORT = 1
    """A read or write does no more than `value` bytes; HALF of what was asked for."""
    DELAY = 2
    """It starts `value` ns later."""
    STALL = 3
    """From it on nothing starts, for `value` ns."""


HALF = -1


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and when."""

    kind: Kind
    value: int
    operations: tuple[str, ...] = OPERATIONS
    start: int = 0
    end: int = MAX_BYTES
    """Reads, writes and fallocates only when they touch bytes from `start` up to, not including, `end`."""
    first: int = 1
    last: int = MAX_NUMBER
    """Of the operations that it may strike, counted from 1."""
    probability: float = 1.0
    spares_threads: bool = False
    """Not what the data plane itself gives to `threads`. For tests; there is no word for it."""
    text: str = ""
    """Its words."""


@dataclass(frozen=True)
class Plan:
    """All that is to go wrong."""

    faults: tuple[Fault, ...] = ()
    reorder: bool = False
    """What is started or finishes together does so in any order."""
    seed: int = 1
    """Of probabilities and of the order."""


def is_faulty(word: str) -> bool:
    """Is it `fault:...` (or `fault`, which `parse` refuses)?"""
    return word.partition(":")[0] == "fault"


def parse(word: str) -> tuple[str, Plan]:
    """The driver's name, unchecked, and the plan, of `fault:DRIVER,option,...`. BadInput names what is wrong.

    A colon does for a comma: in the options of mount(8) and fstab commas separate other things.
    """
    driver, *options = re.split("[,:]", word.removeprefix("fault").removeprefix(":"))
    if not driver:
        raise BadInput(f"AIO driver '{word}' names no driver to put faults before; use {PREFIX}DRIVER,...")
    plan = Plan()
    for option in options:
        plan = _with(plan, option)
    if len(plan.faults) > MAX_FAULTS:
        raise BadInput(f"{len(plan.faults)} faults are too many; at most {MAX_FAULTS}")
    return driver, plan


_BEGINNINGS = ("error", "short", "delay", "stall")
_REFINEMENTS = ("on", "op", "probability", "from", "to")
WORDS = (
    "error=",
    "short",
    "short=",
    "delay=",
    "stall=",
    *(f"{word}=" for word in _REFINEMENTS),
    "reorder",
    "seed=",
)
"""What may stand in it."""


def _with(plan: Plan, option: str) -> Plan:
    """The plan with one word more."""
    name, equals, value = option.partition("=")
    if name in _BEGINNINGS:
        return replace(plan, faults=(*plan.faults, _begin(option, name, value, bool(equals))))
    if name in _REFINEMENTS:
        if not plan.faults:
            raise _wrong(option, f"says when a fault strikes; put one of {' '.join(_BEGINNINGS)} before it")
        *others, last = plan.faults
        refined = replace(_refined(last, option, name, value), text=f"{last.text},{option}")
        return replace(plan, faults=(*others, refined))
    if name == "seed":
        return replace(plan, seed=_number(option, value))
    if option == "reorder":
        return replace(plan, reorder=True)
    raise _wrong(option, f"is not known; valid: {' '.join(WORDS)}")


def _begin(option: str, name: str, value: str, has_value: bool) -> Fault:
    match name:
        case "error":
            return Fault(Kind.ERROR, _errno(option, value), text=option)
        case "short":
            return Fault(
                Kind.SHORT, _bytes(option, value) if has_value else HALF, ("read", "write"), text=option
            )
        case "delay":
            return Fault(Kind.DELAY, _time_ns(option, value), text=option)
    return Fault(Kind.STALL, _time_ns(option, value), text=option)


def _refined(fault: Fault, option: str, name: str, value: str) -> Fault:
    match name:
        case "on":
            return replace(fault, operations=_operations(option, value, fault))
        case "op":
            first, last = _numbers(option, value)
            return replace(fault, first=first, last=last)
        case "probability":
            return replace(fault, probability=_probability(option, value))
        case "from":
            fault = replace(fault, start=_bytes(option, value))
        case "to":
            fault = replace(fault, end=_bytes(option, value))
    if fault.start >= fault.end:
        raise _wrong(option, f"leaves no bytes: from={fault.start} to={fault.end}")
    return fault


def _operations(option: str, value: str, fault: Fault) -> tuple[str, ...]:
    valid = ("read", "write") if fault.kind is Kind.SHORT else OPERATIONS
    operations = value.split("+")
    for operation in operations:
        if operation not in valid:
            raise _wrong(option, f"names '{operation}'; valid, joined by +: {' '.join(valid)}")
    return tuple(operations)


def _numbers(option: str, value: str) -> tuple[int, int]:
    """`7`, `7-`, `7-9`."""
    found = re.fullmatch(r"([0-9]{1,18})(?:(-)([0-9]{1,18})?)?", value)
    if not found:
        raise _wrong(option, "is not the number of an operation; use N, N- (from N on) or N-M")
    first = int(found[1])
    last = int(found[3]) if found[3] else MAX_NUMBER if found[2] else first
    if not 1 <= first <= last:
        raise _wrong(option, "strikes nothing; operations are counted from 1")
    return first, last


def _probability(option: str, value: str) -> float:
    try:
        probability = float(value)
    except ValueError:
        probability = math.nan
    if not 0 <= probability <= 1:
        raise _wrong(option, "is not a probability; use 0 to 1")
    return probability


def _errno(option: str, value: str) -> int:
    number = getattr(errno, value, 0) if re.fullmatch("E[A-Z0-9]+", value) else 0
    if not number:
        raise _wrong(
            option, "is not the name of an errno; use EIO, ENOSPC, EAGAIN, EINTR or another of errno(3)"
        )
    return int(number)


def _bytes(option: str, value: str) -> int:
    found = re.fullmatch("([0-9]{1,18})([KMGT]?)", value)
    amount = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]] if found else -1
    if not 0 <= amount <= MAX_BYTES:
        raise _wrong(option, "is not a number of bytes; use 4096, 4K, 1M, 2G")
    return amount


def _time_ns(option: str, value: str) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s)", value)
    time_ns = float(found[1]) * {"us": 1e3, "ms": 1e6, "s": 1e9}[found[2]] if found else -1
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise _wrong(option, "is not a time; use 500us, 2ms, 1.5s, up to 86400s")
    return round(time_ns)


def _number(option: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", value):
        raise _wrong(option, "is not a number; use 0 or more, at most 18 digits")
    return int(value)


def _wrong(option: str, why: str) -> BadInput:
    return BadInput(f"--aio {PREFIX}...: option '{option}' {why}")
