"""The benchmark's arithmetic and its pictures: no fio, no mounts."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aiofs.bench.results import Spread
from aiofs.locks import lock_for_writing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmark import __main__ as command_line
from benchmark import auto, chart, filesystems, report, run
from benchmark.image import settle, write_image
from benchmark.processes import TargetError
from benchmark.results import Cell, Costs, Goal, Results, Run, goals
from benchmark.run import Plan
from benchmark.targets import TARGETS, Lab, Target, raw
from benchmark.workloads import WORKLOADS, Place, Reading, fio_command, read_fio

MACHINE = dict.fromkeys(
    ["kernel", "cpu", "cores", "memory", "file system", "fio", "qemu-storage-daemon", "nbdfuse"], "x<&>"
)
SETTINGS = {"size": 1 << 30, "rounds": 5, "runtime_s": 2.0, "engine": "libaio", "qemu_aio": "native"}


def cells(target: str, workload: str, *iops: float) -> Iterator[Cell]:
    for number, value in enumerate(iops):
        yield Cell(
            target, workload, number, value, value * 4096, 1e6 / value, None if target == "raw" else 7.5
        )


def results(*found: Iterator[Cell], costs: Costs | None = None) -> Results:
    return Results("2026-01-01", MACHINE, SETTINGS, [cell for some in found for cell in some], costs)


@pytest.fixture
def whole() -> Results:
    """Every target and workload, aiofs at 0.9 of the raw image, others at 0.5."""
    found = []
    for workload in WORKLOADS:
        for target in TARGETS:
            if target.place is workload.place:
                share = 1.0 if "raw" in target.name else 0.9 if "aiofs" in target.name else 0.5
                found.append(
                    cells(target.name, workload.name, *(share * base for base in (1000, 2000, 3000)))
                )
    return results(
        *found, costs=Costs(10_000, [0.4, 0.3, 0.6], [0.9, 0.8, 1.2], [50.0, 70.0, 58.0], [17.0, 30.0, 18.0])
    )


def test_a_ratio_is_taken_within_each_round_and_then_the_median() -> None:
    """Raw is fast in round 2 and slow in round 3; the ratio of the medians would be 1.0."""
    measured = results(cells("raw", "w", 100, 400, 50), cells("a", "w", 50, 100, 100))
    assert measured.ratio("a", "raw", "w") == Spread(median=0.5, low=0.25, high=2.0)


def test_a_round_that_misses_one_side_does_not_count() -> None:
    """A cell that failed leaves its round out instead of being paired with another round."""
    measured = results(cells("raw", "w", 100, 200), iter([Cell("a", "w", 1, 100, 1, 1, None)]))
    assert measured.ratio("a", "raw", "w") == Spread(0.5, 0.5, 0.5)
    assert measured.ratio("b", "raw", "w") is None


@pytest.mark.parametrize(
    ("measured", "at_most", "met"),
    [(0.75, False, True), (0.7499, False, False), (0.75, True, True), (0.8, True, False)],
)
def test_a_goal_is_met_at_its_very_value(measured: float, at_most: bool, met: bool) -> None:
    """Equal is enough, in both directions."""
    goal = Goal("title", 0.75, measured, at_most)
    assert goal.met is met
    assert ("ok" in goal.line()) is met
    assert ("MISSED" in goal.line()) is not met


def test_every_goal_of_the_first_milestone_is_checked(whole: Results) -> None:
    """Six ratios to raw, five to QEMU, six of linux, merging in each driver and 4 KiB row, three costs."""
    titles = [goal.title for goal in goals(whole)]
    assert sum(title.endswith("/ raw") for title in titles) == 6
    assert sum("/ qsd" in title for title in titles) == 5
    assert sum("aiofs-linux / aiofs-io_uring" in title for title in titles) == 6
    assert sum(title.endswith("-no-merge") for title in titles) == 5 * 6
    gains = [goal for goal in goals(whole) if goal.title.endswith("-no-merge") and goal.wanted == 1.5]
    assert len(gains) == 3 * 2
    assert titles[-3:] == [
        "seconds until a mount of 10,000 images is ready",
        "MiB resident, idle, with 10,000 images",
        "seconds to list 10,000 images with their sizes",
    ]


def test_a_disk_on_aiofs_is_to_be_as_good_as_one_on_the_raw_image(whole: Results) -> None:
    """Loop devices at least level at depth, a file system and a guest nearly; each against its own kind."""
    placed = [goal for goal in goals(whole) if ": " in goal.title and "raw" in goal.title]
    wanted = {goal.title: goal.wanted for goal in placed if not goal.title.endswith("/ raw")}
    assert wanted == {
        "4 KiB random read, depth 1, loop: loop-aiofs / loop-raw": 0.75,
        "4 KiB random read, depth 32, loop: loop-aiofs / loop-raw": 1.0,
        "4 KiB random write, depth 32, loop: loop-aiofs / loop-raw": 1.0,
        "4 KiB sequential read, depth 32, loop: loop-aiofs / loop-raw": 1.0,
        "4 KiB sequential write, depth 32, loop: loop-aiofs / loop-raw": 1.0,
        "4 KiB random r/w, fsync, ext4 on loop: ext4-aiofs / ext4-raw": 0.9,
        "4 KiB random read, depth 32, guest: guest-aiofs / guest-raw": 0.95,
        "4 KiB random write, depth 32, guest: guest-aiofs / guest-raw": 0.95,
    }


def test_costs_are_goals_not_to_be_passed(whole: Results) -> None:
    """Medians 0.4 s, 58 MiB and 0.9 s are all below their limits."""
    assert [(goal.measured, goal.met) for goal in goals(whole)[-3:]] == [
        (0.4, True),
        (58.0, True),
        (0.9, True),
    ]


def test_the_report_says_what_to_look_for_merges_costs(whole: Results) -> None:
    """The median; and nothing for a run from before it was measured."""
    line = "To look for what can be merged where nothing can: 18 ns of processor time a request"
    assert line in report.text(whole).splitlines()
    old = whole.to_json()
    del old["costs"]["merge_ns"]
    assert "where nothing can" not in report.text(Results.from_json(old))


def test_results_survive_the_json_file(whole: Results) -> None:
    """What --from reads is what the run wrote."""
    assert Results.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_the_report_names_every_target_and_its_ratio(whole: Results) -> None:
    """One line per target in each workload's block, with median, ratio and extremes."""
    text = report.text(whole)
    block = text[text.index(WORKLOADS[1].title) :].split("\n\n")[0].splitlines()
    assert len(block) == 1 + sum(target.place is Place.FILE for target in TARGETS)
    line = next(line for line in block if line.split()[0] == "aiofs-io_uring")
    assert line.split() == ["aiofs-io_uring", "1,800", "7", "556", "0.90", "0.90", "-", "0.90", "7.5"]


