"""How the C extension is built: api.h becomes both the cffi glue and a header of the C sources.

Used by setuptools (`[tool.setuptools.cmdclass]` in pyproject.toml), never at run time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cffi import FFI
from cffi.recompiler import make_c_source
from setuptools.command.build_ext import build_ext as _build_ext

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wvla", "-Wstrict-prototypes"]
CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-UNDEBUG", "-fvisibility=hidden"]
LIBRARIES = ["uring", "aio"]


def sources() -> list[str]:
    """Every C file of the data plane but the generated one, relative to the project's root."""
    found = sorted(p for p in HERE.glob("*.c") if p.name != "_plane.c") + sorted(HERE.glob("drivers/*.c"))
    return [str(p.relative_to(ROOT)) for p in found]


def added_flags() -> list[str]:
    """Compiler flags from AIOFS_CFLAGS, to be added to ours."""
    return os.environ.get("AIOFS_CFLAGS", "").split()


def write_glue(path: Path) -> None:
    """Write the C source of the cffi module for api.h."""
    ffi = FFI()
    ffi.cdef((HERE / "api.h").read_text())
    ffi.set_source("aiofs.dataplane._plane", '#include <stdint.h>\n#include "api.h"\n')
    make_c_source(ffi, "aiofs.dataplane._plane", '#include <stdint.h>\n#include "api.h"\n', str(path))


class build_ext(_build_ext):
    """build_ext that writes the glue first. AIOFS_CFLAGS adds compiler flags."""

    def build_extension(self, ext: Any) -> None:
        glue = HERE / "_plane.c"
        write_glue(glue)
        ext.sources = [*sources(), str(glue.relative_to(ROOT))]
        ext.depends = [str(p.relative_to(ROOT)) for p in (*HERE.glob("*.h"), *HERE.glob("drivers/*.h"))]
        ext.include_dirs = [str(HERE)]
        ext.libraries = LIBRARIES
        # The glue is cffi's code: it gets our standard but not our warnings, which are for our own files
        # (scripts/check compiles those with -Werror).
        ext.extra_compile_args = [*CFLAGS, *added_flags()]
        ext.extra_link_args = added_flags()
        super().build_extension(ext)
