"""aiofs bench on real files: what it measures, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mounting import AIOFS, TIMEOUT_S, run_aiofs

from aiofs.bench import command, scratch
from aiofs.bench.arguments import Request
from aiofs.bench.run import Failed, measured
from aiofs.dataplane import Op, set_faults
from aiofs.dataplane.measure import Load
from aiofs.errors import AiofsError
from aiofs.faults import Fault, Kind, Plan
from aiofs.locks import lock_for_reading, lock_for_writing

SHORT = ("--rounds", "1", "--runtime", "0.01", "--depths", "1,4")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 1 MiB in a directory of its own."""
    path = tmp_path / "images" / "disk.img"
    path.parent.mkdir()
    path.write_bytes(os.urandom(1 << 20))
    return path


def request(image: Path, **more: Any) -> Request:
    """A short run."""
    words: dict[str, Any] = {
        "image": image, "drivers": ("sync",), "workloads": ("write",), "depths": (1, 4), "block_size": 4096,
        "runtime_s": 0.01, "rounds": 1, "cache": None, "destructive": False, "merge": False, "quick": True,
        "seed": 1, "json": False, "plot": None,
    }  # fmt: skip
    return Request(**{**words, **more})


def state(path: Path) -> tuple[str, int]:
    """What must not change: content and time of change."""
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns


def names_in(directory: Path) -> list[str]:
    """Sorted."""
    return sorted(path.name for path in directory.iterdir())


def failed(status: int, *args: str | Path) -> str:
    """The last line on stderr of a run that ends with `status`."""
    done = run_aiofs("bench", *args)
    assert done.returncode == status, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("aiofs: ")
    return last


# -- it measures --


def test_every_driver_is_measured_and_the_image_stays_as_it_is(image: Path, tmp_path: Path) -> None:
    """The document has every cell; content and mtime are those of before; no file is left beside it."""
    before = state(image)
    plot = tmp_path / "bench.svg"
    done = run_aiofs("bench", image, *SHORT, "--json", "--plot", plot, "--quick")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cells = {(cell["driver"], cell["workload"], cell["depth"]) for cell in told["cells"]}
    assert len(cells) == len(told["settings"]["drivers"]) * 4 * 2
    assert all(cell["iops"]["median"] > 0 for cell in told["cells"])
    assert {look["depth"] for look in told["order"]} == {4}
    assert told["verdict"]["recommended"] in told["settings"]["drivers"]
    assert set(told["verdict"]) >= {"auto", "auto_reason", "agrees", "slower", "scores"}
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")
    assert state(image) == before
    assert names_in(image.parent) == ["disk.img"]


def test_the_table_ends_with_the_verdict(image: Path) -> None:
    """In a pipe as well, without colours and without a bar."""
    done = run_aiofs("bench", image, *SHORT, "--drivers", "sync,threads", "--workloads", "read")
    assert "Best for this image: " in done.stdout
    assert "--aio auto chooses:  " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_reads_alone_make_no_temporary_file(image: Path) -> None:
    """So they work in a directory that cannot be written."""
    done = run_aiofs("bench", image, *SHORT, "--drivers", "sync", "--workloads", "read,randread")
    assert done.returncode == 0
    assert "temporary file" not in done.stderr


def test_destructive_writes_on_the_image_and_says_so(image: Path) -> None:
    """Its size stays; its content does not."""
    before = state(image)
    done = run_aiofs("bench", image, *SHORT, "--drivers", "sync", "--workloads", "write", "--destructive")
    assert done.returncode == 0, done.stderr
    assert f"writing on {image}: its content is lost" in done.stderr
    assert state(image)[0] != before[0]
    assert image.stat().st_size == 1 << 20


def test_holes_are_told(image: Path) -> None:
    """A sparse image is read faster than a disk could."""
    with image.open("r+b") as file:
        file.truncate(4 << 20)
    done = run_aiofs("bench", image, *SHORT, "--drivers", "sync", "--workloads", "read")
    assert "75% of the image is holes" in done.stdout


def test_readers_share_the_image(image: Path) -> None:
    """Another reader's lock is no obstacle."""
    with image.open("rb") as other:
        lock_for_reading(other.fileno())
        assert run_aiofs("bench", image, *SHORT, "--drivers", "sync", "--workloads", "read").returncode == 0


# -- it refuses --


def test_a_path_that_is_no_image_is_refused(tmp_path: Path) -> None:
    """Nothing there, a directory, a fifo, nothing in it, less than a block."""
    fifo, empty, tiny = tmp_path / "fifo", tmp_path / "empty", tmp_path / "tiny"
    os.mkfifo(fifo)
    empty.touch()
    tiny.write_bytes(b"x" * 100)
    assert "gone does not exist; give an image file" in failed(2, tmp_path / "gone")
    assert "is a directory; give one of the images in it" in failed(2, tmp_path)
    assert "fifo is neither a file nor a block device" in failed(2, fifo)
    assert "empty is empty" in failed(2, empty)
    assert "tiny has 100 bytes, less than one block of 4,096" in failed(2, tiny)
    assert "Not a directory" in failed(2, tiny / "x")


