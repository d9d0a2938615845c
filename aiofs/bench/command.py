"""`aiofs bench`: opens what is measured, runs the plan, shows the results. Leaves nothing behind."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, ClassVar

from rich.console import Console

from ..config import CacheMode
from ..dataplane import Op, drivers
from ..errors import AiofsError, BadInput, reason
from . import machine, plot, report, scratch
from .arguments import Request
from .image import Image, check_block_size, open_image
from .plan import WORKLOADS, Plan
from .progress import Bar
from .results import Results
from .run import Target, Targets, run, steps
from .verdict import Verdict, auto_choice, judge

SCRATCH_BYTES, QUICK_SCRATCH_BYTES = 256 * scratch.MIB, 64 * scratch.MIB


class Interrupted(AiofsError):
    """Ctrl-C."""

    exit_status: ClassVar[int] = 130  # 128 + SIGINT, as shells have it


class Terminated(AiofsError):
    """SIGTERM."""

    exit_status: ClassVar[int] = 143


def bench(request: Request) -> int:
    """Run `aiofs bench`; the exit status. AiofsError as the text that ends it."""
    with _ended_by_signals(request), ExitStack() as stack:
        image = stack.enter_context(open_image(request.image, request.cache, destructive=request.destructive))
        check_block_size(image, request.block_size)
        results = _results(request, image)
        targets = _targets(request, image, results, stack)
        plan = _plan(request, targets, results)
        with Bar(steps(plan)) as bar:
            run(plan, targets, results, bar)
    verdict = judge(results, auto_choice(request.image, request.cache))
    _show(request, results, verdict)
    return 0


@contextmanager
def _ended_by_signals(request: Request) -> Iterator[None]:
    """SIGINT and SIGTERM end the run through its own cleaning up; the message says what is left."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated(f"terminated; {_left(request)}")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_left(request)}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _left(request: Request) -> str:
    if request.destructive:
        return f"{request.image} is overwritten in part"
    return f"nothing is left behind, {request.image} is as it was"


def _results(request: Request, image: Image) -> Results:
    return Results(
        image=str(request.image),
        size=image.size,
        filesystem=image.filesystem,
        cache=str(image.cache),
        settings={},
        machine=machine.facts(),
        notes=list(image.notes),
    )


# -- what to run on --


def _targets(request: Request, image: Image, results: Results, stack: ExitStack) -> Targets:
    """The image for reads, and for writes what was asked for and can be had."""
    buffered = image.cache is CacheMode.WRITEBACK
    read = Target(image.fd, image.size, str(image.path), buffered)
    if not any(name.endswith("write") for name in request.workloads):
        return Targets(read, None, None)
    append = functools.partial(scratch.create, image.path.resolve().parent, os.O_APPEND)
    if request.destructive:
        print(f"aiofs: writing on {image.path}: its content is lost", file=sys.stderr)
        return Targets(read, read, None if image.block_device else append)
    try:
        if image.block_device:
            raise scratch.NoScratch(f"{image.path} is a block device; --destructive writes on it")
        return Targets(read, _scratch_target(request, image, stack), append)
    except scratch.NoScratch as none:
        results.notes.append(f"writes were not measured: {none}")
        return Targets(read, None, None)


def _scratch_target(request: Request, image: Image, stack: ExitStack) -> Target:
    directory = image.path.resolve().parent
    limit = QUICK_SCRATCH_BYTES if request.quick else SCRATCH_BYTES
    size = scratch.size_for(directory, limit)
    fd = scratch.create(directory, image.open_flags)
    stack.callback(os.close, fd)
    name = f"a temporary file in {directory}"
    print(f"aiofs: writing {size // scratch.MIB} MiB, {name}", file=sys.stderr)
    scratch.fill(fd, size, name)
    return Target(fd, size, name, image.cache is CacheMode.WRITEBACK)


def _plan(request: Request, targets: Targets, results: Results) -> Plan:
    """What can be measured of what was asked for. BadInput when that is nothing."""
    workloads = [w for w in WORKLOADS if w.name in request.workloads and targets.of(w.op) is not None]
    if not workloads:
        raise BadInput(f"nothing can be measured on {request.image}: {'; '.join(results.notes)}")
    if targets.append is None and any(w.op is Op.WRITE for w in workloads):
        results.notes.append(
            "the order of sequential writes was not looked at: a device cannot be appended to"
        )
    plan = Plan(
        drivers=_drivers(request, results),
        workloads=workloads,
        depths=request.depths,
        block_size=request.block_size,
        rounds=request.rounds,
        runtime_s=request.runtime_s,
        seed=request.seed,
        merge=request.merge,
    )
    results.settings.update(
        drivers=list(plan.drivers),
        depths=list(plan.depths),
        block_size=plan.block_size,
        rounds=plan.rounds,
        runtime_s=plan.runtime_s,
        warm_up_s=plan.warm_up_s,
        seed=plan.seed,
        merge=plan.merge,
        destructive=request.destructive,
    )
    return plan


def _drivers(request: Request, results: Results) -> list[str]:
    """Those that work, of those asked for; one asked for by name that does not is BadInput."""
    names = []
    for status in drivers():
        if request.drivers is not None and status.name not in request.drivers:
            continue
        if status.works:
            names.append(status.name)
        elif request.drivers is not None:
            raise BadInput(f"AIO driver {status.name} does not work here: {status.reason}")
        else:
            results.notes.append(f"{status.name} does not work here: {status.reason}")
    return names


# -- what is shown --


def _show(request: Request, results: Results, verdict: Verdict) -> None:
    if request.plot is not None:
        _write_plot(request, results)
    if request.json:
        document: dict[str, Any] = results.to_json() | {"verdict": verdict.to_json()}
        print(json.dumps(document, indent=1))
        return
    width = None if sys.stdout.isatty() else report.PLAIN_WIDTH
    report.show(results, verdict, Console(width=width, highlight=False, soft_wrap=True))


def _write_plot(request: Request, results: Results) -> None:
    assert request.plot is not None
    try:
        request.plot.write_text(plot.svg(results))
    except OSError as error:
        raise AiofsError(f"cannot write --plot {request.plot}: {reason(error)}") from None
