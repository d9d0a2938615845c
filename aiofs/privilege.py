"""What a server may still do once it serves: its capabilities, and whether it can gain others.

Capabilities are of a thread, and inherited by those that it starts. So `limit` is for the main thread,
before there are others, after everything that takes more: the mount, the source, the sockets.

What stays, for root's mounts (an ordinary user has none to keep):

- to read images of anybody: DAC_READ_SEARCH;
- to write them, to make files in anybody's directory for whoever may, and to set owner, mode and times as
  who asks may: DAC_OVERRIDE, CHOWN, FOWNER, and FSETID, without which a file of another group loses its
  set-group-id bit with every chmod. The kernel checks who asks (`default_permissions`);
- IPC_LOCK: rings count against RLIMIT_MEMLOCK before Linux 5.12, and locked memory does on every kernel;
- SYS_ADMIN where the kernel gives rings to nobody else (kernel.io_uring_disabled=1);
- SYS_ADMIN, to unmount, and SYS_PTRACE, to name who holds the mount or a lock, where no keeper does that.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from .config import MountConfig
from .dataplane import system
from .errors import reason
from .source import Kind

log = logging.getLogger(__name__)

STATUS = Path("/proc/thread-self/status")
IO_URING_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")

_LIST = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
"""
_NAMES = tuple(_LIST.split())
"""By number (linux/capability.h), without CAP_."""

_READING = frozenset({"DAC_READ_SEARCH", "IPC_LOCK"})
_WRITING = frozenset({"DAC_OVERRIDE", "CHOWN", "FOWNER", "IPC_LOCK"})


@dataclass(frozen=True)
class Privileges:
    """What is in force; the field `privileges` of info.json."""

    no_new_privs: bool
    capabilities: list[str]
    """Those that are permitted, without CAP_, by number."""
    note: str
    """Why it can gain others; empty when it cannot."""


def needs(config: MountConfig, kind: Kind, *, keeper: bool) -> frozenset[str]:
    """The capabilities that a server of a source of this kind has to keep, of those that it has."""
    needed = _READING if config.read_only else _WRITING
    if kind is not Kind.DEVICE and not config.read_only:
        needed |= {"FSETID"}
    if config.aio in (None, "io_uring") and _rings_are_for_administrators():
        needed |= {"SYS_ADMIN"}
    if not keeper:
        needed |= {"SYS_ADMIN", "SYS_PTRACE"}
    return needed


def _rings_are_for_administrators() -> bool:
    try:
        return IO_URING_DISABLED.read_text().strip() == "1"
    except OSError:  # a kernel before 6.6
        return False


def limit(keep: frozenset[str], *, keeper: bool) -> Privileges:
    """Give up all capabilities but those in `keep`, and the way to others; what is in force then.

    Without a keeper an ordinary user's server needs fusermount3, which is set-user-id root, to unmount.
    """
    note = "without a keeper it needs fusermount3, which is set-user-id root, to unmount"
    try:
        system.limit_capabilities(sum(1 << _NAMES.index(name) for name in keep))
        if keeper or "SYS_ADMIN" in in_force(note).capabilities:
            system.refuse_new_privileges()
    except OSError as error:
        note = f"the kernel refused to take away the others: {reason(error)}"
        log.warning("the server keeps privileges that it does not need: %s", reason(error))
    return in_force(note)


def in_force(note: str) -> Privileges:
    """What this thread has."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    permitted = int(fields["CapPrm"], 16)
    held = [_name(number) for number in range(permitted.bit_length()) if permitted >> number & 1]
    no_new = fields["NoNewPrivs"].strip() == "1"
    return Privileges(no_new, held, "" if no_new else note)


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else str(number)
