"""choice.py, evidence.py, trial.py and probe.py: decisions on real files, and what follows when they fail."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import threading
from pathlib import Path

import pytest
from planes import FakePlane, make_table, node_of, run

from aiofs import evidence, probe, trial
from aiofs.cli import main
from aiofs.config import CacheMode
from aiofs.dataplane import Queue, driver_names, drivers
from aiofs.images import ImageTable
from aiofs.source import Source

MIB = 1 << 20
STATUSES = {status.name: status for status in drivers()}
WORKING = {name for name, status in STATUSES.items() if status.works}


def need(driver: str) -> None:
    """Skip the test, with the kernel's reason, where a driver does not work."""
    if driver not in WORKING:
        pytest.skip(f"{driver}: {STATUSES[driver].reason}")


def opened(table: ImageTable) -> list[str]:
    """The drivers of the open images."""
    return [image.driver for image in table.info()]


def test_an_image_has_the_driver_that_probe_says(images: Path, plane: FakePlane) -> None:
    """The mount and `aiofs probe` decide alike, and the driver is opened before the image is registered."""
    table = make_table(images, plane, aio=None)
    run(lambda: table.open(node_of(table), os.O_RDWR))
    expected = probe.probe(images / "a.img").decision
    assert opened(table) == [expected.driver] == plane.drivers
    assert table.info()[0].driver_reason == expected.reason
    run(table.close_all)
    table.source.close()