def test_a_locked_image_names_who_holds_it(image: Path) -> None:
    """Being written: refused for reading. Being read: refused for --destructive only."""
    with image.open("r+b") as other:
        lock_for_writing(other.fileno())
        assert f"{image} is locked by " in failed(1, image, *SHORT)
        assert f"(pid {os.getpid()})" in failed(1, image, *SHORT)
    with image.open("rb") as other:
        lock_for_reading(other.fileno())
        assert "is locked by" in failed(1, image, *SHORT, "--destructive")


@pytest.fixture
def public_image() -> Iterator[Path]:
    """An image where every user gets to, unlike to pytest's directories."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.img"
        path.parent.chmod(0o755)
        path.write_bytes(bytes(1 << 20))
        yield path


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who owns nothing."""
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def bench_as_nobody(image: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """aiofs bench as such a user; skips where there is no way to."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become another user")
    if as_nobody(*AIOFS, "--version").returncode != 0:
        pytest.skip("this checkout cannot be reached by another user")
    return as_nobody(*AIOFS, "bench", str(image), *args)


def test_an_image_that_may_not_be_read_is_refused(public_image: Path) -> None:
    """Another user's, mode 600."""
    public_image.chmod(0o600)
    done = bench_as_nobody(public_image)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no permission to read image {public_image}" in done.stderr


def test_a_directory_that_may_not_be_written_leaves_reads(public_image: Path) -> None:
    """The reason for the missing writes is in the notes; writes alone are refused with it."""
    short = (*SHORT, "--drivers", "sync")
    done = bench_as_nobody(public_image, *short, "--workloads", "read,write")
    assert done.returncode == 0, done.stderr
    assert (
        f"writes were not measured: cannot write in {public_image.parent}: Permission denied" in done.stdout
    )
    done = bench_as_nobody(public_image, *short, "--workloads", "write")
    assert done.returncode == 2
    assert "nothing can be measured" in done.stderr


# -- a full disk --


def test_too_little_space_leaves_reads(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 MiB free: no temporary file of a quarter of it."""
    there = list(os.statvfs(image.parent))
    there[1], there[4] = 1 << 20, 15
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(there))
    with pytest.raises(AiofsError, match="15 MiB free, and 16 MiB are needed; free some space"):
        command.bench(request(image))


def test_a_disk_that_fills_up_is_told(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while the temporary file is written: one sentence, and nothing left."""

    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    gc.collect()  # what earlier tests left open goes now, or while this one looks
    descriptors = names_in(Path("/proc/self/fd"))
    with pytest.raises(AiofsError, match="No space left on device; free some space"):
        command.bench(request(image))
    assert names_in(Path("/proc/self/fd")) == descriptors
    assert names_in(image.parent) == ["disk.img"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Every write through a fault driver fails with ENOSPC."""
    set_faults(Plan((Fault(Kind.ERROR, errno.ENOSPC, ("write",)),)))
    yield
    set_faults(Plan())


@pytest.mark.usefixtures("full_disk")
def test_an_io_that_fails_ends_the_run_with_its_reason(image: Path) -> None:
    """What was done, through which driver, on what, and the way out."""
    with image.open("r+b") as file, pytest.raises(Failed) as failure:
        load = Load(op=Op.WRITE, depth=4, block_size=4096, end=1 << 20)
        measured("fault:sync", file.fileno(), load, "the disk")
    assert (
        str(failure.value)
        == "writing the disk through fault:sync at depth 4: No space left on device; free some space"
    )


# -- temporary files --


def test_a_temporary_file_has_no_name_also_without_o_tmpfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that refuses O_TMPFILE it is made with a name and loses it at once."""
    open_file = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return open_file(path, flags, *more, **named)

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(os, "open", refuse)
        fd = scratch.create(tmp_path)
        scratch.fill(fd, 1 << 20, "x")
        assert os.fstat(fd).st_size == 1 << 20
        assert os.fstat(fd).st_nlink == 0
        assert names_in(tmp_path) == []
        os.close(fd)


# -- signals --


def test_a_signal_that_interrupts_no_wait_ends_the_run(image: Path) -> None:
    """Like one between Python's last look for signals and its sleep: another thread has it here."""

    class Ended(Exception):
        """What the handler raises."""

    def end(_signal: int, _frame: object) -> None:
        raise Ended

    def send() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, end)
    timer = threading.Timer(0.2, send)
    fd = os.open(image, os.O_RDONLY)
    try:
        timer.start()
        start = time.monotonic()
        with pytest.raises(Ended):
            measured("sync", fd, Load(Op.READ, 1, 4096, 1 << 20, duration_s=TIMEOUT_S), "it")
        assert time.monotonic() - start < TIMEOUT_S / 2, "it went on to its own end"
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(fd)


@pytest.mark.parametrize(
    ("number", "status", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_in_the_middle_ends_the_run(
    image: Path, number: signal.Signals, status: int, says: str
) -> None:
    """In a cell of ten minutes: it stops at once, the image is as it was, and no file is left."""
    before = state(image)
    words = ["--runtime", "600", "--rounds", "1", "--workloads", "randwrite", "--quick"]
    process = subprocess.Popen(
        [*AIOFS, "bench", str(image), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background job ignores SIGINT
    )
    try:
        assert process.stderr is not None
        while "0 of " not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(number)
        out, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == status
    assert out == ""
    assert errors.splitlines() == [f"aiofs: {says}; nothing is left behind, {image} is as it was"]
    assert state(image) == before
    assert names_in(image.parent) == ["disk.img"]
