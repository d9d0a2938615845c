"""Charts in SVG: the pieces that every chart of aiofs is made of. Knows no numbers' meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

WIDTH = 1040
LEFT, RIGHT = 62, 24
INK, FAINT, GRID = "#1d2329", "#5c6670", "#e3e6ea"
BLUE, LIGHT_BLUE, ORANGE, GREY, GREEN = "#1f5fbf", "#7fb2ea", "#e07b28", "#a3a8b0", "#4f9d69"


def document(height: int, title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole picture, WIDTH pixels wide, with its title."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 34, title, 20, INK, weight="bold"),
        text(LEFT, 56, subtitle, 11.5, FAINT),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def legend_entry(x: float, label: str, colour: str) -> Iterator[str]:
    """A square of a colour, and what it stands for, in the row below the title."""
    yield f'<rect x="{x:.1f}" y="74" width="13" height="13" rx="2" fill="{colour}"/>'
    yield text(x + 19, 85, label, 12, INK)


def legend_width(label: str) -> float:
    """How far to the right the next entry begins."""
    return 19 + 7 * len(label) + 17


def rule(x: float, y: float, to: float) -> str:
    """A line of the grid."""
    return f'<path d="M{x:.1f} {y:.1f}H{to:.1f}" stroke="{GRID}"/>'


def bar(x: float, y: float, width: float, bottom: float, colour: str, tip: str) -> str:
    """A bar from `bottom` up to `y`, and what is shown when it is pointed at."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{bottom - y:.1f}" rx="2" '
        f'fill="{colour}"><title>{escape(tip)}</title></rect>'
    )


def range_line(x: float, low: float, high: float) -> str:
    """The thin line of the lowest and highest round."""
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{INK}" stroke-opacity="0.45"/>'


def text(
    x: float, y: float, words: str, size: float, colour: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    """Words with a white edge, so that lines below them do not hurt."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}" paint-order="stroke" stroke="#ffffff" stroke-width="3">'
        f"{escape(words)}</text>"
    )


def round_step(top: float, steps: int) -> float:
    """The distance of grid lines: 1, 2 or 5 times a power of ten, about `steps` of them up to `top`."""
    rough = max(top, 1e-9) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
