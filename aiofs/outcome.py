"""How a server's shutdown ended, told to the `aiofs umount` that waits for it.

umount cannot see the exit status of a process that is not its child, and after the unmount there is no
file system left to ask. So the server keeps a small memory file, writes its last words into it, and
names its descriptor in info.json; umount opens it through /proc/PID/fd before it unmounts, and reads it
when the process has gone. Nothing in it: the server died before it had synced everything.
"""

from __future__ import annotations

import os

_ALL_SYNCED = "synced"


class Outcome:
    """The server's side."""

    def __init__(self, fd: int | None = None) -> None:
        """`fd`: one that was made earlier."""
        self.fd = os.memfd_create("aiofs-outcome", os.MFD_CLOEXEC) if fd is None else fd

    def write(self, failures: list[str]) -> None:
        """Say what could not be brought to disk; an empty list: everything was."""
        os.pwrite(self.fd, "\n".join(failures or [_ALL_SYNCED]).encode(), 0)


def open_of(pid: int, fd: int) -> int | None:
    """A descriptor for reading a server's outcome, or None where the kernel forbids it (another user's)."""
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def failures_in(fd: int) -> list[str]:
    """What could not be brought to disk, one sentence each; the server must have ended."""
    text = os.pread(fd, 1 << 16, 0).decode(errors="replace")
    if text == _ALL_SYNCED:
        return []
    return text.splitlines() or ["the server died before it had brought everything to disk"]
