"""aiofs bench without a disk: words, plan, verdict, tables and pictures from made-up numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from aiofs import cli, probe
from aiofs.bench import arguments, plot, report
from aiofs.bench.plan import WORKLOADS, Plan
from aiofs.bench.results import OrderSample, Results, Sample
from aiofs.bench.verdict import Auto, auto_choice, judge
from aiofs.errors import BadInput

PLAN = Plan(("io_uring", "threads"), WORKLOADS, (1, 32), 4096, rounds=3, runtime_s=0.2, seed=7)


def made_up(iops: dict[str, tuple[float, ...]], cpu_us: dict[str, float] | None = None) -> Results:
    """Every workload at depths 1 and 32 with the same IOPS of each round, twice as many at 32."""
    results = Results(
        image="a<&>.img",
        size=1 << 30,
        filesystem="ext4",
        cache="none",
        settings={
            "drivers": list(iops), "block_size": 4096, "rounds": 3, "runtime_s": 0.2, "seed": 7,
            "merge": False,
        },
        machine={"cpu": "x<&>", "cores": "2", "kernel": "6.18", "date": "2026-01-01"},
    )  # fmt: skip
    for workload in WORKLOADS:
        for depth in (1, 32):
            for driver, rounds in iops.items():
                for number, value in enumerate(rounds):
                    rate = value * (2 if depth == 32 else 1)
                    cpu = (cpu_us or {}).get(driver, 5.0)
                    results.samples.append(
                        Sample(
                            driver,
                            workload.name,
                            depth,
                            number,
                            rate,
                            rate * 4096,
                            50,
                            90,
                            cpu,
                            1.0,
                            4.0,
                            9.0,
                        )
                    )
    for driver in iops:
        results.order.append(OrderSample(driver, 32, 0, 0.25, 3))
    return results


# -- verdict --


def test_the_driver_with_the_most_iops_wins() -> None:
    """Its score is 1; another one's is its share."""
    verdict = judge(made_up({"io_uring": (100, 100, 100), "threads": (80, 80, 80)}), Auto("io_uring", "why"))
    assert verdict.recommended == "io_uring"
    assert verdict.scores == pytest.approx({"io_uring": 1.0, "threads": 0.8})
    assert (verdict.agrees, verdict.slower) == (True, 0.0)


def test_a_driver_level_in_iops_wins_with_less_cpu_time() -> None:
    """2 % slower is no difference."""
    results = made_up({"threads": (100, 100, 100), "linux": (98, 98, 98)}, {"threads": 12.0, "linux": 4.0})
    verdict = judge(results, Auto("threads", "why"))
    assert verdict.recommended == "linux"
    assert verdict.agrees is True
    assert verdict.slower == pytest.approx(1 - 100 / 98)


def test_a_driver_that_is_clearly_slower_does_not_win_by_cpu_time() -> None:
    """4 % slower with rounds that do not differ."""
    results = made_up({"threads": (100, 100, 100), "linux": (96, 96, 96)}, {"threads": 12.0, "linux": 4.0})
    assert judge(results, Auto("threads", "why")).recommended == "threads"


@pytest.mark.parametrize(
    ("rounds", "level"),
    [
        ((97.5, 97.5, 97.5), True),
        ((93, 93, 93), False),
        ((80, 93, 101), True),
        ((80, 89, 120), False),
    ],
)
def test_level_is_near_or_has_won_a_round(rounds: tuple[float, ...], level: bool) -> None:
    """Within 3 % in any case; within 10 % with a round that was faster; further away never."""
    results = made_up({"threads": (100, 100, 100), "linux": rounds})
    assert ("linux" in judge(results, Auto("threads", "")).level) is level


