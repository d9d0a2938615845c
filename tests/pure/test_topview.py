"""topview.py: the screen of `aiofs top`, as text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from aiofs import topview
from aiofs.rates import ImageRates, MountRates
from aiofs.topview import COLUMNS, Order

TOLD = {
    "mountpoint": "/mnt/vdisk",
    "driver": "io_uring",
    "cache": "writethrough",
    "queue_depth": 4096,
    "started": 0.0,
}


def image(path: str, **changes: Any) -> ImageRates:
    """An idle image, but for the changes."""
    idle: dict[str, Any] = {
        "requests_s": 0.0,
        "read_share": None,
        "bytes_s": 0.0,
        "depth": 0.0,
        "batch": None,
        "merged_share": None,
        "p50_ns": None,
        "p99_ns": None,
        "failing": False,
    }
    return ImageRates(path=path, **{**idle, **changes})


def busiest(path: str) -> ImageRates:
    """An image whose every cell is as wide as it gets."""
    return image(
        path,
        requests_s=999_949.0,
        read_share=1.0,
        bytes_s=9_999_900_000.0,
        depth=4096.0,
        batch=4096.0,
        merged_share=1.0,
        p50_ns=99_900.0,
        p99_ns=9_990_000.0,
        failing=True,
    )


def rates(*images: ImageRates) -> MountRates:
    """A busy mount."""
    return MountRates(
        interval_s=1.0,
        requests_s=999_949.0,
        forwarded_s=999_949.0,
        batches_s=999_949.0,
        batch=4096.0,
        sleeps_s=999_949.0,
        looks_s=999_949.0,
        in_flight=4096,
        images=images,
    )


def lines(what: RenderableType, width: int = 80) -> list[str]:
    """What a terminal of that width would show."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(what, soft_wrap=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def names(shown: list[str]) -> list[str]:
    """The images of a screen, from above."""
    start = next(index for index, line in enumerate(shown) if line.startswith("IMAGE")) + 1
    return [line.split()[0] for line in shown[start:-1]]


@pytest.mark.parametrize("width", [80, 132])
def test_a_busy_screen_fits(width: int) -> None:
    """One line an image in so many columns, also with long and wide names and the widest numbers."""
    images = [busiest(name * 40) for name in ("deep/", "\u6f22\u5b57", "x\x1b[2J\n")]
    shown = lines(topview.screen(TOLD, rates(*images), Order(), width, 24), width)
    assert max(map(cell_len, shown)) <= width
    assert len(shown) == 3 + 1 + 3 + 1
    for cell in ("1.0M", "100%", "9999.9", "4096", "99.9us", "9.99ms"):
        assert all(cell in line for line in shown[4:7])


def test_a_wide_terminal_shows_longer_names() -> None:
    """The names have what the numbers leave."""
    name = "guests/" * 8 + "disk.img"
    assert name in "\n".join(lines(topview.screen(TOLD, rates(image(name)), Order(), 132, 24), 132))


def test_what_does_not_fit_is_counted() -> None:
    """A screen of 12 lines has room for 6 images of 100 beside head and keys, and says so."""
    images = [image(f"{number:03}.img") for number in range(100)]
    shown = lines(topview.screen(TOLD, rates(*images), Order(0), 80, 12))
    assert len(shown) == 11
    assert names(shown) == [f"{number:03}.img" for number in range(6)]
    assert shown[-1].startswith("94 more ")


def test_text_shows_all_images() -> None:
    """It has no height."""
    images = [image(f"{number:03}.img") for number in range(100)]
    assert len(lines(topview.page(TOLD, rates(*images), 80))) == 3 + 1 + 100 + 1


@pytest.mark.parametrize("column", range(1, len(COLUMNS)))
def test_each_column_sorts_and_turns_round(column: int) -> None:
    """The highest first, and with r the lowest; equal ones by name in both."""
    images = [image("c"), busiest("b"), image("a")]
    order = Order().pressed(str(column + 1))
    assert [one.path for one in order.sorted(images)] == ["b", "a", "c"]
    assert [one.path for one in order.pressed("r").sorted(images)] == ["a", "c", "b"]


def test_names_sort_from_a_and_turn_round() -> None:
    """The first column."""
    images = [image("b"), image("a"), image("c")]
    order = Order().pressed("1")
    assert [one.path for one in order.sorted(images)] == ["a", "b", "c"]
    assert [one.path for one in order.pressed("r").sorted(images)] == ["c", "b", "a"]


def test_the_columns_form_a_ring() -> None:
    """< and > go to the one beside."""
    order = Order(0).pressed("<")
    assert order.column == len(COLUMNS) - 1
    assert order.pressed(">").column == 0


@pytest.mark.parametrize("key", ["0", "x", "\x1b", "\u0661", "\u00b2", ""])
def test_other_keys_change_nothing(key: str) -> None:
    """Digits of other scripts neither."""
    assert Order(3, reverse=True).pressed(key) == Order(3, reverse=True)


def test_a_name_cannot_steer_the_terminal() -> None:
    """Control characters and what is not UTF-8 are shown as escapes; brackets mean nothing."""
    assert topview.printable("a\x1b[31m\n\x7f\udcff") == "a\\x1b[31m\\n\\x7f\\xff"
    assert "[red]x" in "\n".join(lines(topview.page(TOLD, rates(image("[red]x")), 80)))


def test_a_failing_image_is_marked_without_colour() -> None:
    """Text has none."""
    assert any(line.startswith("! a.img") for line in lines(topview.page(TOLD, rates(busiest("a.img")), 80)))


def test_no_image_is_said() -> None:
    """An empty table would look like a fault."""
    assert "no image is open" in lines(topview.screen(TOLD, rates(), Order(), 80, 24))


def test_before_the_first_interval_there_are_keys() -> None:
    """And no numbers."""
    shown = lines(topview.screen(TOLD, None, Order(), 80, 24))
    assert shown[1].startswith("collecting")
    assert "q quit" in shown[-1]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (250, "0.25us"),
        (9_994, "9.99us"),
        (9_996, "10.0us"),
        (999_400, "999us"),
        (999_600, "1.00ms"),
        (12_345_678, "12.3ms"),
        (67_108_864_000, "67.1s"),
    ],
)
def test_latencies_are_short(ns: float | None, text: str) -> None:
    """Three digits and the unit."""
    assert topview.short_time(ns) == text


def test_a_long_name_is_cut_in_the_middle() -> None:
    """Its end tells it from its neighbours."""
    assert topview.fit("a" * 50 + ".img", 20) == "aaaaaa...aaaaaaa.img"
