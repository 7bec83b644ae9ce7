"""report.html of one run: what it says in each state of the run, and that it stands alone."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_runs import (
    IMAGES,
    SECTIONS,
    Page,
    draw_images,
    predictions,
    sample,
    scored,
    untested,
    whole_run,
    write_run,
)
from predicted import frame

from xray_lightning.errors import UserError
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.published_results import OFFICIAL_TEST_IMAGES, PAPER_ALWAYS_NEGATIVE
from xray_lightning.findings import FINDINGS
from xray_lightning.html.page import NOTICE
from xray_lightning.report.sections import Mistake, most_confident, with_pictures
from xray_lightning.report.wording import NO_BETTER
from xray_lightning.report.write import write_run_report

OF_TEST = tuple(name for name in SECTIONS[:11] if name not in ("notes", "metadata"))
DEFINED = len(FINDINGS) - 1  # no image has Hernia


def page_of(folder: Path) -> Page:
    return Page(write_run_report(folder))


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has everything."""
    return whole_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def whole(whole_folder: Path) -> Page:
    """Its page."""
    return page_of(whole_folder)


def test_a_run_with_everything_has_every_section_filled(whole: Page) -> None:
    assert whole.sections == SECTIONS
    assert not [a for a in whole.of("p") if "missing" in a.get("class", "")]
    assert [a["href"][1:] for a in whole.of("a")[: len(SECTIONS)]] == SECTIONS
    assert "phantom_resnet18" in whole.text("run")
    assert "patient_random" in whole.text("run")
    assert f"macro AUROC over {DEFINED} of 14 findings" in whole.text("result")
    assert "best epoch, 2 of 3" in whole.text("training")
    assert "python train.py" in whole.text("reproduce")
    assert "model.arch=resnet18" in whole.text("reproduce")
    assert "ab" * 32 in whole.text("reproduce")


def test_what_a_call_is_worth_is_said_of_which_patients(tmp_path: Path) -> None:
    table = predictions()
    results = sample(table)
    test = results["metrics"]["test"]
    none = test["images_without_finding"] / IMAGES
    share = test["per_finding"]["Atelectasis"]["prevalence"]
    text = page_of(write_run(tmp_path / "as_it_is", results)).text("confusion")
    assert f"in which {100 * share:.2g} % of images show Atelectasis" in text
    assert f"{100 * none:.2g} % show no finding at all" in text
    assert "xray evaluate --prevalence" in text
    stated = Evaluator(resamples=9, prevalence={"Atelectasis": 0.02, "Fibrosis": 0.5})(table)
    results["metrics"]["test"] = stated
    text = page_of(write_run(tmp_path / "stated", results)).text("confusion")
    row = stated["per_finding"]["Atelectasis"]
    assert f"at 2 % it would be {row['ppv_at_stated_prevalence']:.3f} (" in text
    assert f"enriched: more frequent than stated are Atelectasis ({share / 0.02:.1f} times)" in text
    assert "At most half as frequent as stated: Fibrosis." in text


def test_the_decision_curves_say_where_the_model_is_worth_acting_on(whole: Page) -> None:
    text = whole.text("decisions")
    assert "5 % on takes 19 needless actions to be worth one" in text
    assert re.search(r"Shown to be worth acting on, by the threshold: \w+ \([\d.]+ % to", text)
    assert "Hernia: no image has the finding." in text
    assert "Of calibrated probabilities (of Hernia raw)" in text


def test_what_the_model_would_say_nothing_of_stands_in_a_table(whole: Page) -> None:
    text = whole.text("abstention")
    assert "of those it says no of fewer than 20 % are missed, with 90 % confidence" in text
    assert "Hernia: no lower threshold, no validation image has the finding." in text
    assert "Patients with a no" in text


def test_each_plot_says_in_words_what_it_shows(whole: Page) -> None:
    plots = whole.of("svg")
    assert len(plots) == 3 * DEFINED + len(FINDINGS) + 1 + 1 + 3 + 1
    for plot in plots:
        assert plot["role"] == "img"
        assert len(plot["aria-label"]) > 20
    assert any(p["aria-label"].startswith("ROC curve of Effusion: AUROC 0.") for p in plots)


def test_the_research_notice_stands_once(whole: Page) -> None:
    assert whole.source.count(NOTICE) == 1
    assert NOTICE in whole.text("notice")


