"""The harness under one sanitizer after another: every driver of the table, `fault:NAME` included."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiofs.dataplane.binding import ffi, lib

from .build import HARNESS, Build

PATIENCE_S = 600
"""A run takes seconds; one that waits for an answer gives up after a minute by itself."""


@dataclass(frozen=True)
class Sanitizer:
    """One way to look for what no test asserts."""

    name: str
    flags: tuple[str, ...]
    operations: int
    """For each driver; as many as take some seconds."""
    command: tuple[str, ...] = ()
    """Before the program's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Drivers that cannot be run under it, those with faults around them neither, and why."""


ADDRESS = Sanitizer(
    "address,undefined",
    ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    operations=10000,
    environment={"ASAN_OPTIONS": "detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
)

SANITIZERS = (
    ADDRESS,
    Sanitizer(
        "thread",
        ("-O1", "-fsanitize=thread"),
        operations=10000,
        environment={"TSAN_OPTIONS": "halt_on_error=1"},
        left_out={
            "posix": "glibc starts the threads of its POSIX AIO behind the sanitizer's back (not through the "
            "pthread_create that it watches), and their first malloc (aio_notify.c) crashes in its allocator"
        },
    ),
    Sanitizer(
        "valgrind",
        ("-O1",),
        operations=1000,
        # Leaks that are only possible are left out: glibc points into, not at, what it keeps of threads that
        # have ended, and its POSIX AIO keeps idle threads to the end.
        command=(
            "valgrind",
            "-q",
            "--error-exitcode=9",
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect",
            "--errors-for-leak-kinds=definite,indirect",
            f"--suppressions={HARNESS / 'valgrind.supp'}",
        ),
    ),
)


@dataclass(frozen=True)
class Ran:
    """One driver under one sanitizer."""

    driver: str
    seconds: float
    problem: str = ""
    """What it printed, when something was wrong."""
    left_out: str = ""


def drivers() -> list[str]:
    """Every driver of the table, those that are only for tests included."""
    listed = [ffi.string(lib.aiofs_driver_name(i)).decode() for i in range(lib.aiofs_driver_count())]
    return [*listed, *(f"fault:{name}" for name in listed)]


def run(sanitizer: Sanitizer, build: Build, seed: int, operations: int, files: Path) -> Iterator[Ran]:
    """Every driver; its images are made under `files`, which should know O_DIRECT."""
    program = build.harness()
    for driver in drivers():
        reason = sanitizer.left_out.get(driver.removeprefix("fault:"))
        if reason is not None:
            yield Ran(driver, 0, left_out=reason)
            continue
        command = [*sanitizer.command, str(program), str(files), str(seed), str(operations), driver]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **sanitizer.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
            )
            problem = done.stdout + f"status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as late:
            problem = f"{(late.stdout or b'').decode(errors='replace')}\nnot done after {PATIENCE_S} s"
        yield Ran(driver, time.monotonic() - began, problem)
