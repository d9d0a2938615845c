"""Decisions for people: the table of tests that `aiofs probe` and `aiofs info` print."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 80
"""Columns where the output is no terminal."""

_COLOURS = {"yes": "green", "no": "red"}


def show(decided: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Print what was decided for each title."""
    _print(Console(highlight=False, soft_wrap=False), decided)


def text(decided: Iterable[tuple[str, Mapping[str, Any]]], width: int = WIDTH) -> str:
    """The same without colours, as lines of at most `width` columns, but for titles: they stay whole."""
    out = io.StringIO()
    _print(Console(file=out, width=width, highlight=False, color_system=None), decided)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _print(console: Console, decided: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for index, (title, decision) in enumerate(decided):
        if index:
            console.print()
        console.print(title, markup=False, soft_wrap=True)  # a path in pieces cannot be copied
        console.print(f"  driver {decision['driver']}: {decision['reason']}", markup=False)
        if decision["tests"]:
            console.print(_table(decision["tests"]))


def _table(tests: Iterable[Mapping[str, Any]]) -> Table:
    """A line a test; the driver that it is about stands before the first of its tests."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("  FOR", "TEST", "LOOKED AT", "VERDICT", "REASON"):
        table.add_column(column, no_wrap=column in ("  FOR", "VERDICT"))
    about = ""
    for test in tests:
        first = test["driver"] if test["driver"] != about else ""
        about = test["driver"]
        verdict = str(test["verdict"])
        shown = f"[{_COLOURS.get(verdict, 'default')}]{verdict}[/]"
        table.add_row(
            f"  {first}", escape(test["name"]), escape(test["looked_at"]), shown, escape(test["reason"])
        )
    return table