def test_the_page_needs_nothing_but_itself(whole: Page) -> None:
    tags = {tag for tag, _ in whole.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "audio", "video"}
    links = [a[key] for _, a in whole.elements for key in ("src", "href", "srcset") if key in a]
    assert len(links) > 50
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)|@import|https?://", whole.source) == []
    assert not [key for _, a in whole.elements for key in a if key.startswith("on")]
    assert "default-src 'none'" in whole.of("meta")[-1]["content"]


def structure(page: Page) -> list[str]:
    """Its headings and ids, without those inside of plots."""
    bare = re.sub(r"<svg.*?</svg>", "", page.source, flags=re.S)
    return re.findall(r"<h[1-4][^>]*>.*?</h[1-4]>|\bid=\"[^\"]*\"", bare, re.S)


@settings(max_examples=settings().max_examples // 10)  # each is trained, judged and drawn
@given(
    seed=st.integers(0, 2**32),
    skill=st.floats(-3, 3),
    constant=st.dictionaries(st.sampled_from(FINDINGS), st.integers(0, 1), max_size=13),
)
def test_the_page_has_the_same_headings_and_ids_whatever_was_predicted(
    seed: int, skill: float, constant: dict[str, int], whole: Page, tmp_path: Path
) -> None:
    table = predictions(skill=skill, seed=seed)
    table = table.assign(**{f"label_{name}": value for name, value in constant.items()})
    results = sample(table)
    results["data"]["root"] = str(tmp_path)
    page = page_of(write_run(tmp_path / "run", results, table))
    assert structure(page) == structure(whole)


def test_ids_are_unique_and_every_reference_leads_to_one(whole: Page) -> None:
    ids = [a["id"] for _, a in whole.elements if "id" in a]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    used = set(re.findall(r"[(\"]#([\w.-]+)[)\"]", whole.source))
    assert used <= set(ids)


def test_plots_take_the_colours_and_the_font_of_the_page(whole: Page) -> None:
    drawn = whole.source[whole.source.index("<svg") :]
    assert "var(--ink)" in drawn
    assert "var(--series-1)" in drawn
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]+", drawn) == []
    assert "font-family" not in drawn


def test_the_same_run_gives_the_same_bytes(whole_folder: Path, whole: Page) -> None:
    again = write_run_report(whole_folder).read_text(encoding="utf-8")
    assert again == whole.source
    assert len(again) < 1_000_000


@pytest.mark.parametrize(
    "status, reason, said",
    [
        ("failed", "rank 1 on host a: loss is NaN", "failed before its test: rank 1 on host a"),
        ("interrupted", "interrupted: SIGTERM", "was interrupted before its test: SIGTERM."),
        ("skipped", "needs CUDA", "was skipped: needs CUDA."),
        ("running", None, "has not come to its test yet"),
        ("finished", None, "was not tested"),
    ],
)
def test_a_run_without_a_test_says_why_in_each_section(
    tmp_path: Path, status: str, reason: str | None, said: str
) -> None:
    page = page_of(write_run(tmp_path, untested(status, reason)))
    assert page.sections == SECTIONS
    for section in OF_TEST:
        assert said in page.text(section), section
    assert "no epoch" in page.text("training").lower()
    assert page.of("img") == []
    assert len(page.of("svg")) == 1  # where the time went


def test_a_run_that_never_read_its_data_has_a_page(tmp_path: Path) -> None:
    results = untested("skipped", "needs CUDA") | {"data": None}
    results["timing"] = dict.fromkeys(results["timing"]) | {
        "peak_memory_bytes": {"host": None, "device": None}
    }
    page = page_of(write_run(tmp_path, results))
    assert "ended before it had read its data" in page.text("run")
    assert "Nothing was timed" in page.text("time")
    assert page.of("svg") == []


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.unlink(), "is not in the run's folder"),
        (lambda path: path.write_bytes(b"image,patient_id\n\xff,1\n"), "cannot be used"),
        (lambda path: path.write_text("image\na.png\n"), "cannot be used"),
        (
            lambda path: path.write_text("".join(path.read_text().splitlines(True)[:-1])),
            f"is of {IMAGES - 1} images, results.json of {IMAGES}",
        ),
    ],
    ids=["absent", "not text", "no such columns", "other images"],
)
def test_predictions_that_cannot_be_used_are_named(tmp_path: Path, spoil, said: str) -> None:
    table = predictions()
    run = write_run(tmp_path, sample(table), table)
    spoil(run / "predictions_test.csv")
    page = page_of(run)
    for section in ("notes", "curves", "mistakes"):
        assert said in page.text(section), section
    assert "Reliability" in " ".join(p["aria-label"] for p in page.of("svg"))