def test_auto_is_told_by_how_much_it_is_wrong() -> None:
    """Half as fast in every workload: 50 % over all, and in each."""
    results = made_up({"io_uring": (100, 100, 100), "threads": (50, 50, 50)})
    verdict = judge(results, Auto("threads", "a reason"))
    assert verdict.agrees is False
    assert verdict.slower == pytest.approx(0.5)
    assert verdict.slower_by_workload == pytest.approx({w.name: 0.5 for w in WORKLOADS})
    said = "\n".join(report.sentences(results, verdict))
    assert "auto is wrong: its driver is 50% slower over all (random read 50% slower, " in said
    assert "--aio auto chooses:  threads (a reason)." in said


def test_a_score_is_a_geometric_mean() -> None:
    """Twice as fast in half of the cells and half as fast in the others is level."""
    results = made_up({"io_uring": (100, 100, 100), "threads": (100, 100, 100)})
    results.samples = [
        Sample(**{**vars(s), "iops": s.iops * 2})
        if (s.driver == "threads") == s.workload.startswith("rand")
        else s
        for s in results.samples
    ]
    scores = judge(results, Auto("io_uring", "")).scores
    assert scores["io_uring"] == pytest.approx(scores["threads"])


def test_auto_that_was_not_measured_is_not_judged() -> None:
    """And the way to measure it is said."""
    results = made_up({"threads": (1, 1, 1)})
    verdict = judge(results, Auto("io_uring", "why"))
    assert (verdict.agrees, verdict.slower) == (None, None)
    assert "add it: --drivers io_uring" in "\n".join(report.sentences(results, verdict))


def test_auto_is_judged_by_the_driver_of_each_workload() -> None:
    """Where threads write beside the driver, writes are compared with those of threads."""
    results = made_up({"io_uring": (100, 100, 100), "threads": (80, 80, 80)})
    verdict = judge(results, Auto("io_uring", "copy-on-write", writer="threads"))
    assert verdict.slower_by_workload["randread"] == pytest.approx(0)
    assert verdict.slower_by_workload["randwrite"] == pytest.approx(0.2)
    assert verdict.agrees is False


