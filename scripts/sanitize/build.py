"""The programs of tests/harness/, compiled with a sanitizer. Knows nothing of what they do."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiofs.dataplane.build import CFLAGS, LIBRARIES, WARNINGS, added_flags, sources

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "harness"
PLANE = ROOT / "aiofs" / "dataplane"

STANDARD = [flag for flag in CFLAGS if not flag.startswith(("-O", "-f"))]
"""The extension's flags; how far to optimise is the sanitizer's affair."""


class CannotBuild(Exception):
    """The compiler's words."""


class Build:
    """The data plane compiled once with one compiler and set of flags; programs are linked to it."""

    def __init__(
        self, directory: Path, compiler: str, flags: Sequence[str], link_flags: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        flags = [*flags, *added_flags()]
        self._command = [compiler, *STANDARD, *WARNINGS, *flags, f"-I{PLANE}", f"-I{HARNESS}"]
        self._link_flags = [*flags, *link_flags]
        self._plane = self._compile([ROOT / source for source in sources()])

    def harness(self) -> Path:
        """The fake kernel with its model: DIRECTORY SEED OPERATIONS DRIVER..."""
        objects = [*self._plane, *self._compile(sorted(HARNESS.glob("*.c")))]
        wrapped = re.findall(
            r"^(?:NEEDS|MAY_WAIT)\([^,]+, (\w+),", (HARNESS / "refusals.c").read_text(), re.M
        )
        return self._link("harness", objects, [f"-Wl,--wrap={name}" for name in wrapped])

    def target(self, name: str, *more: Path) -> Path:
        """One of the fuzz targets, with a main() of its own or libFuzzer's."""
        source = HARNESS / "fuzz" / f"{name}.c"
        # A target may include a room of the plane, to call what is static there.
        included = re.findall(r'^#include "(\w+)\.c"$', source.read_text(), re.MULTILINE)
        plane = [path for path in self._plane if path.stem.partition("-")[2] not in included]
        return self._link(f"fuzz-{name}", [*plane, *self._compile([source, *more])])

    def _compile(self, files: Sequence[Path]) -> list[Path]:
        def one(source: Path) -> Path:
            made = self.directory / f"{source.parent.name}-{source.stem}.o"
            _call([*self._command, "-c", str(source), "-o", str(made)])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, files))

    def _link(self, name: str, objects: Sequence[Path], options: Sequence[str] = ()) -> Path:
        program = self.directory / name
        libraries = [f"-l{library}" for library in LIBRARIES]
        _call(
            [
                self._command[0],
                *self._link_flags,
                *options,
                *map(str, objects),
                "-o",
                str(program),
                *libraries,
            ]
        )
        return program


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(done.stderr or f"{command[0]}: status {done.returncode}")