def test_pictures_show_the_mistakes_and_captions_name_them(whole: Page) -> None:
    pictures = whole.of("img")
    assert len(pictures) == 12
    assert all(p["src"].startswith("data:image/jpeg;base64,") for p in pictures)
    text = whole.text("mistakes")
    assert (
        text.index("False alarms")
        < text.index("odds \N{MULTIPLICATION SIGN}")
        < text.index("Missed findings")
    )
    assert text.count("(threshold 0.") == 12
    assert text.count(".png") == 12


def test_images_that_are_gone_are_named_with_the_reason(tmp_path: Path) -> None:
    table = predictions()
    results = sample(table)
    results["data"]["root"] = str(tmp_path / "gone")
    page = page_of(write_run(tmp_path / "run", results, table))
    assert page.of("img") == []
    assert page.text("mistakes").count("gone is not there") == 12
    assert page.text("mistakes").count(".png") == 12


def test_images_are_found_from_where_the_run_was_started_or_named_with_the_reason(
    tmp_path: Path,
) -> None:
    names = ("a.png", "torn.png", "absent.png")
    mistakes = [Mistake(name, "Mass", 0.9, 0.5, 9.0) for name in names]
    draw_images(tmp_path / "data" / "here", ["a.png"])
    (tmp_path / "data" / "here" / "torn.png").write_bytes(b"\x89PNG\r\n")
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    for root in ("data/here", str(tmp_path / "data")):
        found, torn, absent = with_pictures(mistakes, root=root, run_folder=run)
        assert (found.picture or "").startswith("data:image/jpeg"), root
    assert torn.picture is absent.picture is None
    assert "torn.png" in (torn.reason or "")
    assert "no file of this name" in (absent.reason or "")


def test_the_surest_mistakes_are_those_farthest_from_their_own_threshold_in_odds() -> None:
    table = predictions(images=6)
    for name in FINDINGS:
        table[f"prob_{name}"], table[f"label_{name}"] = 0.1, 0
    table.loc[0, ["prob_Mass", "prob_Hernia"]] = 0.8, 0.6  # odds of 4 and of 1.5
    table.loc[1, "prob_Hernia"] = 0.5
    table.loc[2:3, "prob_Hernia"] = 0.3, 0.2
    table.loc[4, "label_Mass"] = 1
    cuts = {"Mass": 0.5, "Hernia": 0.2}  # odds of 1 and of 1/4
    alarms = most_confident(table, cuts, missed=False)
    assert [(m.finding, round(m.times, 6)) for m in alarms] == [("Hernia", 6.0), ("Hernia", 4.0)]
    assert alarms[0].image == table["image"][0]  # once, though it is a false alarm for Mass too
    missed = most_confident(table, cuts, missed=True)
    assert [(m.finding, m.image, round(m.times, 6)) for m in missed] == [
        ("Mass", table["image"][4], 9.0)
    ]


def test_no_finding_fills_all_places_among_the_mistakes() -> None:
    mistakes = most_confident(predictions(), dict.fromkeys(FINDINGS, 0.15), missed=False)
    assert len(mistakes) == 6
    assert max(Counter(m.finding for m in mistakes).values()) <= 2
    assert len({m.image for m in mistakes}) == 6
    assert [m.times for m in mistakes] == sorted((m.times for m in mistakes), reverse=True)


