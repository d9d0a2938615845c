"""Work on ext4 on an aiofs disk on the recording disk: what the disk did, and what was acknowledged when."""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commits import Worker, workers
from crashlog import Event, unpack
from mounting import TIMEOUT_S, MountedFs, is_mounted, run_aiofs, unmount
from recorder import NAME
from waiting import wait_until

IMAGE_BYTES = 24 << 20
MKFS = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4")
COMPLETE = ("-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")


@dataclass(frozen=True)
class Acknowledgement:
    """A worker had made so many commits when so many of the disk's events had happened."""

    events: int
    worker: str
    commits: int


@dataclass(frozen=True)
class Recording:
    """All that is needed to look at power failures."""

    base: bytes
    """The disk before the first event."""
    events: list[Event]
    start: int
    """So many events had happened when all workers were ready to begin."""
    acknowledgements: list[Acknowledgement]

    def acknowledged(self, events: int) -> dict[str, int]:
        """The commits of each worker that were acknowledged when so many events had happened."""
        made = {worker.name: 0 for worker in workers()}
        for ack in self.acknowledgements:
            if ack.events <= events:
                made[ack.worker] = max(made[ack.worker], ack.commits)
        return made


class Recorder:
    """The recording disk: a process, its mount, and its log."""

    def __init__(self, directory: Path, seed: int) -> None:
        """`directory`: where its mount and its log are."""
        self.mountpoint = directory / "recorder"
        self.mountpoint.mkdir()
        self.log = directory / "recorder.log"
        # In memory: mkfs syncs, and that may take long where others use the disk.
        image = os.memfd_create("recorded")
        try:
            os.truncate(image, IMAGE_BYTES)
            _run(*MKFS, *COMPLETE, f"/proc/{os.getpid()}/fd/{image}")
            self.base = os.pread(image, IMAGE_BYTES, 0)
            program = Path(__file__).with_name("recorder.py")
            words = [program, f"/proc/self/fd/{image}", self.mountpoint, self.log, seed]
            command = [sys.executable, *map(str, words)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[image])
        finally:
            os.close(image)

    def wait_ready(self) -> None:
        """Return when it is mounted."""
        wait_until(lambda: is_mounted(self.mountpoint) or self._process.poll() is not None, TIMEOUT_S)
        assert self._process.poll() is None, "the recorder has ended"

    def clean_up(self) -> None:
        """Unmount; it ends."""
        done = unmount(self.mountpoint)
        if done.returncode != 0:
            unmount(self.mountpoint, lazy=True)
            self._process.terminate()
        assert (self._process.wait(TIMEOUT_S), done.stderr) == (0, "")


def record(recorder: Recorder, fs: MountedFs, commits: int) -> Recording:
    """Let each worker make so many commits, all at once, on `fs`, a mount of the recorder's directory."""
    acknowledged: list[tuple[int, str, int]] = []

    def work(worker: Worker) -> None:
        def acknowledge(made: int) -> None:
            # All that the commit needs is in the log by now, if the layers between are right.
            acknowledged.append((recorder.log.stat().st_size, worker.name, made))

        worker.work(directory, commits, acknowledge)

    with _ext4(fs.path / NAME.decode(), recorder.mountpoint.with_name("ext4")) as directory:
        for worker in workers():
            worker.prepare(directory)
        _run("sync", "--file-system", directory)
        start = recorder.log.stat().st_size
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, workers()))
        log = recorder.log.read_bytes()
    events, ends = zip(*unpack(log), strict=True)
    acks = [Acknowledgement(bisect_right(ends, size), name, made) for size, name, made in acknowledged]
    return Recording(recorder.base, list(events), bisect_right(ends, start), acks)


@contextmanager
def _ext4(image: Path, mountpoint: Path) -> Iterator[Path]:
    """The file system of an image of an aiofs mount, mounted from a loop device."""
    attached = run_aiofs("attach", image)
    assert attached.returncode == 0, attached
    device = attached.stdout.strip()
    try:
        mountpoint.mkdir()
        _run("mount", "-t", "ext4", device, mountpoint)
        try:
            yield mountpoint
        finally:
            _run("umount", mountpoint)
    finally:
        detached = run_aiofs("detach", device)
        assert detached.returncode == 0, detached


def _run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
