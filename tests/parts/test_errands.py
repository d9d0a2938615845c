"""What a server asks its keeper for, over their channel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from planes import run

from aiofs import errands, holders, mounttable, top
from aiofs.channel import Channel
from aiofs.errors import AiofsError
from aiofs.fusermount import Unmounting
from aiofs.helping import KeepersHelp
from aiofs.holders import Holder, Holders
from aiofs.keeperlink import KeeperLink

WORDS = ("role", "config", "mount", "keeper", "started", "restarts", "service", "report")
ORDER = {**dict.fromkeys(WORDS, 0), "orphans": []}
MOUNT = mounttable.kept({"device": 0, "mount_id": -1, "mountpoint": "/nothing/is/mounted/here"})


Linked = tuple[Channel, KeeperLink]


@pytest.fixture
def linked() -> Iterator[Linked]:
    """A keeper's end, and a server that has its order."""
    keeper, server = Channel.pair()
    keeper.send(ORDER)
    yield keeper, KeeperLink(server)
    keeper.close()
    server.close()


def test_answers_go_to_those_who_asked(linked: Linked) -> None:
    """In whatever order they come; one that failed is its sentence."""
    keeper, link = linked
    got: dict[str, Any] = {}

    async def ask(what: str) -> None:
        try:
            got[what] = await link.ask(what)
        except AiofsError as error:
            got[what] = str(error)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.listen)
            nursery.start_soon(ask, "one")
            nursery.start_soon(ask, "two")
            orders = []
            for _ in range(2):
                await trio.lowlevel.wait_readable(keeper.fileno())
                orders.append((keeper.receive() or ({}, []))[0])
            for order in reversed(orders):
                told = {"failed": "it cannot"} if order["what"] == "one" else {"x": 2}
                keeper.send({"is": "answer", "id": order["id"], **told})
            while len(got) < 2:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert got["one"] == "it cannot"
        assert got["two"]["x"] == 2

    run(scenario)


def test_the_death_of_the_keeper_is_an_answer(linked: Linked) -> None:
    """To who waits, and to who asks afterwards."""
    keeper, link = linked

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.listen)

            async def die() -> None:
                await trio.lowlevel.wait_readable(keeper.fileno())
                keeper.close()

            nursery.start_soon(die)
            for _ in range(2):
                with pytest.raises(
                    AiofsError, match="the keeper, which had the privileges for that, has died"
                ):
                    await KeepersHelp(link).unmount(lazy=False)
        assert link.gone

    run(scenario)


def test_an_answer_fits_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holders call themselves and their files, and however many there are."""
    many = Holders([Holder(f"pid {n} (\udcff)", "\udcff" * 5000) for n in range(500)])
    monkeypatch.setattr(holders, "holders_of", lambda _: many)
    answer = errands.carry_out({"what": "name_holders"}, MOUNT, os.getpid())
    assert answer["lines"][-1] == "468 more"
    keeper, server = Channel.pair()
    keeper.send(answer)
    assert server.receive() == (answer, [])
    keeper.close()
    server.close()


def test_what_is_not_there_is_not_unmounted() -> None:
    """The mount that is named is the keeper's own: nothing else on its mountpoint is touched."""
    assert errands.carry_out({"what": "unmount", "lazy": True}, MOUNT, 0) == {
        "how": Unmounting.NOT_MOUNTED.name
    }
    with pytest.raises(LookupError, match="no errand is called 'mount'"):
        errands.carry_out({"what": "mount"}, MOUNT, 0)


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mounttable.Mount:
    """A mount that has gone; the kernel has given its number, and its device's, to the next one."""
    table = tmp_path / "mountinfo"
    lines = (
        f"36 35 0:45 / {tmp_path}/next rw - fuse.aiofs /images rw",
        f"37 35 0:46 / {tmp_path}/gone rw - ext4 /dev/x rw",
    )
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounttable, "MOUNTINFO", table)
    (tmp_path / "gone").mkdir()
    return mounttable.kept(
        {"device": os.makedev(0, 45), "mount_id": 36, "mountpoint": str(tmp_path / "gone")}
    )


def test_the_number_of_a_mount_that_has_gone_is_not_it(gone: mounttable.Mount) -> None:
    """What is at its place now stays mounted, and nobody says that it is mounted over."""
    assert errands.carry_out({"what": "unmount", "lazy": False}, gone, 0) == {"how": "NOT_MOUNTED"}


def test_who_watches_it_is_told_that_it_has_gone(gone: mounttable.Mount) -> None:
    """Not that its files cannot be read."""
    with pytest.raises(AiofsError, match=f"^{gone.mountpoint} has been unmounted$"):
        top.run(gone, top.Options(interval_s=0.1, count=1, batch=True))
