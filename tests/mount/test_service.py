"""A foreground server as a service: what it tells a service manager, which is a datagram socket here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from mounting import TIMEOUT_S, MountedFs, is_mounted, run_aiofs

import aiofs
from aiofs.service import Manager as ServiceManager
from aiofs.service import Service

Mounting = Callable[..., MountedFs]
UNIT = Path(aiofs.__file__).parent / "systemd" / "aiofs@.service"


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(TIMEOUT_S)

    def hear(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def heard_all(self) -> list[dict[str, str]]:
        """What has come and was not heard yet."""
        self._socket.setblocking(False)
        messages = []
        try:
            while True:
                messages.append(self.hear())
        except BlockingIOError:
            return messages

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """One that listens on a socket in a directory, and one on an abstract socket; servers are told of it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@aiofs-test-{os.getpid()}"
    made = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield made
    made.close()


@pytest.mark.parametrize("end", ["signal", "umount"])
def test_a_service_tells_its_life(manager: Manager, mounted: Mounting, image_dir: Path, end: str) -> None:
    """READY=1 when the mount answers; STOPPING=1 at the beginning of the end, whatever began it."""
    fs = mounted(image_dir)
    ready = manager.hear()
    assert ready["READY"] == "1"
    assert ready["STATUS"] == f"serving directory {image_dir} on {fs.path}"
    if end == "signal":
        fs.signal(signal.SIGTERM)
        assert fs.wait() == 0
    else:
        assert fs.umount() == 0
    first, *later = manager.heard_all()
    assert first["STOPPING"] == "1"
    assert int(first["EXTEND_TIMEOUT_USEC"]) == 30_000_000
    assert all(set(message) == {"EXTEND_TIMEOUT_USEC"} for message in later)


def test_a_slow_end_asks_for_more_time(manager: Manager) -> None:
    """Every 10 s for 30 s more, so that a server that syncs is left alone, and one that hangs is not."""

    async def sync_for_25_s() -> None:
        with trio.move_on_after(25):
            await Service(ServiceManager(manager.address).send).ask_for_time()

    trio.run(sync_for_25_s, clock=trio.testing.MockClock(autojump_threshold=0))
    assert manager.heard_all() == [{"EXTEND_TIMEOUT_USEC": "30000000"}] * 3


def test_ready_means_that_the_mount_answers(manager: Manager, image_dir: Path, mountpoint: Path) -> None:
    """At the moment of READY=1 an image can be read, and a status line says what is served."""
    (image_dir / "a.img").write_bytes(b"here")
    fs = MountedFs(image_dir, mountpoint)
    try:
        assert manager.hear()["READY"] == "1"
        assert (mountpoint / "a.img").read_bytes() == b"here"
    finally:
        wrong = fs.clean_up()
    assert not [line for line in wrong if "no O_DIRECT" not in line]


def test_a_service_that_fails_says_no_ready(manager: Manager, tmp_path: Path) -> None:
    """Bad input: status 2, and not a word to the manager."""
    done = run_aiofs("mount", tmp_path / "gone", tmp_path, "--foreground")
    assert done.returncode == 2
    assert manager.heard_all() == []


def test_a_background_server_is_no_service(manager: Manager, image_dir: Path, mountpoint: Path) -> None:
    """Its parent may be one, of which it knows nothing."""
    assert run_aiofs("mount", image_dir, mountpoint).returncode == 0
    assert run_aiofs("umount", mountpoint).returncode == 0
    assert manager.heard_all() == []


def test_a_manager_that_does_not_listen_is_warned_of(
    mounted: Mounting, image_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the address; the mount works."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    fs = mounted(image_dir)
    fs.allow("cannot tell the service manager")
    assert fs.umount() == 0
    [warning] = [line for line in fs.log if "cannot tell the service manager" in line]
    assert str(tmp_path / "nobody") in warning
    assert not is_mounted(fs.path)


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong in it, with aiofs where the unit looks for it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    # systemd looks in directories of its own; a stand-in that is always there checks the rest of the line.
    text = UNIT.read_text().replace("ExecStart=aiofs ", "ExecStart=/bin/true ")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "aiofs" in line]
    assert ours == []
