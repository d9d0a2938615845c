"""Rules of style that a machine can check, over every file of the project."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".git", ".venv", "build", "bench-results", "__pycache__", "aiofs.egg-info"}
NOT_OURS |= {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
GENERATED = {"_plane.c"}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70


def files(*suffixes: str) -> list[Path]:
    """The project's own text files, with these suffixes or with any."""
    found = []
    for directory, names, members in os.walk(ROOT):
        names[:] = sorted(set(names) - NOT_OURS)
        found += [Path(directory, member) for member in members if member not in GENERATED]
    ours = [path for path in found if path.suffix not in (".so", ".pyc", ".png") and not path.is_symlink()]
    return sorted(path for path in ours if not suffixes or path.suffix in suffixes)


def place(path: Path, line: int) -> str:
    """`aiofs/cli.py:12`."""
    return f"{path.relative_to(ROOT)}:{line}"


def is_text(path: Path) -> bool:
    """Whether a file is text in UTF-8, and so one that these rules can read."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def c_functions(text: str) -> Iterator[tuple[int, int]]:
    """First line and length of each function body: braces in the first column open and close it."""
    opened = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("{") and not opened:
            opened = number
        elif line.startswith("}") and opened:
            yield opened, number - opened + 1
            opened = 0


def python_functions(text: str) -> Iterator[tuple[int, int]]:
    """First line and number of lines of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_measure_of_a_c_function_is_right() -> None:
    """One body of four lines; initialisers and statements in braces are no functions."""
    text = "int a[] = {\n1,\n};\nint f(void)\n{\n    if (a) {\n    }\n}\n"
    assert list(c_functions(text)) == [(5, 4)]


def test_no_file_is_longer_than_a_room() -> None:
    """A file past 500 lines wants to be two."""
    code = [path for path in files() if path.suffix in (".py", ".c", ".h") or path.parent.name == "scripts"]
    assert len(code) > 10
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    """At most 70 lines, in C and in Python."""
    long = []
    for path in files(".c", ".py"):
        functions = c_functions if path.suffix == ".c" else python_functions
        long += [
            place(path, line) for line, length in functions(path.read_text()) if length > MAX_FUNCTION_LINES
        ]
    assert long == []


def test_every_file_is_text() -> None:
    """What a tool left behind in the tree, and `git add` took along, is named here."""
    assert [str(path.relative_to(ROOT)) for path in files() if not is_text(path)] == []


# Written in halves, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a package registry's host": r"\b(pypi\.or"
    + r"g|pythonhost"
    + r"ed|deb\.debian\.or"
    + r"g|registry\.npm"
    + r"js)",
    "an unfinished thought": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b",
    "a path of one machine": r"(?<![\w.])/(wor" + r"k|roo" + r"t|home/\w+)/",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    """Hosts of registries, unfinished thoughts and paths of the author's machine stay out."""
    pattern = re.compile(FORBIDDEN[what])
    found = [
        place(path, number)
        for path in filter(is_text, files())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_room_is_named_for_leftovers() -> None:
    """utils, common and helpers say nothing of what is in them."""
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [path for path in files() if path.stem in vague or path.parent.name in vague] == []


def test_every_python_room_says_what_it_is_for() -> None:
    """A docstring opens each module."""
    silent = [path for path in files(".py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert [str(path.relative_to(ROOT)) for path in silent] == []
