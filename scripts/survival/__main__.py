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

from guests.kernel import Missing

from .loads import PATIENCE_S, Here, InGuest, Load

MIB = 1 << 20
AIOFS = [sys.executable, "-m", "aiofs"]


@dataclass(frozen=True)
class Result:
    """One scene's row."""

    scene: str
    kills: int
    errors: int
    """Requests that failed, and blocks that did not hold what was written; fio ends at the first."""
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


def killed(scene: str, load: Load, mountpoint: Path, kills: int, seed: int) -> Result:
    """One scene: `load` goes on while the servers of the mount are killed."""
    reader = Reader(mountpoint / "other.img")
    moments = random.Random(seed)
    pauses: list[float] = []
    try:
        while len(pauses) < kills and load.working():
            pauses.append(kill(mountpoint, reader, moments))
            if sys.stderr.isatty():
                print(f"\r{scene}: {len(pauses)} of {kills} ", end="", file=sys.stderr, flush=True)
    finally:
        reader.close()
        errors = load.finish()
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


def on_the_file(mountpoint: Path, _: Path, how: argparse.Namespace) -> Result:
    """fio on the image itself."""
    return killed("the file", Here(mountpoint / "disk.img"), mountpoint, how.kills, how.seed)


def on_ext4(mountpoint: Path, directory: Path, how: argparse.Namespace) -> Result | None:
    """fio on a file system on a loop device on the image."""
    if os.geteuid() != 0:
        print("not root: no loop device, no ext4 on one", file=sys.stderr)
        return None
    with ext4(mountpoint, directory) as there:
        return killed("ext4 on a loop device", Here(there / "file"), mountpoint, how.kills, how.seed)


def in_a_guest(mountpoint: Path, directory: Path, how: argparse.Namespace) -> Result | None:
    """fio in a virtual machine with the image as its disk."""
    try:
        load = InGuest(mountpoint / "disk.img", directory)
    except Missing as error:
        print(f"no guest: {error}", file=sys.stderr)
        return None
    return killed("the disk of a guest", load, mountpoint, how.kills, how.seed)


SCENES = {"file": on_the_file, "ext4": on_ext4, "guest": in_a_guest}


def main() -> int:
    """Run the scenes; status 1 when anybody saw an error."""
    parser = argparse.ArgumentParser(prog="scripts/kills", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"only these of: {' '.join(SCENES)}")
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="for each scene (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    asked = parser.parse_args()
    unknown = [name for name in asked.scenes if name not in SCENES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no scene: {' '.join(SCENES)}")
    results = []
    for name in asked.scenes or SCENES:
        with tempfile.TemporaryDirectory(prefix="aiofs-kills-", dir="/var/tmp") as place:
            with mounted(Path(place)) as mountpoint:
                result = SCENES[name](mountpoint, Path(place), asked)
            if result:
                results.append(result)
    print(HEADER)
    for result in results:
        print(result.row())
    return int(any(result.errors or result.kills < asked.kills for result in results))


if __name__ == "__main__":
    sys.exit(main())
