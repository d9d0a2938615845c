"""select.py: each row of the decision table, with evidence that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from aiofs import config, select
from aiofs.errors import BadInput
from aiofs.select import Blocking, Decision, Direct, Verdict, decide, named
from aiofs.storage import BlockDevice, Storage

DIRECT = Direct(True, "STATX_DIOALIGN: offset 512, memory 4", "in blocks of 512 bytes")
BUFFERED = Direct(False, "opened without it", "buffered, as --cache writeback asks")
EXT4 = Storage("ext4", (BlockDevice("vda", "virtio", rotational=False),))
MIB = 1 << 20


@dataclass(frozen=True)
class Status:
    """A probe's verdict, made up."""

    name: str
    works: bool = True
    reason: str = ""


@dataclass
class Facts:
    """Evidence of a fully allocated image on ext4 where everything works, but for what a test changes."""

    kernel: tuple[int, int] = (6, 18)
    locked_memory: int | None = 8 * MIB
    direct: Direct = DIRECT
    storage: Storage = EXT4
    size: int = MIB
    allocated: int = MIB
    copies_on_write: bool = False
    read_only: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    """Drivers whose probe says no, and why."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Drivers that cannot read the image, and why."""
    nowait: bool = True
    wide_nowait: bool = True
    waits: Blocking = field(default_factory=lambda: Blocking("32 writes", 0.0))
    asked: list[str] = field(default_factory=list)
    """The questions that cost time, as they were put."""

    def status(self, driver: str) -> Status:
        return Status(driver, driver not in self.refused, self.refused.get(driver, ""))

    def trial_read(self, driver: str) -> str:
        self.asked.append(f"read {driver}")
        return self.unreadable.get(driver, "")

    def takes_nowait(self) -> bool:
        return self.nowait

    def takes_wide_nowait(self) -> bool:
        self.asked.append("wide")
        return self.wide_nowait

    def blocking(self) -> Blocking:
        self.asked.append("blocking")
        return self.waits


def no_ring(**changes: object) -> Facts:
    """Facts where the kernel refuses io_uring."""
    return Facts(refused={"io_uring": "kernel.io_uring_disabled = 2"}, **changes)  # type: ignore[arg-type]


def failed(decision: Decision) -> list[tuple[str, str]]:
    """The tests that said no: driver, name."""
    return [(test.driver, test.name) for test in decision.tests if test.verdict is Verdict.NO]


def test_io_uring_where_all_is_well() -> None:
    """The first choice on a known file system with a device below it."""
    decision = decide(Facts())
    assert decision.driver == "io_uring"
    assert failed(decision) == [("sync", "in memory")]


def test_a_decision_asks_only_what_it_needs() -> None:
    """With io_uring chosen nothing of linux is tried."""
    facts = Facts()
    decide(facts)
    assert facts.asked == ["read io_uring", "wide"]


@pytest.mark.parametrize("filesystem", ["tmpfs", "ramfs"])
def test_a_file_system_in_memory_is_served_in_place(filesystem: str) -> None:
    """There is nothing to wait for, so nothing is handed to anybody."""
    decision = decide(Facts(storage=Storage(filesystem), direct=BUFFERED))
    assert decision.driver == "sync"
    assert "nothing to wait for" in decision.reason


def test_a_ring_that_is_refused_gives_linux_and_says_why() -> None:
    """The reason holds the sentence of the test that failed."""
    decision = decide(no_ring())
    assert decision.driver == "linux"
    assert "kernel.io_uring_disabled = 2" in decision.reason


@pytest.mark.parametrize(
    ("kernel", "limit", "driver"),
    [
        ((5, 11), 64 * 1024, "linux"),
        ((5, 11), None, "io_uring"),
        ((5, 11), 8 * MIB, "io_uring"),
        ((5, 12), 0, "io_uring"),
    ],
)
def test_locked_memory_counts_before_5_12(kernel: tuple[int, int], limit: int | None, driver: str) -> None:
    """A ring is refused for want of it on older kernels only."""
    assert decide(Facts(kernel=kernel, locked_memory=limit)).driver == driver


