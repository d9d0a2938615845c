"""Facts about the machine that a number needs beside it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from aiofs.bench.machine import cpu_model


def facts(directory: Path) -> dict[str, str]:
    """Kernel, CPU, memory, file system of `directory`, versions of what is compared."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "file system": _file_system(directory),
        "python": platform.python_version(),
        "aiofs": _version("aiofs", "--version"),
        "fio": _version("fio", "--version"),
        "qemu-storage-daemon": _version("qemu-storage-daemon", "--version"),
        "nbdkit": _version("nbdkit", "--version"),
        "nbdfuse": _version("nbdfuse", "--version"),
    }


def _file_system(directory: Path) -> str:
    """By the mount table: statfs gives ext4 the number it shares with ext2 and ext3."""
    done = subprocess.run(["df", "--output=fstype", directory], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def _version(*command: str) -> str:
    found = re.search(r"\d+(\.\d+)+", _first_line(*command))
    return found[0] if found else "not installed"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()
