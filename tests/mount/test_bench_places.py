"""Where scripts/bench lets fio run: it runs there, and nothing of the place is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from loops import Loops

from aiofs import loopdevices

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmark.image import write_image
from benchmark.places import prepared, prove
from benchmark.processes import TargetError, mounted
from benchmark.workloads import WORKLOADS, Place, fio_command, read_fio

SIZE = 64 << 20
WORDS = {
    Place.FILE: "--filename={}/disk.img",
    Place.LOOP: "--filename=/dev/loop",
    Place.EXT4: "--filename={}/ext4.",
    Place.GUEST: "if=virtio,file={}/disk.img",
}
"""How a word of the command begins that runs fio there."""


@pytest.mark.parametrize("place", Place)
def test_fio_runs_there_and_nothing_is_left(tmp_path: Path, place: Place) -> None:
    """The first workload of each place on a raw image: it did I/O, and mounts and devices are gone."""
    if place is not Place.FILE and (reason := Loops.why_not()):
        pytest.skip(reason)
    workload = next(workload for workload in WORKLOADS if workload.place is place)
    image = tmp_path / "disk.img"
    write_image(image, SIZE)
    try:
        prove(place, image)
    except TargetError as error:
        pytest.skip(str(error))

    def fio(path: Path, size: int) -> list[str]:
        return fio_command(workload, path, size, runtime_s=0.2, engine="libaio", seed=1)

    with prepared(place, image, SIZE, tmp_path, fio) as command:
        assert any(word.startswith(WORDS[place].format(tmp_path)) for word in command)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        made = [path for path in tmp_path.glob("*/*") if mounted(path)]
        assert bool(made) == (place is Place.EXT4)
    assert read_fio(done.stdout).ios > 0
    assert list(tmp_path.iterdir()) == [image]
    assert [device for device in loopdevices.attached() if device.path == image] == []