def stack(*kinds: str) -> Storage:
    """ext4 on block devices of these kinds."""
    return Storage("ext4", tuple(BlockDevice(f"{kind}0", kind, rotational=False) for kind in kinds))


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (Facts(storage=Storage("cifs")), "CIFS"),
        (Facts(storage=stack("md", "nvme"), kernel=(5, 16)), "md before"),
        (Facts(storage=stack("device mapper", "md"), kernel=(5, 16)), "md before"),
        (Facts(storage=stack("LVM", "nvme"), direct=BUFFERED), "LVM"),
        (Facts(storage=stack("rbd"), direct=BUFFERED), "rbd"),
    ],
)
def test_storage_with_a_history_is_not_given_to_io_uring(facts: Facts, word: str) -> None:
    """Each exclusion names what it is about."""
    decision = decide(facts)
    assert decision.driver != "io_uring"
    assert ("io_uring", "storage") in failed(decision)
    assert word in decision.reason


@pytest.mark.parametrize(
    "facts",
    [
        Facts(storage=stack("md"), kernel=(5, 17)),
        Facts(storage=stack("LVM")),
        Facts(storage=stack("rbd")),
        Facts(direct=BUFFERED),
    ],
)
def test_the_same_storage_without_its_trouble_is(facts: Facts) -> None:
    """A newer kernel or O_DIRECT takes the exclusion away."""
    assert decide(facts).driver == "io_uring"


def test_an_image_that_a_ring_cannot_read_is_not_given_to_it() -> None:
    """The trial read's error is the reason."""
    decision = decide(Facts(unreadable={"io_uring": "reading it: Operation not permitted"}))
    assert decision.driver == "linux"
    assert "Operation not permitted" in decision.reason


def test_copy_on_write_is_written_by_threads() -> None:
    """A ring reads in place, and would do the writes one after another."""
    facts = Facts(storage=Storage("btrfs"), copies_on_write=True)
    decision = decide(facts)
    assert (decision.driver, decision.writes_by_threads) == ("io_uring", True)
    assert "threads write" in decision.reason
    facts.read_only = True
    assert not decide(facts).writes_by_threads
    assert not decide(Facts(storage=Storage("btrfs"))).writes_by_threads


@pytest.mark.parametrize(
    ("refused", "unreadable", "wide"),
    [
        ({}, {}, "linux"),
        ({"linux": "fs.aio-max-nr"}, {}, "threads"),
        ({}, {"linux": "no"}, "threads"),
        ({"linux": "", "threads": ""}, {}, ""),
    ],
)
def test_wide_reads_that_a_ring_would_do_one_by_one_have_another_driver(
    refused: dict[str, str], unreadable: dict[str, str], wide: str
) -> None:
    """As on btrfs; the tests that led there are shown, and the reason says so."""
    facts = Facts(wide_nowait=False, refused=refused, unreadable=unreadable)
    decision = decide(facts)
    assert (decision.driver, decision.wide_driver) == ("io_uring", wide)
    verb = {"linux": "; linux reads", "threads": "; threads read"}.get(wide)
    assert decision.reason == f"passed all its tests{verb + ' what is longer than a block' if verb else ''}"
    assert {test.driver for test in decision.tests} >= {"linux"}


def test_wide_reads_and_copy_on_write_are_both_said() -> None:
    """btrfs does both; with chattr +C the first alone."""
    facts = Facts(storage=Storage("btrfs"), wide_nowait=False, copies_on_write=True)
    assert "longer than a block; copy-on-write: threads write" in decide(facts).reason
    assert (decide(facts).wide_driver, decide(facts).writes_by_threads) == ("linux", True)


def test_wide_reads_in_place_have_no_other_driver() -> None:
    """As on ext4 and xfs."""
    assert decide(Facts()).wide_driver == ""


def test_the_page_cache_is_not_asked_for_wide_reads() -> None:
    """Whether it has the image says nothing about the file system."""
    facts = Facts(direct=BUFFERED, wide_nowait=False)
    assert decide(facts).wide_driver == ""
    assert facts.asked == ["read io_uring"]


