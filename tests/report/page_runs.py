"""Run folders as a small training leaves them, for the tests of report.html; scored for real."""

import copy
import json
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from predicted import frame

from xray_lightning.evaluation.abstention import AbstentionRule
from xray_lightning.evaluation.calibration import Calibrator
from xray_lightning.evaluation.metadata_baseline import CombinedModel, MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingRule
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import csv_of

SAMPLE = json.loads((Path(__file__).parents[1] / "results_sample.json").read_text(encoding="utf-8"))
IMAGES = 160

SECTIONS = [  # of the page of one run
    *("result", "notes", "metadata", "findings", "curves", "subgroups", "confusion", "calibration"),
    *("decisions", "abstention", "mistakes", "training", "time", "paper", "published", "claim"),
    "reproduce",
]

Results = dict[str, Any]


def predictions(*, images: int = IMAGES, skill: float = 1.5, seed: int = 0) -> pd.DataFrame:
    """Predictions of a model of some skill; no image has Hernia."""
    rng = np.random.default_rng(seed)
    labels = rng.random((images, len(FINDINGS))) < np.linspace(0.35, 0.05, len(FINDINGS))
    labels[:, FINDINGS.index("Hernia")] = False
    logits = skill * labels + rng.normal(-2.0, 1.0, labels.shape)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return frame(
        scores,
        labels.astype(np.uint8),
        [str(number // 2) for number in range(images)],
        image=[f"{number // 2:08d}_{number % 2:03d}.png" for number in range(images)],
        age=rng.integers(1, 95, images).astype(float),
        sex=rng.choice(["M", "F"], images),
        view=rng.choice(["PA", "AP"], images),
        follow_up=np.arange(images) % 2,
    )


def scored(table: pd.DataFrame, *, resamples: int = 40) -> Results:
    """metrics.test of the predictions, with what is fitted on others."""
    validation = predictions(seed=99).assign(split="val")
    train = predictions(seed=98).rename(columns=lambda name: name.removeprefix("label_"))
    metadata = MetadataModel.fit(train.assign(Hernia=train["Mass"]), FINDINGS)
    points = OperatingRule().fit(validation)
    return Evaluator(resamples=resamples)(
        table,
        operating_points=points,
        abstention=AbstentionRule(alpha=0.2).fit(validation, points),
        calibration=Calibrator().fit(validation),
        prevalences=dict.fromkeys(FINDINGS, 0.1),
        metadata=metadata,
        combined=CombinedModel.fit(validation, metadata),
    )


def untested(status: str, reason: str | None, **changes: Any) -> Results:
    """results.json of a run that has not come to its test, and has no epochs."""
    results = sample(status=status, reason=reason, **{"history": []} | changes)
    results["metrics"]["test"] = None
    return results


def sample(table: pd.DataFrame | None = None, **changes: Any) -> Results:
    """results.json of a finished run: of these predictions, or with less to draw if none."""
    results: Results = {**copy.deepcopy(SAMPLE), **changes}
    if table is None:
        for row in results["metrics"]["test"]["per_finding"].values():
            row["reliability"] = row["reliability"][:1]
    else:
        usual = table.equals(predictions())
        results["metrics"]["test"] = copy.deepcopy(_usual()) if usual else scored(table)
    return results


@cache
def _usual() -> Results:
    return scored(predictions())


def write_run(folder: Path, results: Results, table: pd.DataFrame | None = None) -> Path:
    """The folder of a run, with its predictions if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if table is not None:
        (folder / "predictions_test.csv").write_text(csv_of(table), encoding="utf-8")
    return folder


def draw_images(folder: Path, names: list[str]) -> Path:
    """A folder with a small picture of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 255, (24, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def whole_run(folder: Path, **changes: Any) -> Path:
    """A run with everything that a page can show; the images are beside its folder."""
    table = predictions()
    results = sample(table, **changes)
    images = draw_images(folder.parent / "images", list(table["image"]))
    results["data"]["root"] = str(images)
    results["config"]["callbacks"] = {"best": {"monitor": "val/auroc_macro", "mode": "max"}}
    return write_run(folder, results, table)


class Page(HTMLParser):
    """A page as its elements, for tests to look into."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._section = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        if tag in ("section", "header", "footer"):
            self._section = attributes["id"]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._section, []).append(data)

    def text(self, section: str | None = None) -> str:
        """The text of a section, or of the whole page, with single blanks."""
        parts = self.texts if section is None else [section]
        return " ".join(" ".join(t for part in parts for t in self.texts.get(part, ())).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.of("section")]
