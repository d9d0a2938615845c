"""What `--aio auto` looks at: the machine once, the storage once a mount, and what is particular to an image.

Everything that costs time is asked when a test first wants to know, and what is true of the whole file system
is kept: a directory of 10,000 images is not probed one by one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from dataclasses import dataclass, field

from . import kernel, trial
from .dataplane import DriverStatus, drivers, system
from .select import Blocking, Direct
from .source import Source
from .storage import Storage
from .trial import Queues

_FS_IOC_GETFLAGS = 0x80086601
_FS_NOCOW_FL = 0x00800000
"""linux/fs.h: the attributes of a file, and that of chattr +C."""


def locked_memory() -> int | None:
    """RLIMIT_MEMLOCK in bytes; None: no limit, or a process that need not heed it (CAP_IPC_LOCK)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY or os.geteuid() == 0 else soft


@dataclass
class Machine:
    """What is the same for all images of this machine."""

    kernel: tuple[int, int]
    locked_memory: int | None
    """Bytes; None: no limit."""
    statuses: dict[str, DriverStatus]
    """By driver. Replaced by `refuse` when a driver fails after its probe."""

    @classmethod
    def look(cls) -> Machine:
        """Ask the kernel, and every driver's probe."""
        return cls(kernel.version()[:2], locked_memory(), {status.name: status for status in drivers()})

    def refuse(self, driver: str, reason: str) -> None:
        """From now on this driver does not work here."""
        known = self.statuses[driver]
        self.statuses[driver] = DriverStatus(driver, known.description, works=False, reason=reason)


@dataclass
class Surroundings:
    """What is the same for all images of a source: one file system."""

    source: Source
    machine: Machine
    storage: Storage
    _blocking: dict[bool, Blocking] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, machine: Machine) -> Surroundings:
        """Those of a source that is open."""
        return cls(source, machine, source.storage())

    def blocking(self, queues: Queues, growing: bool) -> Blocking:
        """How direct writes go here that fill holes, or make a file longer; each tried once."""
        if growing not in self._blocking:
            self._blocking[growing] = self._try_blocking(queues, growing)
        return self._blocking[growing]

    def _try_blocking(self, queues: Queues, growing: bool) -> Blocking:
        looked_at = "no live probe"
        if self.source.read_only:
            return Blocking(looked_at, None, "nothing may be written")
        flags = os.O_TMPFILE | os.O_RDWR | os.O_DIRECT
        try:
            fd = system.open_beneath(self.source.root_fd, b".", flags, 0o600)
        except OSError as error:
            return Blocking(
                looked_at, None, f"no temporary file beside it ({os.strerror(error.errno or errno.EIO)})"
            )
        try:
            return trial.blocking(queues, fd, growing)
        except OSError as error:
            return Blocking(
                looked_at, None, f"a temporary file beside it: {os.strerror(error.errno or errno.EIO)}"
            )
        finally:
            os.close(fd)


@dataclass(frozen=True)
class ImageEvidence:
    """One image that is open; satisfies select.Evidence."""

    surroundings: Surroundings
    queues: Queues
    """To try drivers with."""
    fd: int
    """Opened as it will be served."""
    direct: Direct
    size: int
    """Bytes."""
    allocated: int
    """Bytes."""
    read_only: bool

    @property
    def kernel(self) -> tuple[int, int]:
        """The running kernel's version."""
        return self.surroundings.machine.kernel

    @property
    def locked_memory(self) -> int | None:
        """RLIMIT_MEMLOCK in bytes; None: no limit."""
        return self.surroundings.machine.locked_memory

    @property
    def storage(self) -> Storage:
        """What holds the image."""
        return self.surroundings.storage

    @property
    def copies_on_write(self) -> bool:
        """The file system does, and the file was not exempted (chattr +C)."""
        return self.storage.copies_on_write and not self._is_exempt()

    def _is_exempt(self) -> bool:
        try:
            flags = fcntl.ioctl(self.fd, _FS_IOC_GETFLAGS, bytes(8))
        except OSError:  # a file system without such flags
            return False
        return bool(int.from_bytes(flags[:4], sys.byteorder) & _FS_NOCOW_FL)

    def status(self, driver: str) -> DriverStatus:
        """The probe of a driver on this machine."""
        return self.surroundings.machine.statuses[driver]

    def trial_read(self, driver: str) -> str:
        """As trial.read."""
        return trial.read(self.queues, driver, self.fd)

    def takes_nowait(self) -> bool:
        """As trial.takes_nowait."""
        return trial.takes_nowait(self.fd)

    def takes_wide_nowait(self) -> bool:
        """As trial.takes_wide_nowait. Unknown, as of an empty image: yes, but not on copy-on-write."""
        found = trial.takes_wide_nowait(self.fd, self.size)
        return not self.storage.copies_on_write if found is None else found

    def blocking(self) -> Blocking:
        """As trial.blocking, on a temporary file of the same file system; an empty image will grow."""
        return self.surroundings.blocking(self.queues, growing=self.size == 0)