def test_the_readme_table_has_as_many_columns_in_each_row(whole: Results) -> None:
    """A ragged table is not rendered as one."""
    rows = [line for line in report.markdown(whole).splitlines() if line.startswith("|")]
    files, placed = rows[: 2 + 6], rows[2 + 6 :]
    assert len(placed) == 2 + 5 + 1 + 2
    assert [len({row.count("|") for row in table}) for table in (files, placed)] == [1, 1]
    assert rows[2] == "| 4 KiB random read, depth 1 | 2,000 | 0.90 | 0.90 | 0.90 | 0.50 | 0.50 |"


def test_the_chart_is_well_formed_and_draws_each_bar_to_its_height(whole: Results) -> None:
    """The heights of the bars have the ratio of their values, and the words are escaped."""
    root = ElementTree.fromstring(chart.svg(whole))
    bars = [rect for rect in root.iter() if rect.find("{*}title") is not None]
    assert len(bars) == 6 * 4 + 1
    heights = {bar.get("fill"): float(bar.get("height", "0")) for bar in bars}
    assert heights["#1f5fbf"] / heights["#e07b28"] == pytest.approx(0.9 / 0.5, rel=0.01)


def test_the_chart_of_a_part_of_the_targets_is_drawn_too() -> None:
    """A run of two targets and one workload has two bars, neither outside the picture."""
    measured = results(cells("raw", "read1m-qd8", 100), cells("nbdfuse", "read1m-qd8", 480))
    root = ElementTree.fromstring(chart.svg(measured))
    bars = [rect for rect in root.iter() if rect.find("{*}title") is not None]
    assert [float(bar.get("y", "-1")) > chart.TOP - 1 for bar in bars] == [True]