def test_a_driver_that_fails_later_is_gone_without(
    images: Path, plane: FakePlane, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; the reason shown for the image names the failure; `threads` is next to last."""
    plane.refused_drivers = {"io_uring", "linux"}
    (images / "b.img").write_bytes(bytes(8192))
    table = make_table(images, plane, aio=None, cache=CacheMode.WRITEBACK)
    run(lambda: table.open(node_of(table), os.O_RDWR))
    run(lambda: table.open(node_of(table, b"b.img"), os.O_RDWR))
    assert set(opened(table)) <= {"threads", "sync"}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) <= 1
    if "io_uring" in WORKING and "threads" in opened(table):
        assert len(warnings) == 1
        assert "failed to start" in table.info()[0].driver_reason
    run(table.close_all)
    table.source.close()


def test_a_wide_driver_that_fails_later_is_gone_without(
    images: Path, plane: FakePlane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image has its first driver all the same, and threads for what the second would have done."""
    need("io_uring")
    need("linux")
    monkeypatch.setattr(trial, "takes_wide_nowait", lambda *_: False)
    plane.refused_drivers = {"linux"}
    table = make_table(images, plane, aio=None)
    decision = probe.probe(images / "a.img").decision
    if not decision.wide_driver:  # no O_DIRECT there, or it is tmpfs
        pytest.skip(f"auto takes {decision.driver}: {decision.reason}")
    run(lambda: table.open(node_of(table), os.O_RDWR))
    assert opened(table) == ["io_uring"]
    assert plane.drivers == ["io_uring", "threads"]
    assert "threads read what is longer" in table.info()[0].driver_reason
    assert [r.message for r in caplog.records if "linux failed to start" in r.message]
    run(table.close_all)
    table.source.close()


def test_a_named_driver_that_fails_is_not_replaced(images: Path, plane: FakePlane) -> None:
    """The open gets the kernel's errno, and nothing is registered."""
    plane.refused_drivers = {"threads"}
    table = make_table(images, plane, aio="threads")

    async def try_open() -> None:
        with pytest.raises(OSError) as caught:
            await table.open(node_of(table), os.O_RDWR)
        assert caught.value.errno == errno.EAGAIN

    run(try_open)
    assert plane.images == {}
    table.source.close()


def test_the_last_resort_failing_is_an_error(images: Path, plane: FakePlane) -> None:
    """No driver at all ends in the errno of the last one, not in a loop."""
    plane.refused_drivers = set(driver_names())
    table = make_table(images, plane, aio=None)

    async def try_open() -> None:
        with pytest.raises(OSError) as caught:
            await table.open(node_of(table), os.O_RDWR)
        assert caught.value.errno == errno.EAGAIN

    run(try_open)
    table.source.close()


@pytest.mark.parametrize("driver", ["io_uring", "linux"])
def test_a_trial_read_leaves_the_image_alone(tmp_path: Path, driver: str) -> None:
    """Same bytes, same times, for a full, a short and an empty file."""
    need(driver)
    for size in (0, 100, 8192):
        image = tmp_path / f"{size}.img"
        image.write_bytes(b"x" * size)
        before = image.stat()
        fd = os.open(image, os.O_RDONLY)
        with trial.Queues() as queues:
            assert trial.read(queues, driver, fd) == ""
        os.close(fd)
        after = image.stat()
        assert (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (
            before.st_mtime_ns,
            before.st_ctime_ns,
            size,
        )


def test_a_decision_does_not_wait_until_its_queues_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four may be closing at once; all are closed in the end."""
    fd = os.open(tmp_path / "a.img", os.O_RDWR | os.O_CREAT)
    may_close, closed = threading.Event(), threading.Semaphore(0)

    class Slow(Queue):
        def close(self) -> None:
            assert may_close.wait(20)
            super().close()
            closed.release()

    monkeypatch.setattr(trial, "Queue", Slow)

    def decide() -> None:
        with trial.Queues() as queues:
            assert trial.read(queues, "sync", fd) == ""

    for _ in range(4):
        decide()
    fifth = threading.Thread(target=decide)
    fifth.start()
    assert not closed.acquire(timeout=0.05)
    assert fifth.is_alive()
    may_close.set()
    for _ in range(5):
        assert closed.acquire(timeout=20)
    fifth.join(20)
    os.close(fd)


def test_a_trial_read_says_what_failed(tmp_path: Path) -> None:
    """A descriptor that cannot be read gives its errno's text."""
    fd = os.open(tmp_path / "w.img", os.O_WRONLY | os.O_CREAT)
    with trial.Queues() as queues:
        assert "Bad file descriptor" in trial.read(queues, "sync", fd)
    os.close(fd)


WIDE = 2 * trial.READ_BYTES
FIRST, MIDDLE, LAST = 0, MIB // 2, MIB - WIDE


@pytest.mark.parametrize(
    ("wide", "narrow", "found"),
    [
        ({FIRST}, {}, True),
        ({LAST}, {}, True),
        ({MIDDLE}, {FIRST}, True),
        ({}, {FIRST, MIDDLE, LAST}, False),
        ({}, {LAST}, False),
        ({}, {}, None),
    ],
)
def test_wide_reads_are_refused_where_narrow_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, wide: set[int], narrow: set[int], found: bool | None
) -> None:
    """A refusal may have other reasons: one wide read that is taken is enough, and none says nothing."""

    def preadv(_: int, buffers: list[mmap.mmap], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        [buffer] = buffers
        if offset not in (wide if len(buffer) == WIDE else narrow):
            raise BlockingIOError(errno.EAGAIN, "it would wait")
        return len(buffer)

    monkeypatch.setattr(os, "preadv", preadv)
    assert trial.takes_wide_nowait(-1, MIB) is found


def test_an_image_too_short_for_a_wide_read_says_nothing() -> None:
    """Nobody is asked."""
    assert trial.takes_wide_nowait(-1, WIDE - 1) is None


def test_the_live_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its file has no name, before, while and after."""
    (tmp_path / "a.img").write_bytes(bytes(4096))
    source = Source.open(tmp_path / "a.img", read_only=False)
    surroundings = evidence.Surroundings.of(source, evidence.Machine.look())
    with trial.Queues() as queues:
        for growing in (False, True):
            found = surroundings.blocking(queues, growing)
            assert found.per_io is None or found.per_io >= 0
            assert surroundings.blocking(queues, growing) is found
    source.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.img"]


# -- aiofs probe --


def test_probe_prints_the_table(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Path, driver, and a line for each test, in 80 columns but for the path."""
    assert main(["probe", str(images / "a.img"), str(images)]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line.startswith(str(images))]
    assert titles[0].startswith(f"{images / 'a.img'} (image file")
    assert "O_DIRECT" in out
    assert "VERDICT" in out
    assert max(len(line) for line in out.splitlines() if line not in titles) <= 80


def test_probe_prints_json(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for programs: a list, an entry a path."""
    assert main(["probe", "--json", "--cache", "writeback", str(images / "a.img")]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert told["path"] == str(images / "a.img")
    assert told["cache"] == "writeback"
    assert told["driver"] in driver_names()
    assert told["tests"][0] == {
        "name": "O_DIRECT",
        "looked_at": "opened without it",
        "verdict": "no",
        "reason": "buffered, as --cache writeback asks",
        "driver": "",
    }


def test_probe_of_an_empty_directory_uses_a_temporary_file(tmp_path: Path) -> None:
    """Nothing of it is left."""
    assert probe.probe(tmp_path).decision.driver in driver_names()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "No such file"),
        (lambda path: os.mkfifo(path), "neither a directory, an image file nor a block device"),
    ],
)
def test_probe_of_what_is_no_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, words: str
) -> None:
    """Status 2, the path, and what is wrong; the other paths are still told."""
    path = tmp_path / "x.img"
    assert callable(make)
    make(path)
    good = tmp_path / ("so-that-the-path-is-longer-than-a-line" * 3) / "good.img"
    good.parent.mkdir()
    good.write_bytes(bytes(4096))
    assert main(["probe", str(path), str(good)]) == 2
    out = capsys.readouterr()
    assert words in out.err
    assert str(path) in out.err
    assert f"{good} (image file" in out.out, "whole, however long it is"


def test_probe_refuses_a_wrong_cache_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of modes is in the message."""
    assert main(["probe", "--cache", "x", str(tmp_path)]) == 2
    assert "writethrough" in capsys.readouterr().err
