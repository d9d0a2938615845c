"""`--aio auto`: which driver serves an image. The tests, in their order; no I/O of its own.

Each test is a function that looks at one thing and says what it looked at, its verdict, and why. A driver
is chosen when all of its tests pass; the drivers are asked in the order of CANDIDATES, the last of which
always works. What the tests look at comes from an Evidence (evidence.py has the real one), which asks the
machine only when a test wants to know.

A driver that the user named is used or refused, never replaced.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .errors import BadInput
from .storage import Storage

BLOCKING_LIMIT = 0.1
"""Voluntary context switches per submitted io, above which io_submit counts as blocking (Seastar's limit)."""

MD_FIXED = (5, 17)
"""The kernel from which md honours requests that must not wait, as io_uring makes them."""

UNCOUNTED_MEMORY = (5, 12)
"""The kernel from which rings are not counted against RLIMIT_MEMLOCK."""

RING_BYTES = 512 * 1024
"""Memory that a ring of the default queue depth locks on older kernels, generously."""


class Verdict(enum.StrEnum):
    """What a test found."""

    YES = "yes"
    NO = "no"
    NOTED = "noted"
    """Nothing passes or fails: later tests build on it."""


@dataclass(frozen=True)
class Test:
    """One test of one image."""

    name: str
    looked_at: str
    verdict: Verdict
    reason: str
    driver: str = ""
    """The driver that this test speaks for or against; empty when it is about the image."""


@dataclass(frozen=True)
class Decision:
    """The driver for an image, why, and every test that led there."""

    driver: str
    reason: str
    tests: tuple[Test, ...] = ()
    writes_by_threads: bool = False
    """Writes go to a pool of threads beside the driver."""
    wide_driver: str = ""
    """Does the reads of more than a block; empty: `driver` does."""


@dataclass(frozen=True)
class Direct:
    """How O_DIRECT stands for an image."""

    works: bool
    looked_at: str
    reason: str


@dataclass(frozen=True)
class Blocking:
    """What direct writes that allocate did to the thread that submitted them."""

    looked_at: str
    per_io: float | None
    """Voluntary context switches per io; None when it could not be tried, for `reason`."""
    reason: str = ""


class Status(Protocol):
    """The verdict of a driver's probe of this machine; dataplane.DriverStatus is one."""

    @property
    def name(self) -> str: ...
    @property
    def works(self) -> bool: ...
    @property
    def reason(self) -> str: ...


class Evidence(Protocol):
    """What the tests may look at. Properties are known; methods ask the machine and take milliseconds."""

    @property
    def kernel(self) -> tuple[int, int]: ...
    @property
    def locked_memory(self) -> int | None:
        """RLIMIT_MEMLOCK in bytes; None: no limit."""

    @property
    def direct(self) -> Direct: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def size(self) -> int: ...
    @property
    def allocated(self) -> int:
        """Bytes of the image that the file system has given it."""

    @property
    def copies_on_write(self) -> bool:
        """Each write of this image takes new blocks."""

    @property
    def read_only(self) -> bool:
        """Nothing will be written to it."""

    def status(self, driver: str) -> Status: ...
    def trial_read(self, driver: str) -> str:
        """Read the image's first bytes through a driver: "" when they came, else what went wrong."""

    def takes_nowait(self) -> bool:
        """The file answers a request that must not wait (RWF_NOWAIT) rather than refusing it."""

    def takes_wide_nowait(self) -> bool:
        """It does so for reads of more than one block as well."""

    def blocking(self) -> Blocking:
        """Submit writes that allocate to a temporary file beside the image."""


# -- about the image --


def direct(evidence: Evidence) -> Test:
    """O_DIRECT works: without it `linux` blocks."""
    found = evidence.direct
    return Test("O_DIRECT", found.looked_at, Verdict.YES if found.works else Verdict.NO, found.reason)


def storage(evidence: Evidence) -> Test:
    """What holds the image."""
    found = evidence.storage
    note = "known" if found.is_known else f"{found.filesystem} is not known to aiofs: the careful choice"
    return Test("storage", str(found), Verdict.NOTED, note)


# -- sync --


def in_memory(evidence: Evidence) -> Test:
    """There is no device to wait for, so a copy in place is all there is to do."""
    name, looked_at = "in memory", evidence.storage.filesystem
    if evidence.storage.in_memory:
        return Test(name, looked_at, Verdict.YES, "the page cache is the store")
    return Test(name, looked_at, Verdict.NO, "has a device to wait for")


# -- io_uring --


def uring_works(evidence: Evidence) -> Test:
    """The kernel lets this process make a ring with the operations it takes."""
    return _works(evidence, "io_uring", "sysctl, a trial ring, its operations")


def uring_memory(evidence: Evidence) -> Test:
    """A ring of full depth will not run into RLIMIT_MEMLOCK."""
    name, limit = "locked memory", evidence.locked_memory
    looked_at = f"Linux {_version(evidence.kernel)}"
    if evidence.kernel >= UNCOUNTED_MEMORY:
        return Test(name, looked_at, Verdict.YES, "rings are not counted from 5.12 on")
    looked_at += f", RLIMIT_MEMLOCK {'unlimited' if limit is None else limit}"
    if limit is None or limit >= RING_BYTES:
        return Test(name, looked_at, Verdict.YES, "enough for a ring")
    return Test(name, looked_at, Verdict.NO, f"a ring takes up to {RING_BYTES} bytes: raise it (ulimit -l)")


def uring_storage(evidence: Evidence) -> Test:
    """Storage on which io_uring is known to work and to be worth it."""
    name, found = "storage", evidence.storage
    kind = _uring_trouble(evidence)
    if kind:
        return Test(name, found.kinds, Verdict.NO, kind)
    return Test(name, found.kinds, Verdict.YES, "no trouble known")


def _uring_trouble(evidence: Evidence) -> str:
    found = evidence.storage
    if found.filesystem in ("cifs", "smb3", "smbfs"):
        return "io_uring over CIFS has lost its connection under load"
    if found.holds("md") and evidence.kernel < MD_FIXED:
        return f"md before Linux {_version(MD_FIXED)} fails requests that must not wait"
    if not evidence.direct.works and (found.holds("LVM") or found.holds("rbd")):
        kind = "LVM" if found.holds("LVM") else "rbd"
        return f"io_uring has hung on buffered images on {kind}"
    return ""


def uring_trial(evidence: Evidence) -> Test:
    """This image can be read through a ring, in place rather than by one of the kernel's workers."""
    name, looked_at = "trial read", "reads: through a ring, RWF_NOWAIT"
    error = evidence.trial_read("io_uring")
    if error:
        return Test(name, looked_at, Verdict.NO, error)
    if not evidence.takes_nowait():
        reason = f"{evidence.storage.filesystem} refuses RWF_NOWAIT: each request would go to a kernel worker"
        return Test(name, looked_at, Verdict.NO, reason)
    return Test(name, looked_at, Verdict.YES, "read, with no kernel worker")


def uring_wide_reads(evidence: Evidence) -> Test:
    """Reads of several blocks, as merging makes them, are done in place too."""
    name, looked_at = "wide reads", "reads: one block, two; RWF_NOWAIT"
    if not evidence.direct.works:
        return Test(name, evidence.direct.looked_at, Verdict.YES, "from the page cache")
    if evidence.takes_wide_nowait():
        return Test(name, looked_at, Verdict.YES, "in place")
    reason = "of two blocks: refused; a ring would do them one by one"
    return Test(name, looked_at, Verdict.NOTED, reason)


def uring_writes(evidence: Evidence) -> Test:
    """Writes are done in place too; where each needs new blocks, a kernel worker does them in turn."""
    name = "writes"
    if evidence.copies_on_write and not evidence.read_only:
        looked_at = f"{evidence.storage.filesystem} copies on write"
        return Test(name, looked_at, Verdict.NOTED, "a ring would do them one by one: threads write")
    return Test(name, evidence.storage.filesystem, Verdict.YES, "in place")


# -- linux --


def linux_direct(evidence: Evidence) -> Test:
    """O_DIRECT: io_submit blocks for everything else."""
    name = "O_DIRECT"
    if evidence.direct.works:
        return Test(name, evidence.direct.looked_at, Verdict.YES, "io_submit need not block")
    return Test(name, evidence.direct.looked_at, Verdict.NO, "io_submit blocks on buffered images")


def linux_works(evidence: Evidence) -> Test:
    """The kernel has room for one more context."""
    return _works(evidence, "linux", "io_setup under fs.aio-max-nr")


def linux_trial(evidence: Evidence) -> Test:
    """This image can be read through io_submit."""
    error = evidence.trial_read("linux")
    verdict = Verdict.NO if error else Verdict.YES
    return Test("trial read", "a read through io_submit", verdict, error or "read")


def linux_blocks(evidence: Evidence) -> Test:
    """Writes need no new blocks, or the file system gives them without making io_submit wait."""
    name = "allocation"
    looked_at = f"{evidence.allocated} of {evidence.size} bytes allocated"
    if evidence.storage.is_block_device:
        return Test(name, "a block device", Verdict.YES, "its blocks are all there")
    if evidence.read_only:
        return Test(name, "read-only", Verdict.YES, "nothing will be allocated")
    in_place = evidence.storage.is_known and not evidence.copies_on_write
    if evidence.allocated >= evidence.size > 0 and in_place:
        return Test(name, looked_at, Verdict.YES, "no write needs new blocks")
    tried = evidence.blocking()
    looked_at += f"; {tried.looked_at}"
    if tried.per_io is None:
        return Test(name, looked_at, Verdict.NO, f"io_submit may block: {tried.reason}")
    count = f"{tried.per_io:.2f} waits per write"
    if tried.per_io < BLOCKING_LIMIT:
        return Test(name, looked_at, Verdict.YES, f"io_submit does not block here: {count}")
    return Test(name, looked_at, Verdict.NO, f"io_submit blocks while blocks are allocated: {count}")


# -- threads, sync --


def threads_work(evidence: Evidence) -> Test:
    """Threads can be made."""
    return _works(evidence, "threads", "a pool of threads")


def sync_works(evidence: Evidence) -> Test:
    """preadv and pwritev: always."""
    return _works(evidence, "sync", "preadv, pwritev")


def _works(evidence: Evidence, driver: str, looked_at: str) -> Test:
    status = evidence.status(driver)
    verdict = Verdict.YES if status.works else Verdict.NO
    return Test("the kernel", looked_at, verdict, status.reason or "works on this machine")


# -- the decision --

ABOUT_THE_IMAGE: Sequence[Callable[[Evidence], Test]] = (direct, storage)


@dataclass(frozen=True)
class Candidate:
    """A driver, the tests that it has to pass, and what it means when it has."""

    driver: str
    tests: Sequence[Callable[[Evidence], Test]]
    because: str


IN_PLACE = Candidate("sync", (in_memory,), "nothing to wait for, a copy in place is quickest")

CANDIDATES = (
    IN_PLACE,
    Candidate(
        "io_uring",
        (uring_works, uring_memory, uring_storage, uring_trial, uring_wide_reads, uring_writes),
        "passed all its tests",
    ),
    Candidate("linux", (linux_direct, linux_works, linux_trial, linux_blocks), "does not block here"),
    Candidate("threads", (threads_work,), "works everywhere"),
    Candidate("sync", (sync_works,), "the last resort"),
)
"""First choice first. `posix` is for comparison: `threads` does its job better."""

WIDE_READS = (
    Candidate("linux", (linux_works, linux_trial), "linux reads what is longer than a block"),
    Candidate("threads", (threads_work,), "threads read what is longer than a block"),
)
"""For reads of more than a block beside a ring, where uring_wide_reads has noted something."""


def decide(evidence: Evidence) -> Decision:
    """The driver for an image that the user named none for. BadInput when not even `sync` works."""
    tests = [test(evidence) for test in ABOUT_THE_IMAGE]
    against: list[str] = []
    for candidate in CANDIDATES:
        refusal, noted = _ask(candidate, evidence, tests)
        if refusal is None:
            wide = _wide_reads(evidence, tests) if uring_wide_reads in noted else None
            beside = [wide.because] if wide else []
            if uring_writes in noted:
                beside.append("copy-on-write: threads write")
            return Decision(
                candidate.driver,
                "; ".join([candidate.because, *beside, *against]),
                tuple(tests),
                writes_by_threads=uring_writes in noted,
                wide_driver=wide.driver if wide else "",
            )
        if candidate is not IN_PLACE:
            against.append(f"not {candidate.driver}: {refusal.reason}")
    raise BadInput(f"no AIO driver works on this machine: {'; '.join(against)}")


def _ask(
    candidate: Candidate, evidence: Evidence, tests: list[Test]
) -> tuple[Test | None, set[Callable[[Evidence], Test]]]:
    """Run its tests, adding them to `tests`. The one that refuses it, if any; those that noted something."""
    noted: set[Callable[[Evidence], Test]] = set()
    for test in candidate.tests:
        found = replace(test(evidence), driver=candidate.driver)
        tests.append(found)
        if found.verdict is Verdict.NO:
            return found, noted
        if found.verdict is Verdict.NOTED:
            noted.add(test)
    return None, noted


def _wide_reads(evidence: Evidence, tests: list[Test]) -> Candidate | None:
    return next((each for each in WIDE_READS if _ask(each, evidence, tests)[0] is None), None)


def named(driver: str, statuses: Sequence[Status]) -> Decision:
    """The driver that the user named. BadInput when it does not work: never another one silently."""
    works = " ".join(status.name for status in statuses if status.works) or "(none works)"
    for status in statuses:
        if status.name != driver:
            continue
        if status.works:
            test = Test("named", f"--aio {driver}", Verdict.YES, "asked for", driver)
            return Decision(driver, "asked for", (test,))
        raise BadInput(
            f"AIO driver {driver} does not work here: {status.reason}; use --aio with one of: {works}"
        )
    raise BadInput(f"AIO driver {driver} is not built in; use one of: {works}")


def _version(kernel: tuple[int, int]) -> str:
    return f"{kernel[0]}.{kernel[1]}"
