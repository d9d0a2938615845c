"""lumps.c: when a device gets half of the work at a time."""

from __future__ import annotations

import pytest

from aiofs.dataplane.binding import ffi, lib

ANY = 2**32 - 1
LUMP, PART = (32, 32, 1), (20, 32, 1)


def limit(*looks: tuple[int, int, int], in_work: int = 32) -> int:
    """After these looks: finished, in flight, all of them READs."""
    return int(lib.aiofs_lumps_limit(ffi.new("aiofs_look[]", [*looks]), len(looks), in_work))


@pytest.mark.parametrize(("lumps", "expected"), [(0, ANY), (2, ANY), (3, 16), (100, 16)])
def test_a_few_lumps_in_a_row_are_the_manner(lumps: int, expected: int) -> None:
    """From the third on."""
    assert limit(*[LUMP] * lumps) == expected


@pytest.mark.parametrize(
    ("in_work", "expected"), [(1, 8), (15, 8), (16, 8), (17, 9), (32, 16), (33, 17), (128, 64)]
)
def test_half_of_the_work_but_no_less_than_a_lump(in_work: int, expected: int) -> None:
    """Rounded up."""
    assert limit(*[LUMP] * 3, in_work=in_work) == expected


def test_lumps_in_parts_take_it_back() -> None:
    """Sooner where few whole ones had been seen."""
    assert limit(*[LUMP] * 3, PART) == ANY
    assert limit(*[LUMP] * 8, PART) == 16
    assert limit(*[LUMP] * 8, *[PART] * 3) == ANY


def test_a_device_that_reports_one_by_one_is_never_limited() -> None:
    """Also when now and then all is done at once."""
    looks = [(1, 32, 1)] * 5 + [LUMP]
    assert all(limit(*(looks * 20)[:n]) == ANY for n in range(120))


def test_a_device_that_changes_is_seen_soon() -> None:
    """However long it had reported in lumps: four in parts, and it has to begin anew."""
    assert limit(*[LUMP] * 1000, *[PART] * 4, LUMP, LUMP) == ANY


@pytest.mark.parametrize("look", [(0, 32, 1), (7, 7, 1), (1, 1, 1)])
def test_few_ios_and_idle_looks_say_nothing(look: tuple[int, int, int]) -> None:
    """Neither for lumps nor against them."""
    assert limit(*[look] * 20) == ANY
    assert limit(*[LUMP] * 3, *[look] * 20) == 16


@pytest.mark.parametrize(("writes", "expected"), [(8, ANY), (15, ANY), (16, 16), (32, 16)])
def test_it_takes_more_writes_to_make_a_lump(writes: int, expected: int) -> None:
    """A few come together from the memory of any device."""
    assert limit(*[(writes, writes, 0)] * 20) == expected


def test_half_a_lump_of_writes_is_one() -> None:
    """What is held back does not make the manner forgotten."""
    assert limit(*[(16, 16, 0)] * 3, *[(8, 8, 0)] * 20) == 16
    assert limit(*[LUMP] * 3, *[(8, 8, 0)] * 20) == 16