def test_a_file_that_refuses_nowait_is_not_given_to_a_ring() -> None:
    """io_uring would hand each request to a worker of the kernel: threads with another name."""
    decision = decide(Facts(nowait=False, storage=Storage("overlay")))
    assert decision.driver == "linux"
    assert "overlay refuses RWF_NOWAIT" in decision.reason


def test_a_buffered_image_is_never_given_to_linux() -> None:
    """io_submit blocks on it."""
    decision = decide(no_ring(direct=BUFFERED))
    assert decision.driver == "threads"
    assert "io_submit blocks on buffered images" in decision.reason


def test_contexts_that_are_used_up_give_threads() -> None:
    """Both reasons are told."""
    decision = decide(Facts(refused={"io_uring": "seccomp", "linux": "fs.aio-max-nr = 1 is used up"}))
    assert decision.driver == "threads"
    assert "seccomp" in decision.reason
    assert "fs.aio-max-nr" in decision.reason


@pytest.mark.parametrize(
    ("waits", "driver"), [(0.0, "linux"), (0.09, "linux"), (0.1, "threads"), (3.0, "threads")]
)
def test_a_sparse_image_is_decided_by_the_live_probe(waits: float, driver: str) -> None:
    """Under 0.1 voluntary context switches per write io_submit does not block."""
    facts = no_ring(allocated=4096, waits=Blocking("32 writes", waits))
    assert decide(facts).driver == driver
    assert "blocking" in facts.asked


@pytest.mark.parametrize(
    "facts",
    [
        no_ring(),
        no_ring(allocated=0, read_only=True),
        no_ring(size=0, allocated=0, storage=Storage("block device", is_block_device=True)),
    ],
)
def test_what_needs_no_blocks_is_given_to_linux_without_the_probe(facts: Facts) -> None:
    """Allocated images, images that are only read, and block devices."""
    assert decide(facts).driver == "linux"
    assert "blocking" not in facts.asked


@pytest.mark.parametrize(
    "facts",
    [no_ring(size=0, allocated=0), no_ring(copies_on_write=True), no_ring(storage=Storage("fuse.x"))],
)
def test_what_will_need_blocks_is_probed(facts: Facts) -> None:
    """An empty image grows, copy-on-write gives new blocks to each write, and the unknown is not trusted."""
    decide(facts)
    assert "blocking" in facts.asked


def test_a_probe_that_cannot_be_made_counts_against_linux() -> None:
    """The careful choice, with the reason."""
    decision = decide(no_ring(allocated=0, waits=Blocking("no live probe", None, "no temporary file")))
    assert decision.driver == "threads"
    assert "no temporary file" in decision.reason


def test_sync_is_the_last_resort() -> None:
    """Where not even threads can be made."""
    refused = dict.fromkeys(("io_uring", "linux", "threads"), "no")
    assert decide(Facts(refused=refused)).driver == "sync"


def test_a_machine_where_nothing_works_is_told_so() -> None:
    """No driver at all is bad input with the reasons, not a crash."""
    with pytest.raises(BadInput, match="no AIO driver works"):
        decide(Facts(refused=dict.fromkeys(config.DRIVERS, "no")))


def test_posix_is_never_chosen_by_itself() -> None:
    """It is there for comparison."""
    assert "posix" not in {candidate.driver for candidate in select.CANDIDATES}


WORKING = [Status(name) for name in config.DRIVERS]
OLD_KERNEL: Sequence[Status] = [
    Status("io_uring", False, "kernel.io_uring_disabled is 2"),
    Status("linux", False, "fs.aio-max-nr is used up"),
    Status("threads"),
    Status("posix"),
    Status("sync"),
]


def test_the_driver_asked_for_is_taken() -> None:
    """Also posix, also when a better one works."""
    assert named("posix", WORKING).driver == "posix"


def test_a_driver_that_does_not_work_is_refused_with_its_reason() -> None:
    """Never another one silently; the message lists those that work."""
    with pytest.raises(BadInput, match=r"io_uring does not work.*io_uring_disabled.*threads posix sync"):
        named("io_uring", OLD_KERNEL)
