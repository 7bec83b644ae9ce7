"""The CLAIM checklist of a run: every item, answered by the record or left to the authors."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from page_runs import Page, sample, write_run

from xray_lightning.data.datamodule import demographics
from xray_lightning.deploy.model_card.card import checklist_table
from xray_lightning.report.claim_checklist import items, left_to_authors
from xray_lightning.report.wording import imaged
from xray_lightning.report.write import write_run_report
from xray_lightning.runs.run_folder import Run, run_of

WHO = {
    "sex": {"female": 30, "male": 60, "unknown": 10},
    "view": {"PA": 0, "AP": 0, "unknown": 100},
    "age": {"known": 90, "median": 51.0, "quartiles": [39.0, 62.0]},
}


def recorded(results: dict[str, Any]) -> Run:
    return run_of(Path("run"), results)


def answers(results: dict[str, Any]) -> dict[int, str | None]:
    return {item.number: item.answer for item in items(recorded(results))}


def test_every_item_is_answered_or_named_as_the_authors_and_leads_into_the_page(
    tmp_path: Path,
) -> None:
    results = sample()
    run = recorded(results)
    found = items(run)
    assert [item.number for item in found] == list(range(1, 45))
    assert len({item.words for item in found}) == 44
    page = Page(write_run_report(write_run(tmp_path, results)))
    shown, left = page.text("claim"), left_to_authors(run)
    for item in found:
        if item.answer is None:
            assert f"{item.words} ({item.number})" in left
        else:
            assert f"({item.number})" not in left
            assert item.answer in shown
        if item.section:
            assert page.text(item.section)
    assert left in shown
    table = checklist_table(run)
    assert [cell[0] for cell, *_ in table.rows] == [str(i.number) for i in found if i.answer]


def test_labels_of_a_data_set_that_nobody_knows_are_for_its_authors_to_explain() -> None:
    results = sample()
    results["data"]["name"] = "nih"
    assert "by a program" in str(answers(results)[14])
    results["data"]["name"] = "ours"
    assert [answers(results)[number] for number in (14, 16, 17)] == [None] * 3


@pytest.mark.parametrize(
    "given, told",
    [
        (None, "Random weights, seed 0"),
        ("in/a.pth", "Weights of a.pth"),
        (["in/a.pth", "package://x/b.pth"], "Weights of a.pth and b.pth"),
    ],
)
def test_the_files_of_weights_that_training_began_with_are_named(given: Any, told: str) -> None:
    results = sample()
    results["config"]["model"] |= {"weights_path": given}
    assert told in str(answers(results)[24])


@pytest.mark.parametrize(
    "monitor, told", [(None, "The last epoch"), ("val/loss", "By val/loss on validation")]
)
def test_how_the_tested_epoch_was_chosen_is_told(monitor: str | None, told: str) -> None:
    results = sample()
    results["config"]["callbacks"] = {"best": {"monitor": monitor}}
    assert told in map(str, answers(results).values())


def test_patients_on_two_sides_are_not_called_disjoint() -> None:
    results = sample()
    assert answers(results)[20] == "Patients: none is on two sides"
    results["data"]["patient_overlap"] = {"train-test": {"patients": 3, "images": 5}}
    assert answers(results)[20] == "Images: 3 on train-test are on two sides"


def test_a_run_without_a_test_or_an_epoch_answers_that_there_was_none() -> None:
    results = sample() | {"history": []}
    results["metrics"]["test"] = None
    found = answers(results)
    assert "not tested" in str(found[37])
    assert found[25] == found[26] == "No epoch was trained in this run"


def test_who_is_on_the_images_of_each_side_is_recorded_and_told(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "age": [30.0, 40.0, 80.0, float("nan")],
            "sex": ["F", "M", "", "F"],
            "view": ["AP", "AP", "PA", ""],
        }
    )
    assert demographics(table) == {
        "sex": {"female": 2, "male": 1, "unknown": 1},
        "view": {"PA": 1, "AP": 2, "unknown": 1},
        "age": {"known": 3, "median": 40.0, "quartiles": pytest.approx([35.0, 60.0])},
    }
    nobody = demographics(table.assign(age=float("nan"), sex="", view=""))
    assert nobody["age"] == {"known": 0, "median": None, "quartiles": None}
    results = sample()
    assert answers(results)[36] == "Not recorded"  # as of older runs
    results["data"]["demographics"] = {"train": WHO, "test": nobody}
    told = "age 51 (39-62), 33 % female"
    assert answers(results)[36] == f"train {told}; test age, sex and view unknown"
    assert imaged(recorded(results).sides[0]) == told
    assert told in Page(write_run_report(write_run(tmp_path, results))).text("run")
