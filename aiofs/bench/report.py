"""The numbers as a table for people, and the verdict in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .results import Results
from .verdict import Verdict

PLAIN_WIDTH = 110
"""Columns, where the output is no terminal."""

_HEADS = ("driver", "IOPS", "spread", "MB/s", "p50 us", "p99 us", "CPU us/IO", "sleeps/IO")


def show(results: Results, verdict: Verdict, console: Console) -> None:
    """Everything: where it was measured, a table per workload, notes, verdict."""
    console.print(Text(machine_line(results)))
    console.print(Text(settings_line(results)))
    for workload in results.workloads():
        console.print()
        console.print(_table(results, workload.name, workload.title))
    if results.notes:
        console.print()
    for note in results.notes:
        console.print(Text(f"Note: {note}."))
    console.print()
    for line in sentences(results, verdict):
        console.print(Text(line))


def machine_line(results: Results) -> str:
    """Where the numbers come from."""
    machine = results.machine
    return (
        f"{results.image}: {results.size / 2**20:,.0f} MiB, {results.filesystem}, cache {results.cache}; "
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; {machine['date']}"
    )


def settings_line(results: Results) -> str:
    """How they were measured."""
    settings = results.settings
    return (
        f"requests of {settings['block_size']:,} bytes, {settings['rounds']} rounds of "
        f"{settings['runtime_s']:g} s a cell, shuffled with seed {settings['seed']}, "
        f"{'merged' if settings['merge'] else 'not merged'}; medians"
    )


def _table(results: Results, workload: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("depth", justify="right")
    for head in (*_HEADS, "late") if workload == "write" else _HEADS:
        table.add_column(head, justify="left" if head == "driver" else "right", no_wrap=True)
    for depth in results.depths():
        best = max(results.median(d, workload, depth, "iops") for d in results.drivers())
        for driver in results.drivers():
            first = str(depth) if driver == results.drivers()[0] else ""
            style = "bold" if results.median(driver, workload, depth, "iops") == best else ""
            table.add_row(first, *_row(results, workload, depth, driver), style=style)
    return table


def _row(results: Results, workload: str, depth: int, driver: str) -> Iterator[str]:
    def median(what: str) -> float:
        return results.median(driver, workload, depth, what)

    iops = results.spread(driver, workload, depth, "iops")
    yield driver
    yield f"{median('iops'):,.0f}"
    yield f"±{(iops.high - iops.low) / 2 / iops.median:.0%}" if iops else ""
    yield f"{median('bytes_per_s') / 1e6:,.0f}"
    yield f"{median('p50_us'):,.0f}"
    yield f"{median('p99_us'):,.0f}"
    yield f"{median('cpu_us'):.1f}"
    yield f"{median('switches'):.2f}"
    if workload == "write":
        late = results.late(driver, depth)
        yield f"{late.median:.1%}" if late else "-"


def sentences(results: Results, verdict: Verdict) -> Iterator[str]:
    """The verdict: scores, recommendation, auto's choice, and by how much it is wrong."""
    scores = ", ".join(f"{driver} {score:.2f}" for driver, score in verdict.scores.items())
    yield f"Score (share of the best driver's IOPS, geometric mean over all rows): {scores}"
    yield f"Not clearly slower than the best: {', '.join(verdict.level)}."
    yield f"Best for this image: {verdict.recommended} ({verdict.why})."
    yield f"--aio auto chooses:  {verdict.auto} ({verdict.auto_reason})."
    if verdict.auto == verdict.recommended:
        yield "auto agrees."
    elif verdict.slower is None:
        yield f"auto's driver was not measured; add it: --drivers {verdict.auto},..."
    else:
        titles = {workload.name: workload.title for workload in results.workloads()}
        each = ", ".join(
            f"{titles[name]} {_apart(share)}" for name, share in verdict.slower_by_workload.items()
        )
        lead = "auto is not clearly wrong" if verdict.agrees else "auto is wrong"
        yield f"{lead}: its driver is {_apart(verdict.slower)} over all ({each})."


def _apart(share: float) -> str:
    return f"{abs(share):.0%} {'slower' if share >= 0 else 'faster'}"
