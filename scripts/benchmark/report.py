"""Results as text for the terminal and as a table for the README."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from aiofs.bench.results import Spread

from .results import IO_URING, NO_MERGE, Cell, Costs, Results, goals
from .workloads import MIB, Place, Workload

README_COLUMNS = (IO_URING, "aiofs-linux", "aiofs-threads", "qsd", "nbdfuse")


def text(results: Results) -> str:
    """Everything that was measured, a block per workload, then the comparisons and the goals."""
    lines = [machine_line(results), settings_line(results)]
    for workload in results.workloads():
        lines += ["", *_workload_block(results, workload)]
    lines += _comparisons(results)
    if results.costs:
        lines += ["", *_cost_lines(results.costs)]
    checked = goals(results)
    if checked:
        met = sum(goal.met for goal in checked)
        lines += ["", f"Goals: {met} of {len(checked)} reached", *(f"  {goal.line()}" for goal in checked)]
    return "\n".join(lines) + "\n"


def machine_line(results: Results) -> str:
    """One line that says where the numbers come from."""
    machine = results.machine
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}, "
        f"{machine['file system']}; fio {machine['fio']}, "
        f"qemu-storage-daemon {machine['qemu-storage-daemon']}, nbdfuse {machine['nbdfuse']}; {results.date}"
    )


def settings_line(results: Results) -> str:
    """One line that says how they were measured."""
    settings = results.settings
    slices = f" in {settings['slices']} slices" if "slices" in settings else ""
    return (
        f"O_DIRECT, {settings['engine']}, one job, one image of {settings['size'] // MIB:,} MiB, "
        f"{settings['rounds']} rounds of {settings['runtime_s']:g} s{slices}, "
        "shuffled; medians, ratios paired by round; nbdkit file goes through the page cache; guests are "
        "emulated (TCG), which takes most of a processor"
    )


def _workload_block(results: Results, workload: Workload) -> Iterator[str]:
    base = workload.place.baseline
    heads = f"{'IOPS':>10}{'MB/s':>8}{'us':>8}{'/ ' + base:>12}{'lowest-highest':>17}{'CPU us/IO':>11}"
    yield f"{workload.title:38}{heads}"
    for target in results.targets():
        cells = list(results.of(target, workload.name).values())
        if cells:
            ratio = results.ratio(target, base, workload.name)
            yield f"  {target:32}{_numbers(cells)}{_ratio(ratio):>29}{_cpu(cells):>11}"


def _numbers(cells: list[Cell]) -> str:
    iops = statistics.median(cell.iops for cell in cells)
    rate = statistics.median(cell.bytes_per_s for cell in cells) / 1e6
    latency = statistics.median(cell.latency_us for cell in cells)
    return f"{iops:10,.0f}{rate:8,.0f}{latency:8,.0f}"


def _ratio(spread: Spread | None) -> str:
    return f"{spread.median:.2f}{spread.low:10.2f} - {spread.high:.2f}" if spread else "-"


def _cpu(cells: list[Cell]) -> str:
    used = [cell.cpu_us for cell in cells if cell.cpu_us is not None]
    return f"{statistics.median(used):.1f}" if used else "-"


def _comparisons(results: Results) -> Iterator[str]:
    targets = results.targets()
    pairs = [(IO_URING, "qsd"), ("aiofs-linux", IO_URING)]
    pairs += [(target, target + NO_MERGE) for target in targets]
    for ours, theirs in pairs:
        if ours not in targets or theirs not in targets:
            continue
        yield ""
        yield f"{ours} / {theirs}"
        for workload in results.workloads():
            if spread := results.ratio(ours, theirs, workload.name):
                yield f"  {workload.title:38}{_ratio(spread):>23}"


def _cost_lines(costs: Costs) -> Iterator[str]:
    yield f"A mount of {costs.images:,} images, median of {len(costs.ready_s)}"
    yield f"  ready after {statistics.median(costs.ready_s):.2f} s"
    yield f"  listed with sizes in {statistics.median(costs.listing_s):.2f} s"
    yield f"  {statistics.median(costs.memory_mib):.0f} MiB resident afterwards"
    if costs.merge_ns:
        ns = statistics.median(costs.merge_ns)
        yield f"To look for what can be merged where nothing can: {ns:.0f} ns of processor time a request"


def markdown(results: Results) -> str:
    """The README's table: the raw image in IOPS, the others as ratios to it; then where it was measured."""
    columns = [name for name in README_COLUMNS if name in results.targets()]
    lines = [
        "| | raw image, IOPS | " + " | ".join(name.replace("-", " ", 1) for name in columns) + " |",
        "| --- | ---: |" + " ---: |" * len(columns),
    ]
    for workload in results.workloads():
        if workload.place is Place.FILE:
            ratios = (_ratio_cell(results.ratio(name, "raw", workload.name)) for name in columns)
            lines.append(
                f"| {' | '.join([workload.title, _median_iops(results, 'raw', workload), *ratios])} |"
            )
    lines += _placed_table(results)
    return "\n".join([*lines, "", f"{machine_line(results)}. {settings_line(results)}.", ""])


def _placed_table(results: Results) -> Iterator[str]:
    placed = [workload for workload in results.workloads() if workload.place is not Place.FILE]
    if not placed:
        return
    yield from ("", "| | on the raw image, IOPS | on the aiofs file |", "| --- | ---: | ---: |")
    for workload in placed:
        place = workload.place
        ratio = _ratio_cell(results.ratio(place.subject, place.baseline, workload.name))
        yield f"| {workload.title} | {_median_iops(results, place.baseline, workload)} | {ratio} |"


def _ratio_cell(spread: Spread | None) -> str:
    return f"{spread.median:.2f}" if spread else "-"


def _median_iops(results: Results, target: str, workload: Workload) -> str:
    cells = results.of(target, workload.name).values()
    return f"{statistics.median(cell.iops for cell in cells):,.0f}" if cells else "-"
