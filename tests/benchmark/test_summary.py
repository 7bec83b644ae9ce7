"""What is made of raw results: medians, ratios, checks, the plan, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from benchmarks.arms import ARMS, choose_arms, pairings
from benchmarks.results import HEAD, ratios, ratios_by_precision, render, summarise, write_readme
from benchmarks.side_by_side import loss_difference, worker_counts
from xray_lightning.errors import UserError

FAST, PLAIN = "bf16-mixed", "32-true"


def result(rate: float, *, cold: bool = False, seconds: float = 9.0) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "data_wait_fraction": 0.1,
        "peak_memory_bytes": {"host": int(rate), "device": None},
        "seconds": seconds,
        "cold": cold,
    }


RAW = {
    "ours": {PLAIN: [result(rate) for rate in (20, 18, 25)], FAST: [result(30, cold=True)] * 3},
    "slow": {PLAIN: [result(rate) for rate in (10, 9, 5)], FAST: [result(8)] * 3},
    "compute_only": {FAST: [result(rate) for rate in (40, 32, 20)]},
}


def test_an_arm_counts_with_its_best_precision() -> None:
    arms = summarise(RAW)
    assert (arms["ours"]["images_per_second"], arms["ours"]["precision"]) == (30, FAST)
    assert (arms["slow"]["images_per_second"], arms["slow"]["precision"]) == (9, PLAIN)
    at = arms["ours"]["by_precision"][PLAIN]
    assert (at["lowest"], at["images_per_second"], at["highest"]) == (18, 20, 25)
    assert at["peak_memory_bytes"] == {"host": 25, "device": None}


def test_the_first_run_of_an_arm_is_cold_and_the_others_warm() -> None:
    runs = [result(1, cold=True, seconds=50), result(1, seconds=8), result(1, seconds=12)]
    at = summarise({"ours": {PLAIN: runs}})["ours"]["by_precision"][PLAIN]
    assert (at["cold_seconds"], at["warm_seconds"]) == (50, 10)


def test_best_against_best_and_equal_precision_are_told_apart() -> None:
    arms = summarise(RAW)
    assert ratios(arms) == {
        "ours_to_slow": 30 / 9,
        "ours_to_compute_only": 30 / 32,
        "slow_to_compute_only": 9 / 32,
    }
    equal = ratios_by_precision(arms)
    # Round by round: 20 / 10, 18 / 9, 25 / 5; the quotient of the medians is 20 / 9.
    assert equal[PLAIN] == {"ours_to_slow": {"ratio": 20 / 9, "lowest": 2.0, "highest": 5.0}}
    assert equal[FAST]["ours_to_slow"]["ratio"] == 30 / 8


@pytest.mark.parametrize(
    "arm, losses, refused",
    [
        ("ours", [0.700001, 0.595, 0.505], False),
        ("ours", [0.701, 0.6, 0.5], True),  # the first has seen no update: other pixels or order
        ("ours", [0.7, 0.6, 0.7], True),  # no update was made
        ("paper_loop", [0.7, 0.63, 0.45], False),  # its stem learns in three channels
        ("ours", [float("nan"), 0.6, 0.5], True),
    ],
)
def test_losses_may_differ_by_rounding_alone(arm: str, losses: list[float], refused: bool) -> None:
    told = loss_difference({"compute_only": [0.7, 0.6, 0.5], arm: losses}, arm, "compute_only")
    assert (told is not None) == refused


def test_arms_that_cannot_run_here_are_left_out_with_a_reason() -> None:
    chosen, skipped = choose_arms((), accelerator="cpu")
    assert {arm.name for arm in chosen} | skipped.keys() == ARMS.keys()
    assert skipped["ours_no_cuda_graph"] == "it needs --accelerator cuda"
    assert {"ours", "paper_loop", "compute_only"} <= {arm.name for arm in chosen}
    on_cuda, left_out = choose_arms((), accelerator="cuda")
    assert "ours_no_cuda_graph" in {arm.name for arm in on_cuda}
    assert left_out["ours_no_keep_freed_memory"] == "it needs --accelerator cpu"


def test_a_switch_is_turned_over_at_one_precision_and_every_other_arm_runs_at_both() -> None:
    names = ("ours", "ours_no_fused", "ours_no_tf32", "compute_only")
    planned = pairings([ARMS[name] for name in names], (PLAIN, FAST))
    assert [(arm.name, precision) for arm, precision in planned] == [
        ("ours", PLAIN),
        ("ours_no_tf32", PLAIN),
        ("compute_only", PLAIN),
        ("ours", FAST),
        ("ours_no_fused", FAST),
        ("compute_only", FAST),
    ]


def test_numbers_of_workers_reach_every_core() -> None:
    assert worker_counts(1) == [1]
    assert worker_counts(2) == [1, 2]
    assert worker_counts(12) == [1, 2, 4, 8, 12]


MEASURED = {
    "kind": "decoders",
    "machine": {
        "cpu": "A",
        "cores": 2,
        "memory_gib": 1.0,
        "gpu": None,
        "os": "Linux",
        "python": "3.11",
        "packages": {"torch": "2"},
    },
    "command": "python decode.py",
    "date": "2026-01-31",
    "table": {
        "title": "Decoders",
        "columns": ["decoder", "ms"],
        "rows": [["a|b", 1.5]],
        "notes": ["One core."],
    },
}


def test_the_page_has_a_section_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "decoders.json").write_text(json.dumps(MEASURED))
    page = write_readme(tmp_path).read_text()
    assert page.startswith(HEAD)
    assert "## Decoders" in page
    assert "| decoder | ms |\n| --- | --- |\n| a\\|b | 1.5 |\n" in page
    assert "- One core.\n" in page
    assert "`python decode.py` ([decoders.json](decoders.json))" in page


def test_a_file_that_is_no_measurement_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no JSON file"):
        render(tmp_path)
    (tmp_path / "x.json").write_text('{"kind": 1}')
    with pytest.raises(UserError, match=r"x\.json has no command, date, machine, table"):
        render(tmp_path)
    (tmp_path / "x.json").write_text('{"kind')
    with pytest.raises(UserError, match=r"x\.json: not complete JSON"):
        render(tmp_path)


def test_the_page_in_the_repository_is_what_its_files_give() -> None:
    folder = REPOSITORY / "benchmarks"
    if not list(folder.glob("*.json")):
        pytest.skip("nothing has been measured yet")
    assert (folder / "README.md").read_text() == render(folder)
