"""Virtual machines for the tests: QEMU in software emulation on a kernel and an initramfs of scripts/guests.

A guest runs one shell script and powers off. Its console is the result. Booting takes about three seconds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from guests import boot
from guests.kernel import Kernel, Missing

TIMEOUT_S = 180
"""For a guest that takes ten seconds on a quiet machine; longer is taken for a hang."""

MODULES = ("virtio_pci", "virtio_blk", "ext4")
TOOLS = ("mkfs.ext4", "e2fsck", "fstrim", "blkdiscard", "blockdev", "sfdisk", "sha256sum")


class Guest:
    """A running virtual machine. `console` grows while it runs."""

    def __init__(self, directory: Path, name: str, job: str, drives: Sequence[str]) -> None:
        """`drives`: what -drive takes, but for the interface: each is a virtio disk, /dev/vda the first."""
        initrd = directory / f"{name}.initramfs"
        try:
            kernel = Kernel.find()
            command = boot.command(kernel, initrd, drives, memory_mib=256)
            initrd.write_bytes(boot.initramfs(kernel, job, modules=MODULES, tools=TOOLS))
        except Missing as error:
            pytest.skip(str(error))
        self.console: list[str] = []
        self._grown = threading.Condition()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                with self._grown:
                    self.console.append(line.strip())
                    self._grown.notify_all()
        with self._grown:
            self.console.append("")
            self._grown.notify_all()

    def wait_for(self, text: str) -> None:
        """Return when a line of the console holds `text`."""

        def seen() -> bool:
            return any(text in line for line in self.console) or not self._reader.is_alive()

        with self._grown:
            assert self._grown.wait_for(seen, TIMEOUT_S), self.console
        assert any(text in line for line in self.console), self.console

    def kill(self) -> None:
        """Pull the plug."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(TIMEOUT_S)

    def finish(self) -> list[str]:
        """Wait until the job is done and the machine off; the lines of its console."""
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the guest hangs: {self.console}") from None
        self._reader.join(TIMEOUT_S)
        assert any(boot.DONE in line for line in self.console), self.console
        return self.console

    def clean_up(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self.kill()
        self._reader.join(TIMEOUT_S)


def drive(path: Path, aio: str = "native") -> str:
    """A raw image as a disk: O_DIRECT, as the README advises; discards reach the image."""
    return f"file={path},format=raw,cache=none,aio={aio},discard=unmap,werror=report,rerror=report"
