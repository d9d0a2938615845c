"""util-linux's losetup, which sets loop devices up and takes them away; and who may run it.

It looks for a free device, and takes another one when somebody was faster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import AiofsError, BadInput

PROGRAM = "losetup"


def find() -> str:
    """The path of losetup. BadInput says what to install."""
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/sbin:/usr/sbin:/bin:/usr/bin")
    if program is None:
        raise BadInput(f"{PROGRAM} was not found; install it: apt-get install mount (it is in util-linux)")
    return program


def need_root(command: str) -> None:
    """BadInput when this process is not root's."""
    if os.geteuid() != 0:
        raise BadInput(f"'aiofs {command}' needs root, because loop devices do: sudo aiofs {command} ...")


def attach(image: Path, sector_bytes: int, *, read_only: bool, partitions: bool) -> str:
    """Attach a file with direct I/O; the device's name, `loop0`. AiofsError with what losetup said."""
    flags = ["--read-only"] if read_only else []
    flags += ["--partscan"] if partitions else []
    done = _run(
        "--find", "--show", "--direct-io=on", f"--sector-size={sector_bytes}", *flags, "--", str(image)
    )
    if done.returncode == 0:
        return Path(done.stdout.strip()).name
    said = _sentence(done)
    if "unused loop device" in said:
        raise BadInput(
            f"cannot attach {image}: no free loop device ({said}); load the module: modprobe loop "
            f"(in a container: start it with --device /dev/loop-control and the devices /dev/loopN)"
        )
    raise AiofsError(f"cannot attach {image}: {said}")


def detach(device: Path) -> None:
    """Ask the kernel to detach a device: now, or when its last user has gone. AiofsError."""
    done = _run("--detach", str(device))
    if done.returncode != 0:
        raise AiofsError(f"cannot detach {device}: {_sentence(done)}")


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find(), *words],
        env={**os.environ, "LC_ALL": "C"},  # its messages are read above
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def _sentence(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else f"{PROGRAM} ended with {done.returncode}"
