"""What a guest boots from: an initramfs whose init is one shell script, and QEMU's command line.

The guest runs the script, says DONE on its console, and powers off. Nothing is installed in it, so nothing of
it outlives the run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .archive import Archive
from .kernel import Kernel, Missing

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


def initramfs(kernel: Kernel, job: str, *, modules: Iterable[str], tools: Iterable[str]) -> bytes:
    """An archive with busybox, these modules and programs with all that they need, and `job`. Missing."""
    archive = Archive()
    for directory in ("bin", "proc", "sys", "dev", "mnt", "tools", "lib", "lib64"):
        archive.directory(directory)
    archive.file("bin/busybox", program("busybox", "busybox-static").read_bytes(), executable=True)
    files = kernel.with_dependencies(modules)
    for module in files:
        archive.file(f"lib/{module.name}", module.read_bytes())
    archive.file("modules", "".join(f"/lib/{module.name}\n" for module in files).encode())
    libraries: set[Path] = set()
    for name in tools:
        tool = program(name)
        archive.file(f"tools/{name}", tool.read_bytes(), executable=True)
        libraries.update(_libraries(tool))
    for library in sorted(libraries):
        folder = "lib64" if library.name.startswith("ld-linux") else "lib"
        archive.file(f"{folder}/{library.name}", library.read_bytes(), executable=True)
    archive.file("init", _INIT.format(done=DONE).encode(), executable=True)
    archive.file("job", job.encode())
    return archive.finished()


def program(name: str, package: str = "") -> Path:
    """Where a program is, wherever the system keeps it. Missing."""
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise Missing(f"{name} is not installed" + (f" (apt-get install {package})" if package else ""))
    return Path(found)


def _libraries(tool: Path) -> Iterator[Path]:
    """The shared libraries of a program (ldd(1)), the loader among them."""
    for line in subprocess.check_output(["ldd", tool], text=True).splitlines():
        for word in line.split():
            if word.startswith("/"):
                yield Path(word)


def command(kernel: Kernel, initrd: Path, drives: Sequence[str], *, memory_mib: int) -> list[str]:
    """QEMU's, for software emulation; the console is its standard output. Missing.

    `drives`: what -drive takes, but for the interface: each is a virtio disk, /dev/vda the first.
    """
    qemu = program("qemu-system-x86_64", "qemu-system-x86")
    words = [
        str(qemu),
        "-accel",
        "tcg",
        "-m",
        str(memory_mib),
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]
    words += ["-kernel", str(kernel.image), "-initrd", str(initrd)]
    words += ["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]
    for drive in drives:
        words += ["-drive", f"if=virtio,{drive}"]
    return words