def named(order: list[list[Target]]) -> list[list[str]]:
    return [[target.name for target in targets] for targets in order]


def test_the_order_of_targets_is_another_one_in_each_slice() -> None:
    """Of a round and workload; shuffled, the same in every run, and always all targets."""
    plan = Plan(TARGETS, WORKLOADS, 2, 1.0, "libaio", full=True)
    orders = [named(plan.order(w, r)) for w in WORKLOADS for r in (0, 1) if w.place is Place.FILE]
    assert orders[0] == named(plan.order(WORKLOADS[0], 0))
    slices = [names for order in orders for names in order]
    assert len(slices) == len(orders) * run.SLICES
    assert len({tuple(names) for names in slices}) == len(slices)
    assert len({tuple(sorted(names)) for names in slices}) == 1


def test_a_plan_holds_the_cells_that_can_say_something() -> None:
    """Each place has its own targets; without merging only where there are neighbours, or all is wanted."""
    some, all_ = (Plan(TARGETS, WORKLOADS, 1, 1.0, "libaio", full=full) for full in (False, True))
    cells = [(w, t) for w in WORKLOADS for t in some.order(w, 0)[0]]
    assert all(workload.place is target.place for workload, target in cells)
    unmerged = {workload.name for workload, target in cells if target.name.endswith("-no-merge")}
    assert unmerged == {"seqread-qd32", "seqwrite-qd32", "read1m-qd8"}
    assert sum(len(all_.order(w, 0)[0]) for w in WORKLOADS) == len(cells) + 5 * 3
    assert (
        Plan([t for t in TARGETS if t.name == "raw"], WORKLOADS, 1, 1.0, "libaio").order(WORKLOADS[-1], 0)
        == []
    )


def test_what_takes_long_to_make_is_not_cut_into_slices() -> None:
    """A file system, a guest: one run of fio for each cell."""
    plan = Plan(TARGETS, WORKLOADS, 1, 1.0, "libaio")
    slices = {workload.place: len(plan.order(workload, 0)) for workload in WORKLOADS}
    assert slices == {Place.FILE: run.SLICES, Place.LOOP: run.SLICES, Place.EXT4: 1, Place.GUEST: 1}


def test_a_cell_has_the_medians_of_its_slices() -> None:
    """A slice in which the machine stood still does not count; the processor's time is that of all."""
    runs = [Run(Reading(iops, iops * 4096, 1e6 / iops, round(iops)), 0.01) for iops in (1000, 10, 990)]
    cell = Cell.of("t", "w", 3, runs)
    assert (cell.target, cell.workload, cell.round) == ("t", "w", 3)
    assert (cell.iops, cell.bytes_per_s) == (990, 990 * 4096)
    assert cell.latency_us == pytest.approx(1e6 / 990)
    assert cell.cpu_us == pytest.approx(0.03e6 / 2000)
    assert Cell.of("t", "w", 3, [Run(runs[0].reading, None)]).cpu_us is None


