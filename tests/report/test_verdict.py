"""What a run's page says in short, and what it sets beside metadata, finding by finding."""

from pathlib import Path
from typing import Any

from page_runs import Page, predictions, sample, scored, write_run

from xray_lightning.report.pages import SECTIONS
from xray_lightning.report.verdict import gains_table, in_short
from xray_lightning.report.write import write_run_report
from xray_lightning.runs.schema import TestMetrics


def metrics(**skill: Any) -> dict[str, Any]:
    return scored(predictions(**skill))


def said(found: dict[str, Any]) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for sentence, section in in_short(TestMetrics.model_validate(found)):
        sentences[section] = f"{sentences.get(section, '')} {sentence}"
    return sentences


def test_a_model_of_skill_is_summed_up_with_a_link_to_each_section() -> None:
    found = metrics()
    short = said(found)
    assert short.keys() == {"metadata", "subgroups", "confusion", "calibration"} <= SECTIONS.keys()
    rows = found["per_finding"]
    known = [row for row in rows.values() if row["gain_over_metadata_ci95"]]
    shown = [row for row in known if row["gain_over_metadata_ci95"][0] > 0]
    assert 0 < len(shown) <= len(known)
    assert f"can be shown for {len(shown)} of {len(known)}:" in short["metadata"]
    assert "the images add +" in short["metadata"]
    assert "better than always" in short["calibration"]
    lowest = min(row["sensitivity"] for row in rows.values() if row["sensitivity"] is not None)
    assert f"sensitivity from {100 * lowest:.0f} %" in short["confusion"]


def test_a_model_that_sees_nothing_is_told_so_without_saying_its_alert_again(
    tmp_path: Path,
) -> None:
    found = metrics(skill=0.0, seed=3)
    short = said(found)
    assert "alone reach" not in short["metadata"]
    assert "no better than always" in short["calibration"]
    results = sample()
    results["metrics"]["test"] = found
    page = Page(write_run_report(write_run(tmp_path, results)))
    assert page.text("result").count("that the images add anything cannot be shown") == 1


def test_each_finding_stands_beside_metadata_with_both_intervals(tmp_path: Path) -> None:
    found = metrics()
    table = gains_table(TestMetrics.model_validate(found))
    assert table is not None
    row = found["per_finding"]["Effusion"]
    (cells,) = (cells for cells in table.rows if cells[0] == ("Effusion",))
    low, high = row["metadata_auroc_ci95"]
    assert cells[2] == (f"{row['metadata_auroc']:.3f}", f"{low:.3f} to {high:.3f}")
    assert cells[3][0] == f"{row['gain_over_metadata']:+.3f}"
    older = sample()
    assert gains_table(TestMetrics.model_validate(older["metrics"]["test"])) is None
    page = Page(write_run_report(write_run(tmp_path, older)))
    assert "this record is older than the baseline" in page.text("metadata")
