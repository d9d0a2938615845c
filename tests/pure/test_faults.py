"""faults.py: the words of --aio fault:DRIVER,... become a plan, or a sentence that names the wrong one."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from aiofs.config import make_config, parse_options
from aiofs.errors import BadInput
from aiofs.faults import HALF, MAX_BYTES, MAX_NUMBER, OPERATIONS, WORDS, Fault, Kind, Plan, parse


def only(words: str) -> Fault:
    """The one fault of these words."""
    _, plan = parse(f"fault:sync,{words}")
    [fault] = plan.faults
    return fault


def test_a_driver_alone_is_a_plan_without_faults() -> None:
    """It still counts what overlaps."""
    assert parse("fault:io_uring") == ("io_uring", Plan())


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("error=EIO", Fault(Kind.ERROR, errno.EIO)),
        ("error=ENOSPC", Fault(Kind.ERROR, errno.ENOSPC)),
        ("short", Fault(Kind.SHORT, HALF, ("read", "write"))),
        ("short=512", Fault(Kind.SHORT, 512, ("read", "write"))),
        ("delay=2ms", Fault(Kind.DELAY, 2_000_000)),
        ("delay=1.5s", Fault(Kind.DELAY, 1_500_000_000)),
        ("stall=500us", Fault(Kind.STALL, 500_000)),
        ("error=EIO,on=fsync", Fault(Kind.ERROR, errno.EIO, ("fsync",))),
        ("error=EIO,on=read+write", Fault(Kind.ERROR, errno.EIO, ("read", "write"))),
        ("error=EIO,op=7", Fault(Kind.ERROR, errno.EIO, first=7, last=7)),
        ("error=EIO,op=7-", Fault(Kind.ERROR, errno.EIO, first=7, last=MAX_NUMBER)),
        ("error=EIO,op=7-9", Fault(Kind.ERROR, errno.EIO, first=7, last=9)),
        ("error=EIO,probability=0.25", Fault(Kind.ERROR, errno.EIO, probability=0.25)),
        ("error=EIO,from=4K", Fault(Kind.ERROR, errno.EIO, start=4096)),
        ("error=EIO,from=1M,to=2M", Fault(Kind.ERROR, errno.EIO, start=1 << 20, end=2 << 20)),
    ],
)
def test_every_word_has_its_effect(words: str, fault: Fault) -> None:
    """And a fault keeps its words, to be told by."""
    found = only(words)
    assert found.text == words
    assert Fault(**{**vars(found), "text": ""}) == fault


def test_what_is_not_said_is_everything() -> None:
    """Every operation, every byte, from the first on, for ever."""
    fault = only("error=EIO")
    assert fault.operations == OPERATIONS
    assert (fault.start, fault.end, fault.first, fault.last) == (0, MAX_BYTES, 1, MAX_NUMBER)
    assert fault.probability == 1.0


def test_each_fault_word_begins_a_fault() -> None:
    """What follows is about that one; reorder and seed are about all."""
    driver, plan = parse("fault:auto,seed=9,delay=1ms,on=read,error=EIO,on=fsync,op=3,reorder")
    assert driver == "auto"
    assert [(fault.kind, fault.operations) for fault in plan.faults] == [
        (Kind.DELAY, ("read",)),
        (Kind.ERROR, ("fsync",)),
    ]
    assert (plan.seed, plan.reorder) == (9, True)


def test_colons_do_for_commas() -> None:
    """In -o a comma ends the option."""
    layer = parse_options("aio=fault:linux:error=EIO:on=fsync,ro")
    config = make_config(Path("/a"), Path("/b"), [layer])
    assert config.faults == parse("fault:linux,error=EIO,on=fsync")[1]
    assert (config.aio, config.read_only, config.asked_driver) == ("linux", True, "fault:linux")


def test_a_driver_without_faults_takes_them_back() -> None:
    """The later word wins: --aio sync after -o aio=fault:sync."""
    config = make_config(Path("/a"), Path("/b"), [{"aio": "fault:sync,short"}, {"aio": "sync"}])
    assert (config.aio, config.faults, config.asked_driver) == ("sync", None, "sync")


def test_the_page_about_them_has_every_word_and_no_wrong_one() -> None:
    """docs/testing-with-faults.md: its examples are valid, and nothing is left out."""
    page = (Path(__file__).resolve().parents[2] / "docs/testing-with-faults.md").read_text()
    examples = re.findall(r"(?m)\bfault:[a-z_]+[,:][^ `.]\S*?(?=$|`|\s)", page)
    assert len(examples) > 6
    for example in examples:
        parse(example)
    for word in WORDS:
        assert f"`{word}" in page


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("fault", "AIO driver 'fault' names no driver to put faults before; use fault:DRIVER,..."),
        ("fault:", "names no driver"),
        ("fault:,short", "names no driver"),
        ("fault:kio,short", "unknown AIO driver 'kio'; valid: auto io_uring"),
        ("fault:fault:sync", "option 'sync' is not known"),
        ("faulty:sync", "unknown AIO driver 'faulty:sync'"),
        ("fault:sync,", "option '' is not known; valid: error= short short= delay= stall= on= op="),
        ("fault:sync,bogus", "option 'bogus' is not known"),
        ("fault:sync,reorder=1", "option 'reorder=1' is not known"),
        (
            "fault:sync,on=read",
            "option 'on=read' says when a fault strikes; put one of error short delay stall",
        ),
        ("fault:sync,error", "option 'error' is not the name of an errno; use EIO,"),
        ("fault:sync,error=5", "option 'error=5' is not the name of an errno"),
        ("fault:sync,error=ENONE", "option 'error=ENONE' is not the name of an errno"),
        ("fault:sync,error=eio", "is not the name of an errno"),
        ("fault:sync,short=", "option 'short=' is not a number of bytes; use 4096, 4K"),
        ("fault:sync,short=-1", "is not a number of bytes"),
        ("fault:sync,delay", "option 'delay' is not a time; use 500us, 2ms, 1.5s"),
        ("fault:sync,delay=2", "option 'delay=2' is not a time"),
        ("fault:sync,stall=2d", "is not a time"),
        ("fault:sync,stall=86401s", "up to 86400s"),
        (
            "fault:sync,error=EIO,on=flush",
            "option 'on=flush' names 'flush'; valid, joined by +: read write fsync",
        ),
        ("fault:sync,short,on=fsync", "option 'on=fsync' names 'fsync'; valid, joined by +: read write"),
        ("fault:sync,error=EIO,op=0", "option 'op=0' strikes nothing; operations are counted from 1"),
        ("fault:sync,error=EIO,op=9-7", "strikes nothing"),
        ("fault:sync,error=EIO,op=x", "is not the number of an operation; use N, N- (from N on) or N-M"),
        ("fault:sync,error=EIO,probability=2", "is not a probability; use 0 to 1"),
        ("fault:sync,error=EIO,probability=nan", "is not a probability"),
        ("fault:sync,error=EIO,from=2M,to=1M", "option 'to=1M' leaves no bytes: from=2097152 to=1048576"),
        ("fault:sync,seed=x", "option 'seed=x' is not a number"),
        ("fault:sync" + ",short" * 65, "65 faults are too many; at most 64"),
    ],
)
def test_a_wrong_word_is_refused_by_name(word: str, says: str) -> None:
    """With what is valid in its place."""
    with pytest.raises(BadInput) as refused:
        make_config(Path("/a"), Path("/b"), [{"aio": word}])
    assert says in str(refused.value)
