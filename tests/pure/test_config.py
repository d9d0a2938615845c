"""config.py: words become a checked configuration, or a sentence that lists the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiofs import config
from aiofs.config import CacheMode, MountConfig, make_config, parse_options
from aiofs.errors import BadInput

SOURCE, MOUNTPOINT = Path("/images"), Path("/mnt/vdisk")


def configured(options: str, **flags: str | bool) -> MountConfig:
    """The configuration of `aiofs mount -o OPTIONS FLAGS`."""
    return make_config(SOURCE, MOUNTPOINT, [parse_options(options), dict(flags)])


def test_nothing_asked_for_gives_the_defaults() -> None:
    """Automatic driver and cache mode, depth 128, merging on, read-write."""
    asked = configured("")
    assert asked == MountConfig(source=SOURCE, mountpoint=MOUNTPOINT)
    assert (asked.aio, asked.cache, asked.queue_depth, asked.merge) == (None, None, 128, True)


def test_every_word_of_o_has_its_effect() -> None:
    """Each option of -o ends in the field it names."""
    asked = configured(
        "aio=linux,cache=directsync,queue_depth=7,no_merge,ro,allow_other,foreground,log_level=debug,log_file=/x"
    )
    assert asked == MountConfig(
        source=SOURCE,
        mountpoint=MOUNTPOINT,
        aio="linux",
        cache=CacheMode.DIRECTSYNC,
        queue_depth=7,
        merge=False,
        read_only=True,
        allow_other=True,
        foreground=True,
        log_level="debug",
        log_file=Path("/x"),
    )


@pytest.mark.parametrize("word", ["queue-depth=9", "queue_depth=9"])
def test_hyphen_and_underscore_are_the_same_in_names(word: str) -> None:
    """-o queue-depth is -o queue_depth."""
    assert configured(word).queue_depth == 9


def test_the_later_word_wins() -> None:
    """`-o ro,rw` is read-write."""
    assert configured("ro,rw").read_only is False
    assert configured("rw,ro").read_only is True


def test_a_flag_wins_over_o() -> None:
    """--aio sync -o aio=linux uses sync."""
    assert configured("aio=linux,queue_depth=4", aio="sync").aio == "sync"


def test_auto_means_that_aiofs_chooses() -> None:
    """--aio auto takes back an earlier choice."""
    assert configured("aio=linux", aio="auto").aio is None


def test_a_relative_log_file_is_kept_from_the_change_of_directory() -> None:
    """The background server works in /, and must still find the file."""
    log_file = configured("log_file=a.log").log_file
    assert log_file == Path.cwd() / "a.log"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("aio=kio", "unknown AIO driver 'kio'; valid: auto io_uring linux threads posix sync"),
        ("aio=", "unknown AIO driver ''"),
        ("cache=off", "unknown cache mode 'off'; valid: none writeback writethrough directsync unsafe"),
        ("queue_depth=0", "queue depth 0 is out of range; use 1 to 4096"),
        ("queue_depth=-1", "queue depth -1 is out of range; use 1 to 4096"),
        ("queue_depth=1000000000", "queue depth 1000000000 is out of range; use 1 to 4096"),
        ("queue_depth=4097", "use 1 to 4096"),
        ("queue_depth=many", "queue depth 'many' is not a number; use 1 to 4096"),
        ("queue_depth=1.5", "is not a number"),
        ("queue_depth=\u0663", "is not a number"),  # a digit to int(), but not to a user
        ("log_level=loud", "unknown log level 'loud'; valid: debug info warning error"),
        ("log_file=", "log_file needs a file name"),
        ("bogus", "unknown option -o bogus; valid: aio= cache= queue_depth="),
        ("bogus=1", "unknown option -o bogus"),
        ("=1", "unknown option -o "),
        ("aio", "option -o aio needs a value"),
        ("ro=yes", "option -o ro takes no value, got 'yes'"),
    ],
)
def test_a_wrong_word_is_refused_with_the_right_ones(options: str, says: str) -> None:
    """The message names the option, the value and what is valid."""
    with pytest.raises(BadInput) as refused:
        configured(options)
    assert says in str(refused.value)


@pytest.mark.parametrize("depth", ["1", "4096"])
def test_the_ends_of_the_range_are_depths(depth: str) -> None:
    """1 and 4096 are in the range."""
    assert configured(f"queue_depth={depth}").queue_depth == int(depth)


def test_the_names_and_limits_are_those_of_the_data_plane() -> None:
    """config.py knows them without loading C; they must not drift apart."""
    dataplane = pytest.importorskip("aiofs.dataplane")
    assert set(config.DRIVERS) == set(dataplane.driver_names())
    assert config.MAX_QUEUE_DEPTH == dataplane.MAX_QUEUE_DEPTH
