"""Virtual machines for the tests: QEMU in software emulation, Debian's cloud kernel, a busybox initramfs.

A guest runs one shell script as its init and powers off. Its console is the result. Booting takes about
three seconds; nothing is installed in the guest, so nothing of it outlives the test.
"""

from __future__ import annotations

import re
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / ".venv/guest"
"""Where scripts/test puts Debian's cloud kernel."""
TIMEOUT_S = 180
"""For a guest that takes ten seconds on a quiet machine; longer is taken for a hang."""

MODULES = ("virtio_pci", "virtio_blk", "ext4")
TOOLS = ("mkfs.ext4", "e2fsck", "fstrim", "blkdiscard", "blockdev", "sfdisk", "sha256sum")
DONE = "guest: done"

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod $module; done
export PATH=/tools:/bin
set -e
trap 'echo guest: failed at: $BASH_COMMAND $?; poweroff -f' EXIT
. /job
trap - EXIT
sync
echo "{done}"
poweroff -f
"""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path
    """The directory with its modules."""

    @classmethod
    def find(cls) -> Kernel:
        """The one in KERNELS; skips the test, with the reason, where something is missing."""
        for tool in ("qemu-system-x86_64", "busybox"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed (apt-get install qemu-system-x86 busybox-static)")
        images = sorted(KERNELS.glob("boot/vmlinuz-*"))
        if not images:
            pytest.skip(f"no guest kernel in {KERNELS}: scripts/test fetches it, as root on Debian")
        release = images[-1].name.removeprefix("vmlinuz-")
        return cls(images[-1], KERNELS / "lib/modules" / release)

    def with_dependencies(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules in the order of loading; those built into the kernel have none."""
        files = {path.stem.replace("-", "_"): path for path in self.modules.rglob("*.ko")}
        ordered: dict[Path, None] = {}

        def add(name: str) -> None:
            path = files.get(name.replace("-", "_"))
            if path is None or path in ordered:
                return
            # The module's own list of what it needs, in the section that modinfo(8) prints.
            needs = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            for other in needs[1].decode().split(",") if needs else ():
                add(other)
            ordered[path] = None

        for name in names:
            add(name)
        return list(ordered)


def initramfs(kernel: Kernel, job: str) -> bytes:
    """A cpio archive (format newc) with busybox, the modules, e2fsprogs and friends, and `job`."""
    archive = Archive()
    for directory in ("bin", "proc", "sys", "dev", "mnt", "tools", "lib", "lib64"):
        archive.directory(directory)
    archive.file("bin/busybox", Path(shutil.which("busybox") or "").read_bytes(), executable=True)
    modules = kernel.with_dependencies(MODULES)
    for module in modules:
        archive.file(f"lib/{module.name}", module.read_bytes())
    archive.file("modules", "".join(f"/lib/{module.name}\n" for module in modules).encode())
    libraries: set[Path] = set()
    for name in TOOLS:
        tool = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
        if tool is None:
            pytest.skip(f"{name} is not installed")
        archive.file(f"tools/{name}", Path(tool).read_bytes(), executable=True)
        libraries.update(_libraries(tool))
    for library in sorted(libraries):
        folder = "lib64" if library.name.startswith("ld-linux") else "lib"
        archive.file(f"{folder}/{library.name}", library.read_bytes(), executable=True)
    archive.file("init", _INIT.format(done=DONE).encode(), executable=True)
    archive.file("job", job.encode())
    return archive.finished()


def _libraries(tool: str) -> Iterator[Path]:
    """The shared libraries of a program (ldd(1)), the loader among them."""
    for line in subprocess.check_output(["ldd", tool], text=True).splitlines():
        for word in line.split():
            if word.startswith("/"):
                yield Path(word)


class Archive:
    """A cpio archive in memory, as the kernel takes it (Documentation: early-userspace/buffer-format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._number = 0

    def directory(self, name: str) -> None:
        """Add an empty directory."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file."""
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def finished(self) -> bytes:
        """The whole archive; add no more."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._number += 1
        path = name.encode() + b"\0"
        fields = [self._number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [_padded(head), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class Guest:
    """A running virtual machine. `console` grows while it runs."""

    def __init__(self, directory: Path, name: str, job: str, drives: Sequence[str]) -> None:
        """`drives`: what -drive takes, but for the interface: each is a virtio disk, /dev/vda the first."""
        kernel = Kernel.find()
        initrd = directory / f"{name}.initramfs"
        initrd.write_bytes(initramfs(kernel, job))
        command = [
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-m",
            "256",
            "-nographic",
            "-no-reboot",
            "-nodefaults",
        ]
        command += ["-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(initrd)]
        command += ["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]
        for drive in drives:
            command += ["-drive", f"if=virtio,{drive}"]
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
        assert any(DONE in line for line in self.console), self.console
        return self.console

    def clean_up(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self.kill()
        self._reader.join(TIMEOUT_S)


def drive(path: Path, aio: str = "native") -> str:
    """A raw image as a disk: O_DIRECT, as the README advises; discards reach the image."""
    return f"file={path},format=raw,cache=none,aio={aio},discard=unmap,werror=report,rerror=report"