def test_targets_take_turns_and_one_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fio runs a slice here, a slice there, with the same offsets; no cell is made of some of its slices."""
    commands: list[list[str]] = []

    def fio(command: list[str], _pids: list[int], _timeout_s: float) -> tuple[Reading, float]:
        commands.append(command)
        if "/bad/" in " ".join(command) and len(commands) > 3:
            raise TargetError("it broke")
        return Reading(100.0, 100 * 4096.0, 10.0, 20), 0.0

    monkeypatch.setattr(run, "_fio", fio)
    told: list[str] = []
    targets = [Target(name, name, partial(raw, name=name)) for name in ("good", "bad", "other")]
    plan = Plan(targets, WORKLOADS[:1], 1, 1.0, "libaio")
    cells = list(run.measure(plan, Lab(tmp_path, 1 << 20, "native"), told.append))
    assert [(cell.target, cell.round, cell.iops) for cell in cells] == [("good", 0, 100), ("other", 0, 100)]
    assert [line for line in told if "it broke" in line] == ["bad, randread-qd1: it broke"]
    words = [{w.split("=")[0]: w.split("=")[-1] for w in command} for command in commands]
    assert {w["--runtime"] for w in words} == {"200ms"}
    assert "".join(w["--randseed"] for w in words) == "111" + "222" + "334455"


def test_fio_is_told_to_keep_the_file_as_it_is() -> None:
    """Direct, time based, no creation, no preallocation: the targets' files may not change shape."""
    command = fio_command(WORKLOADS[0], Path("f"), 4096, runtime_s=0.5, engine="libaio", seed=3)
    assert {
        "--direct=1",
        "--time_based",
        "--allow_file_create=0",
        "--fallocate=none",
        "--runtime=500ms",
    } < set(command)


def test_fio_is_told_to_sync_what_goes_through_the_page_cache() -> None:
    """The row with fsync: buffered, synchronous, whatever engine the others have."""
    [workload] = [workload for workload in WORKLOADS if workload.name == "loop-ext4-randrw"]
    command = fio_command(workload, Path("f"), 4096, runtime_s=0.5, engine="libaio", seed=3)
    assert {"--direct=0", "--fsync=16", "--ioengine=psync", "--rw=randrw"} < set(command)
    assert not {"--direct=1", "--ioengine=libaio"} & set(command)


def side(ios: int, latency_ns: float) -> dict[str, object]:
    """One direction in fio's report."""
    return {"total_ios": ios, "iops": ios / 2, "bw_bytes": ios * 2048, "lat_ns": {"mean": latency_ns}}


def test_fio_output_is_read_past_its_notes() -> None:
    """Notes before the report and the console after it are skipped; the idle side counts for nothing."""
    report = json.dumps({"jobs": [{"error": 0, "read": side(0, 0), "write": side(10, 2000)}]})
    reading = read_fio(f"note: x\n{report}\nreboot: Power {{down}}\n")
    assert (reading.iops, reading.latency_us, reading.ios) == (5, 2.0, 10)


def test_reads_and_writes_of_a_job_are_added() -> None:
    """Their rates and numbers; the latency is that of all of them."""
    reading = read_fio(json.dumps({"jobs": [{"error": 0, "read": side(30, 1000), "write": side(10, 5000)}]}))
    assert (reading.iops, reading.bytes_per_s, reading.ios) == (20, 40 * 2048, 40)
    assert reading.latency_us == 2.0


@pytest.mark.parametrize(
    "job", [{"error": 5}, {"error": 0, "read": {"total_ios": 0}, "write": {"total_ios": 0}}]
)
def test_a_failed_fio_job_is_no_number(job: dict[str, object]) -> None:
    """An error, or nothing done, is refused instead of counted as zero."""
    with pytest.raises(ValueError, match="fio"):
        read_fio(json.dumps({"jobs": [job]}))


def test_a_guest_without_a_report_is_no_number() -> None:
    """What its console said last is told."""
    with pytest.raises(ValueError, match="guest: failed at: fio 1"):
        read_fio("booting\nguest: failed at: fio 1\n")