HOSTILE = [
    "<script>alert(1)</script> \"'><img src=x onerror=alert(1)> </style><svg onload=alert(1)>",
    "\ud800 \x00 \x1b[31m \N{RIGHT-TO-LEFT OVERRIDE}gnp $\\frac{1$ \N{ARABIC LETTER ALEF}",
    pytest.param("javascript:{{ 7 * 7 }}{% include 'x' %}&amp;" * 20, id="long"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_fault_37_60_hostile_text_is_shown_as_it_is_written(
    tmp_path: Path, whole: Page, text: str
) -> None:
    table = predictions()
    results = sample(table, name=text, status="failed", reason=text, command=text)
    results["data"].update(name=text, split=text, dropped={text: 1}, root=text)
    results["config"] |= {"x": {text: text}}
    results["environment"].update(device=text, hosts=[text])
    results["training"] = {"warnings": [text], "skipped_steps": 0}
    for group in results["metrics"]["test"]["subgroups"]:
        group["group"] = text
    run = write_run(tmp_path, results)
    names = [f"{text}{number}.png".replace("\x00", "") for number in range(len(table))]
    table["image"] = pd.Series(names, dtype=object)  # pandas' own strings may be none but UTF-8
    table.to_csv(run / "predictions_test.csv", index=False, errors="backslashreplace")
    page = page_of(run)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "form", "img"}
    assert not [key for _, a in page.elements for key in a if key.startswith("on")]
    assert len(page.of("svg")) == len(whole.of("svg"))
    links = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    for hidden in ("\x1b", "\x00", "\N{RIGHT-TO-LEFT OVERRIDE}"):
        assert hidden not in page.source
    if text.isascii() and text.isprintable():
        assert page.text("run").count(text) >= 5


def test_an_accuracy_no_better_than_the_baseline_is_named(tmp_path: Path) -> None:
    results = sample()
    test = results["metrics"]["test"]
    test.update(label_accuracy=0.8692, always_negative_accuracy=0.8692)
    page = page_of(write_run(tmp_path, results))
    assert NO_BETTER in page.text("result")
    assert page.text("result").count("86.92 %") == 2
    test["label_accuracy"] = 0.8693
    assert NO_BETTER not in page_of(write_run(tmp_path, results)).text("result")


def test_the_papers_best_accuracy_is_that_of_always_answering_no_finding(tmp_path: Path) -> None:
    # As many images and positives as the test set that the paper reports on.
    labels = np.zeros(420 * len(FINDINGS), dtype=np.uint8)
    labels[:: len(labels) // 769][:769] = 1
    table = frame(np.full((420, 14), 0.01), labels.reshape(420, 14), range(420))
    results = sample(name="always_negative")
    results["metrics"]["test"] = Evaluator(resamples=0)(table)
    assert results["metrics"]["test"]["label_accuracy"] == pytest.approx(PAPER_ALWAYS_NEGATIVE)
    text = page_of(write_run(tmp_path, results)).text("result")
    assert NO_BETTER in text
    assert text.count("86.92 %") >= 2


@pytest.mark.parametrize(
    "gain, ends, shown, nothing",
    [
        (0.02, [-0.004, 0.05], "+0.020 (-0.004 to +0.050): that the images add anything", True),
        (0.06, [0.03, 0.09], "+0.060", False),
        (0.06, None, "+0.060", False),
    ],
)
def test_the_result_stands_beside_what_metadata_alone_reach(
    tmp_path: Path, gain: float, ends: list[float] | None, shown: str, nothing: bool
) -> None:
    results = sample()
    results["metrics"]["test"] |= {
        "metadata_auroc_macro": 0.636,
        "metadata_auroc_macro_ci95": [0.617, 0.654],
        "gain_over_metadata_macro": gain,
        "gain_over_metadata_macro_ci95": ends,
        "auroc_within_view_macro": 0.612,
        "auroc_within_view_macro_ci95": [0.58, 0.64],
        "combined_auroc_macro": 0.677,
        "gain_of_combined_macro": 0.041,
        "gain_of_combined_macro_ci95": [0.026, 0.056],
        "shuffled_labels": {
            "auroc_macro": 0.507,
            "auroc_macro_ci95": [0.48, 0.53],
            "epochs": 8,
            "gain": 0.155,
            "gain_ci95": [0.12, 0.19],
            "undefined_reason": {},
        },
    }
    text = page_of(write_run(tmp_path, results)).text("result")
    for part in (
        "0.636",
        "0.617 to 0.654",
        shown,
        "0.612",
        "0.580 to 0.640",
        "0.677",
        "+0.041",
        "0.507",
    ):
        assert part in text
    assert ("cannot be shown" in text) is nothing
    only = (
        "Only metadata and the model together reach more than metadata: +0.041 (+0.026 to +0.056)."
    )
    assert (only in text) is nothing


@pytest.mark.parametrize(
    "data, split, images, shown",
    [
        ("nih", "official", OFFICIAL_TEST_IMAGES, True),
        ("nih", "official", OFFICIAL_TEST_IMAGES - 1, False),
        ("nih", "patient_random", OFFICIAL_TEST_IMAGES, False),
        ("phantom", "official", OFFICIAL_TEST_IMAGES, False),
    ],
)
def test_published_figures_stand_only_beside_a_result_on_their_split(
    tmp_path: Path, data: str, split: str, images: int, shown: bool
) -> None:
    results = sample()
    results["data"].update(name=data, split=split)
    results["metrics"]["test"]["images"] = images
    text = page_of(write_run(tmp_path, results)).text("published")
    assert ("AE-CNN" in text) is shown
    assert ("No published figure is shown" in text) is not shown


def test_a_row_of_the_paper_stands_beside_its_tables(tmp_path: Path, whole: Page) -> None:
    results = sample()
    results["config"]["paper_row"] = 4
    text = page_of(write_run(tmp_path, results)).text()
    assert "Table 1. Test label accuracy by strategy" in text
    assert "Table 2. Training time by strategy" in text
    assert "Ran on CPU, where the paper's row 4 ran on CUDA." in text
    assert "no row of the paper's study" in whole.text("paper")


def test_the_notes_name_what_flatters_the_figures_or_was_left_out(tmp_path: Path) -> None:
    results = sample(training={"warnings": ["the loss jumps"], "skipped_steps": 3})
    results["data"].update(
        patient_overlap={"train-val": {"patients": 11, "images": 23}}, dropped={"no file": 320}
    )
    results["environment"].update(precision_asked="16-mixed", precision_used="bf16-mixed")
    text = page_of(write_run(tmp_path, results)).text("notes")
    for part in (
        "11 patients on both sides of train-val",
        "320 x no file",
        "Precision 16-mixed was asked for; it ran as bf16-mixed.",
        "3 steps left out",
        "Warning: the loss jumps",
    ):
        assert part in text


def test_a_finding_without_positives_is_undefined_with_its_reason(whole: Page) -> None:
    text = whole.text("findings")
    assert "Hernia: no image has the finding." in text
    assert "without an AUROC: Hernia" in whole.text("notes")
    assert not any("curve of Hernia" in plot["aria-label"] for plot in whole.of("svg"))


def test_flagged_gaps_are_counted_and_so_are_all_that_were_looked_at(tmp_path: Path) -> None:
    results = sample()
    groups = results["metrics"]["test"]["subgroups"]
    for group in groups:
        group["flagged"] = bool(group.get("flagged_by"))
    text = page_of(write_run(tmp_path, results)).text("subgroups")
    keys = ("gap", "sensitivity_gap", "specificity_gap")
    gaps = sum(
        group.get(f"{key}_ci95_simultaneous") is not None for group in groups for key in keys
    )
    assert f"2 of {gaps} gaps in AUROC, sensitivity and specificity flagged" in text
    assert text.count("flagged \N{MINUS SIGN}") + text.count("flagged +") == 2
    assert "0.152" in text  # the smallest that could have been shown


def test_a_record_without_intervals_for_all_gaps_is_said_to_have_none(tmp_path: Path) -> None:
    results = sample()
    new = ("_simultaneous", "flagged_by", "smallest_", "sensitivity_", "specificity_")
    for group in results["metrics"]["test"]["subgroups"]:
        for key in [key for key in group if any(part in key for part in new)]:
            del group[key]
        group["flagged"] = group["group"] == "female"
    text = page_of(write_run(tmp_path, results)).text("subgroups")
    assert "1 group flagged, by the interval of the gap in AUROC alone" in text
    assert text.count("flagged \N{MINUS SIGN}") == 1


def test_the_calibrated_curve_is_named_as_such(tmp_path: Path, whole: Page) -> None:
    assert "calibrated (Platt, fitted on 160 validation images)" in whole.text("calibration")
    assert "raw" in whole.text("calibration")
    results = sample()
    results["metrics"]["test"]["calibrated"] = None
    text = page_of(write_run(tmp_path, results)).text("calibration")
    assert "No calibration was fitted" in text
    assert "Platt" not in text


def test_the_parts_of_the_time_add_up_to_the_whole(whole: Page) -> None:
    text = whole.text("time")
    for part in ("start-up: 3.0 s", "image cache: 2.0 s", "test: 3.0 s", "the rest: 2.0 s"):
        assert part in text
    assert "28 images/s over all of training" in text


def test_damaged_results_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, sample())
    (run / "results.json").write_text(json.dumps(sample())[:-20])
    with pytest.raises(UserError, match=r"results\.json: not complete JSON"):
        write_run_report(run)
    with pytest.raises(UserError, match=r"results\.json"):
        write_run_report(tmp_path / "absent")
    for key, value in (("subgroups", [{"by": "sex"}]), ("calibrated", {"images": 1})):
        results = sample()
        results["metrics"]["test"][key] = value
        with pytest.raises(UserError, match=r"results\.json: ") as caught:
            write_run_report(write_run(tmp_path, results))
        assert "\n" not in str(caught.value)


def test_the_page_of_all_official_images_stays_small(tmp_path: Path) -> None:
    table = predictions(images=OFFICIAL_TEST_IMAGES)
    results = sample()
    results["metrics"]["test"] = scored(table, resamples=0)
    assert write_run_report(write_run(tmp_path, results, table)).stat().st_size < 2_000_000