def test_auto_has_a_driver_and_a_reason(tmp_path: Path) -> None:
    """What `aiofs probe` says of the image."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    auto = auto_choice(image)
    decision = probe.probe(image).decision
    assert (auto.driver, auto.reason) == (decision.driver, decision.reason)


# -- plan --


def test_each_round_has_every_cell_in_an_order_of_its_own() -> None:
    """Shuffled by seed and round, the same for the same seed."""
    first, second = PLAN.order(0), PLAN.order(1)
    assert first == PLAN.order(0) != second
    assert set(first) == set(second) == set(PLAN.cells())
    assert len(first) == 2 * 4 * 2


def test_order_is_looked_at_where_there_is_one() -> None:
    """With sequential writes, and with more than one request."""
    assert list(PLAN.order_cells()) == [("io_uring", 32), ("threads", 32)]
    reads = Plan(("sync",), WORKLOADS[:3], (1, 32), 4096, 1, 0.1, 1)
    assert list(reads.order_cells()) == []


# -- words --


def asked(*words: str) -> arguments.Request:
    """The request of a command line."""
    parsed = cli._parser().parse_args(["bench", "disk.img", *words])
    return arguments.request(parsed, Path("disk.img"))


def test_defaults_are_what_the_help_says() -> None:
    """And --quick changes depths, rounds and time only where they were not given."""
    assert (asked().depths, asked().rounds, asked().runtime_s) == ((1, 4, 32, 128), 3, 0.2)
    quick = asked("--quick", "--rounds", "5")
    assert (quick.depths, quick.rounds, quick.runtime_s) == ((1, 32), 5, 0.1)
    assert asked("--drivers", "sync,linux").drivers == ("linux", "sync")
    assert asked("--depths", "8,2,8").depths == (2, 8)
    assert [asked("--block-size", word).block_size for word in ("512", "4k", "64K", "1m")] == [
        512, 4096, 65536, 1 << 20,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--depths", "0"], "queue depth '0' is not a number from 1 to 1024"),
        (["--depths", "1,,2"], "queue depth ''"),
        (["--depths", "1e3"], "queue depth '1e3'"),
        (["--depths", ""], "queue depth ''"),
        (["--drivers", "aio"], "unknown AIO driver 'aio'; valid: io_uring linux threads posix sync"),
        (["--drivers", ""], "unknown AIO driver ''"),
        (["--workloads", "trim"], "unknown workload 'trim'; valid: randread read randwrite write"),
        (["--block-size", "3k"], "block size '3k' is not a power of two from 512 to 1m"),
        (["--block-size", "256"], "block size '256'"),
        (["--block-size", "2m"], "block size '2m'"),
        (["--block-size", "1m", "--depths", "4,512"], "queue depth 512 with blocks of 1m needs 512 MiB"),
        (["--runtime", "nan"], "runtime 'nan' is not a number of seconds from 0.01 to 600"),
        (["--runtime", "-1"], "runtime '-1'"),
        (["--rounds", "0"], "rounds '0' is not a number from 1 to 100"),
        (["--seed", "x"], "seed 'x'"),
        (["--cache", "unsafe"], "cache mode 'unsafe' is not measured; use none (O_DIRECT) or writeback"),
        (["--plot", "x.png"], "--plot x.png must end in .svg"),
        (["--plot", "gone/x.svg"], "does not exist; make it: mkdir -p"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], says: str) -> None:
    """With what would be right."""
    with pytest.raises(BadInput) as refused:
        asked(*words)
    assert says in str(refused.value)


# -- what is shown --


@pytest.fixture
def results() -> Results:
    """Two drivers, one of them twice as fast."""
    return made_up({"io_uring": (90, 100, 130), "threads": (45, 50, 60)})


def test_the_table_has_a_row_for_each_cell_and_the_verdict_at_its_end(results: Results) -> None:
    """Medians and spread; the share of late writes in the table of sequential writes only."""
    results.notes.append("something was left out")
    out = io.StringIO()
    report.show(results, judge(results, Auto("io_uring", "why")), Console(file=out, width=report.PLAIN_WIDTH))
    lines = out.getvalue().splitlines()
    rows = [line.split() for line in lines if line.lstrip().startswith(("1 ", "32 ", "threads"))]
    assert len(rows) == 4 * 2 * 2
    assert rows[0] == ["1", "io_uring", "100", "±20%", "0", "50", "90", "5.0", "1.00"]
    assert [row[-1] for row in rows[-4:]] == ["-", "-", "25.0%", "25.0%"]
    assert "Note: something was left out." in lines
    assert lines[-1] == "auto agrees."


def test_json_has_medians_extremes_and_every_sample(results: Results) -> None:
    """What a program needs to judge for itself."""
    told = json.loads(json.dumps(results.to_json()))
    assert len(told["samples"]) == 4 * 2 * 2 * 3
    assert len(told["cells"]) == 4 * 2 * 2
    assert told["cells"][0]["iops"] == {"median": 100, "low": 90, "high": 130}
    assert told["order"][0] == {
        "driver": "io_uring",
        "depth": 32,
        "round": 0,
        "late": 0.25,
        "displacement": 3,
    }


def test_the_plot_is_well_formed_and_draws_each_bar_to_its_height(results: Results) -> None:
    """A panel per workload, a bar per depth and driver, twice as high for twice the IOPS."""
    root = ElementTree.fromstring(plot.svg(results))
    bars = [rect for rect in root.iter() if rect.find("{*}title") is not None]
    assert len(bars) == 4 * 2 * 2
    heights = [float(bar.get("height", "0")) for bar in bars[:4]]
    assert heights == pytest.approx([heights[1] * 2, heights[1], heights[1] * 4, heights[1] * 2], abs=0.2)
    assert all(float(bar.get("y", "-1")) > plot.TOP for bar in bars)
