"""Who uses an image while its servers are killed, and verifies what it reads: fio here, or fio in a guest."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from guests import boot
from guests.kernel import Kernel

PATIENCE_S = 60.0
FIO = [
    "fio", "--name=kills", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=libaio", "--direct=1",
    "--size=64M", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256",
    "--verify_state_save=0", "--time_based",
]  # fmt: skip


class Load(Protocol):
    """At work from its making to `finish`."""

    def working(self) -> bool:
        """It has not ended of itself, as it does at the first error."""

    def finish(self) -> int:
        """End it; the number of errors that it met: failed requests, and blocks that were not as written."""


class Here:
    """fio on this machine."""

    def __init__(self, target: Path) -> None:
        command = [*FIO, "--runtime=86400", "--output-format=json", f"--filename={target}"]
        self._fio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def working(self) -> bool:
        return self._fio.poll() is None

    def finish(self) -> int:
        self._fio.send_signal(signal.SIGINT)
        said, _ = self._fio.communicate(timeout=PATIENCE_S)
        report = json.loads(said[said.index("{") : said.rindex("}") + 1])
        return sum(job["error"] != 0 for job in report["jobs"])


class InGuest:
    """fio in a virtual machine that has the image as its disk: again and again, ten seconds a time."""

    _BEGIN, _ROUND, _FAILED = "guest: begins", "guest: a round is done", "guest: fio failed"

    def __init__(self, image: Path, directory: Path) -> None:
        """Returns when the guest has begun. guests.kernel.Missing: something for guests is not here."""
        kernel = Kernel.find()
        fio = shlex.join([*FIO, "--runtime=10", "--filename=/dev/vda"])
        job = (
            f"echo {self._BEGIN}\n"
            f'while :; do {fio} >/out 2>&1 || {{ cat /out; echo "{self._FAILED}"; }}\n'
            f'echo "{self._ROUND}"; done\n'
        )
        initrd = directory / "initramfs"
        initrd.write_bytes(boot.initramfs(kernel, job, modules=("virtio_pci", "virtio_blk"), tools=("fio",)))
        drive = f"file={image},format=raw,cache=none,aio=native,werror=report,rerror=report"
        self._console = directory / "console"
        with self._console.open("wb") as console:
            self._qemu = subprocess.Popen(
                boot.command(kernel, initrd, [drive], memory_mib=512),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self._wait_for(self._BEGIN)

    def working(self) -> bool:
        return self._qemu.poll() is None and self._FAILED not in self._said()

    def finish(self) -> int:
        """Not before fio has verified a whole round."""
        try:
            self._wait_for(self._ROUND)
        finally:
            self._qemu.kill()
            self._qemu.wait(PATIENCE_S)
        said = self._said()
        bad = [line for line in said.splitlines() if self._FAILED in line or "I/O error" in line]
        if bad:
            print(said, file=sys.stderr)
        return len(bad)

    def _said(self) -> str:
        return self._console.read_text(errors="replace")

    def _wait_for(self, text: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while text not in self._said():
            if self._qemu.poll() is not None or time.monotonic() > end:
                self._qemu.kill()
                raise SystemExit(f"the guest has not come to {text!r}:\n{self._said()}")
            time.sleep(0.1)
