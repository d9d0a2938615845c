"""`scripts/kills`: a server killed so many times under fio, and a table of errors, wrong bytes and pauses."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

MIB = 1 << 20
PATIENCE_S = 60.0
AIOFS = [sys.executable, "-m", "aiofs"]
FIO = [
    "fio", "--name=kills", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=libaio", "--direct=1",
    "--size=64M", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256",
    "--verify_state_save=0", "--time_based",
    "--runtime=86400", "--output-format=json",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One scene's row."""

    scene: str
    kills: int
    errors: int
    """1: fio met an I/O error, or a block that did not hold what was written, and ended."""
    pauses_s: list[float]
    """The longest a reader of another image waited, for each kill."""

    def row(self) -> str:
        """As text, in the columns of HEADER."""
        ordered = sorted(self.pauses_s)
        p99 = ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]
        middle = statistics.median(ordered)
        return f"{self.scene:26}{self.kills:7}{self.errors:8}{middle:10.2f}{p99:9.2f}{ordered[-1]:9.2f}"


HEADER = f"{'fio --verify, depth 32, on':26}{'kills':>7}{'errors':>8}{'pause p50':>10}{'p99':>9}{'max s':>9}"


class Reader:
    """Reads one block again and again; `take` is the longest that took since the last `take`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._longest = 0.0
        self._done = Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with mmap.mmap(-1, 4096) as page:
            while not self._done.wait(0.002):
                start = time.monotonic()
                os.preadv(self._fd, [page], 0)
                self._longest = max(self._longest, time.monotonic() - start)

    def take(self) -> float:
        longest, self._longest = self._longest, 0.0
        return longest

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        os.close(self._fd)


def server(mountpoint: Path) -> int:
    """The server's process id."""
    pid: int = json.loads((mountpoint / ".aiofs/info.json").read_bytes())["server_pid"]
    return pid


def kill(mountpoint: Path, reader: Reader, moments: random.Random) -> float:
    """Kill the server some moment after it took over; how long the reader waited at most."""
    time.sleep(moments.uniform(0.02, 0.3))
    reader.take()
    pid = server(mountpoint)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while server(mountpoint) == pid:  # waits for the next one
        if time.monotonic() > end:
            raise SystemExit(f"no other server after {PATIENCE_S:g} s")
    time.sleep(0.01)  # for the reader's block to come back
    return reader.take()


def killed(scene: str, target: Path, mountpoint: Path, kills: int, seed: int) -> Result:
    """One scene: fio on `target` while the servers of the mount are killed."""
    fio = subprocess.Popen([*FIO, f"--filename={target}"], stdout=subprocess.PIPE, text=True)
    reader = Reader(mountpoint / "other.img")
    moments = random.Random(seed)
    pauses: list[float] = []
    try:
        while len(pauses) < kills and fio.poll() is None:
            pauses.append(kill(mountpoint, reader, moments))
            if sys.stderr.isatty():
                print(f"\r{scene}: {len(pauses)} of {kills} ", end="", file=sys.stderr, flush=True)
    finally:
        reader.close()
        fio.send_signal(signal.SIGINT)
        said, _ = fio.communicate(timeout=PATIENCE_S)
    report = json.loads(said[said.index("{") : said.rindex("}") + 1])
    errors = sum(job["error"] != 0 for job in report["jobs"])
    return Result(scene, len(pauses), errors, pauses)


@contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    """Two images, mounted."""
    images, mountpoint = directory / "images", directory / "mnt"
    for path in (images, mountpoint):
        path.mkdir()
    for name, size in (("disk.img", 256 * MIB), ("other.img", MIB)):
        with (images / name).open("wb") as file:
            file.truncate(size)
    subprocess.run([*AIOFS, "mount", images, mountpoint, "--log-file", directory / "log"], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([*AIOFS, "umount", "--detach", mountpoint], check=True)


@contextmanager
def ext4(mountpoint: Path, directory: Path) -> Iterator[Path]:
    """An ext4 on a loop device on the image; checked at the end."""
    attached = subprocess.run(
        [*AIOFS, "attach", mountpoint / "disk.img"], stdout=subprocess.PIPE, text=True, check=True
    )
    device, there = attached.stdout.strip(), directory / "there"
    there.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, there], check=True)
    try:
        yield there
    finally:
        subprocess.run(["umount", there], check=True)
        subprocess.run(["e2fsck", "-f", "-n", device], check=True, stdout=sys.stderr)


def main() -> int:
    """Run the scenes; status 1 when anybody saw an error."""
    parser = argparse.ArgumentParser(prog="scripts/kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="for each scene (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="aiofs-kills-", dir="/var/tmp") as name:
        directory = Path(name)
        with mounted(directory) as mountpoint:
            results.append(killed("the file", mountpoint / "disk.img", mountpoint, asked.kills, asked.seed))
            if os.geteuid() == 0:
                with ext4(mountpoint, directory) as there:
                    scene = "ext4 on a loop device"
                    results.append(killed(scene, there / "file", mountpoint, asked.kills, asked.seed))
            else:
                print("not root: no loop device, no ext4 on one", file=sys.stderr)
    print(HEADER)
    for result in results:
        print(result.row())
    return int(any(result.errors or result.kills < asked.kills for result in results))


if __name__ == "__main__":
    sys.exit(main())