def test_chosen_targets_bring_their_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    """A ratio needs raw; a loop or a guest needs its like on raw; an unknown name lists the valid ones."""
    assert [t.name for t in command_line._target_list("qsd")] == ["raw", "qsd"]
    for place in ("loop", "ext4", "guest"):
        chosen = command_line._target_list(f"{place}-aiofs")
        assert [t.name for t in chosen] == [f"{place}-raw", f"{place}-aiofs"]
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["--targets", "qemu"])
    assert "nbdfuse" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument", [["--size", "12"], ["--size", "0G"], ["--rounds", "0"], ["--workloads", "x"]]
)
def test_bad_arguments_end_with_status_2(argument: list[str]) -> None:
    """Nothing is measured with a value that makes no sense."""
    with pytest.raises(SystemExit, match="2"):
        command_line.main(argument)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--from says which file and ends with status 2."""
    (tmp_path / "x.json").write_text("{}")
    assert command_line.main(["--from", str(tmp_path / "x.json")]) == 2
    assert "x.json is not a result" in capsys.readouterr().err


def test_every_target_has_the_same_image_and_leaves_nothing(tmp_path: Path) -> None:
    """Hard links, so that all read and write the same blocks of the disk; a lock is waited for."""
    lab = Lab(tmp_path, 1 << 20, "native")
    with lab.written():
        with raw(lab, "a") as first, raw(lab, "b") as second:
            assert first.path != second.path
            assert first.path.samefile(second.path)
            settle(lab.image)
        with lab.image.open("r+b") as other:
            lock_for_writing(other.fileno())
            threading.Timer(0.1, other.close).start()
            settle(lab.image)
            assert other.closed
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_written_in_full(tmp_path: Path) -> None:
    """Every block is allocated, whatever the size's relation to the block that is written."""
    image = tmp_path / "disk.img"
    write_image(image, 5 << 20)
    assert image.stat().st_size == 5 << 20
    assert image.stat().st_blocks * 512 >= 5 << 20


# -- --auto --


def test_auto_is_compared_with_the_driver_of_the_highest_median() -> None:
    """Paired by round; 0.9 of the best is enough, and a workload without auto has no row."""
    measured = results(
        cells("aiofs-auto", "randread-qd1", 90, 180, 91, 92),
        cells("aiofs-io_uring", "randread-qd1", 100, 200, 100, 100),
        cells("aiofs-sync", "randread-qd1", 500, 10, 10, 10),
        cells("aiofs-linux", "write-qd32", 100),
    )
    [row] = auto.rows("ext4", measured)
    assert (row.best, row.iops) == ("io_uring", 91.5)
    assert row.ratio.median == pytest.approx(0.905)
    assert (row.ratio.low, row.ratio.high) == (0.9, 0.92)
    assert row.met
    assert "| ext4 | random read, depth 1 | 92 | io_uring | 0.91 |" in auto.markdown([row])


def test_luck_in_a_round_makes_no_best_driver_of_it() -> None:
    """Four that are equal but for chance: each was lucky once, and auto never; it is as good as they are."""
    measured = results(
        cells("aiofs-auto", "read-qd1", 100, 100, 100, 100),
        *(
            cells(f"aiofs-{driver}", "read-qd1", *(130 if r == lucky else 100 for r in range(4)))
            for lucky, driver in enumerate(auto.DRIVERS)
        ),
    )
    [row] = auto.rows("ext4", measured)
    assert row.ratio.median == 1


def test_a_round_without_a_driver_has_the_best_of_the_rest() -> None:
    """A driver that failed in one round; rounds without any other are left out."""
    measured = results(
        cells("aiofs-auto", "read-qd1", 90, 80),
        cells("aiofs-sync", "read-qd1", 200),
    )
    [row] = auto.rows("ext4", measured)
    assert row.ratio == Spread(0.45, 0.45, 0.45)


def test_auto_that_is_slower_is_told() -> None:
    """MISSED in its row and in the count."""
    measured = results(cells("aiofs-auto", "read-qd1", 50), cells("aiofs-sync", "read-qd1", 100))
    text = auto.markdown(list(auto.rows("tmpfs", measured)))
    assert "MISSED" in text
    assert "0 of 1 rows" in text


def test_rows_of_auto_are_chosen_by_file_system_and_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them by default; an unknown one ends with status 2 and the names that there are."""
    names = {
        kind: [w.name for w in some] for kind, some in auto.rows_named("btrfs/write-*,tmpfs/read-qd1").items()
    }
    assert names == {"btrfs": ["write-qd1", "write-qd32"], "tmpfs": ["read-qd1"]}
    everything = command_line._parser().parse_args(["--auto"]).rows
    assert {kind: len(some) for kind, some in everything.items()} == dict.fromkeys(filesystems.KINDS, 8)
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["--auto", "--rows", "ext4/*,zfs/*"])
    assert "'zfs/*' is none of: ext4/randread-qd1" in capsys.readouterr().err
