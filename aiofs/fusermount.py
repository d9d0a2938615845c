"""fusermount3, the program that may mount for ordinary users: /dev/fuse comes from it, it unmounts.

It is used for root as well, so that there is one path. It passes the open /dev/fuse descriptor back over
the socket that `_FUSE_COMMFD` names. This room knows nothing of the server behind the descriptor.
"""

from __future__ import annotations

import array
import enum
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import AiofsError, BadInput

PROGRAM = "fusermount3"


def find() -> str:
    """The path of fusermount3. BadInput says what to install."""
    program = shutil.which(PROGRAM) or shutil.which(
        PROGRAM, path="/usr/bin:/bin:/usr/local/bin:/sbin:/usr/sbin"
    )
    if program is None:
        raise BadInput(f"{PROGRAM} was not found; install it: apt-get install fuse3")
    return program


def mount_options(source: str, *, allow_other: bool, read_only: bool, noexec: bool = False) -> str:
    """The text for `fusermount3 -o`. Commas and backslashes of the source are escaped as it wants it."""
    fsname = source.replace("\\", "\\\\").replace(",", "\\,")
    options = ["nosuid", "nodev", "default_permissions", f"fsname={fsname}", "subtype=aiofs"]
    if allow_other:
        options.append("allow_other")
    if read_only:
        options.append("ro")
    if noexec:
        options.append("noexec")
    return ",".join(options)


def mount(mountpoint: Path, options: str) -> int:
    """Mount; returns the /dev/fuse descriptor, close-on-exec, for the caller to close. AiofsError."""
    program = find()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            done = subprocess.Popen(
                [program, "-o", options, "--", str(mountpoint)],
                env={**_environment(), "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        # With the last copy of the other end closed, this returns when it sends or when it ends.
        fd = _receive_descriptor(ours)
        _, said = done.communicate()
    if done.returncode != 0 or fd is None:
        if fd is not None:
            os.close(fd)
        raise _refusal(mountpoint, _sentence(said), done.returncode)
    return fd


class Unmounting(enum.Enum):
    """How an attempt to unmount ended."""

    DONE = "unmounted"
    BUSY = "busy"
    NOT_MOUNTED = "not mounted"


def unmount(mountpoint: Path, *, lazy: bool = False) -> Unmounting:
    """Unmount with fusermount3; lazily: detach now, end when the last user has gone.

    AiofsError for anything but the three ways that callers have to tell apart. Blocks while the kernel
    writes back; never call it from the thread that serves the mount.
    """
    done = subprocess.run(
        [find(), "-u", *(["-z"] if lazy else []), "--", str(mountpoint)],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 0:
        return Unmounting.DONE
    said = _sentence(done.stderr)
    if "busy" in said.lower():
        return Unmounting.BUSY
    # "Invalid argument" comes from umount2 as root, "not found in /etc/mtab" from its own check as a user.
    if "Invalid argument" in said or "not found" in said:
        return Unmounting.NOT_MOUNTED
    raise AiofsError(f"cannot unmount {mountpoint}: {said or f'{PROGRAM} ended with {done.returncode}'}")


def clear_hint(mountpoint: Path) -> str:
    """The command that clears a mount whose server has died."""
    return f"{PROGRAM} -u -z {mountpoint}"


def _environment() -> dict[str, str]:
    # Its messages are read above, so they must not be translated.
    return {**os.environ, "LC_ALL": "C"}


def _receive_descriptor(ours: socket.socket) -> int | None:
    _, ancillary, _, _ = ours.recvmsg(
        1, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data)[0]
    return None


def _sentence(said: bytes) -> str:
    """Its last line without its own name in front."""
    lines = said.decode(errors="replace").strip().splitlines()
    return re.sub(rf"^\S*{PROGRAM}: ", "", lines[-1]) if lines else ""


@dataclass(frozen=True)
class _Hint:
    sign: str
    way_out: str


_HINTS = (
    _Hint("no write access", "use a mountpoint that you may write to"),
    _Hint("too many FUSE filesystems", "raise mount_max in /etc/fuse.conf"),
    _Hint(
        "Operation not permitted",
        "in a container: --device /dev/fuse --cap-add SYS_ADMIN; "
        "as an ordinary user: fusermount3 must be set-user-id root",
    ),
    _Hint("No such device", "load the kernel module: modprobe fuse"),
)


def _refusal(mountpoint: Path, said: str, status: int) -> AiofsError:
    """BadInput with the way out where one is known."""
    text = f"cannot mount on {mountpoint}: {said or f'{PROGRAM} ended with {status}'}"
    for hint in _HINTS:
        if hint.sign in said:
            return BadInput(f"{text}; {hint.way_out}")
    return AiofsError(text)
