"""Expert labels against a data set's own: agreement of the two, and a model's scores on both.

All scores are over the images that have both labels, on the same resamples of their patients, so
that the difference between the two has an interval of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from xray_lightning.data.expert_labels import ExpertLabels
from xray_lightning.data.label_map import NIH_EXPERT_LABELS, LabelMap
from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import Estimate, resampled, share
from xray_lightning.evaluation.mapped_findings import (
    CallScores,
    MappedFindings,
    either,
    figures_of,
)
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.evaluation.resampled_scores import COUNTS, THRESHOLD, rates
from xray_lightning.runs.predictions import Bools, Floats, Integers, ScoredImages
from xray_lightning.terminal import (
    Column,
    Table,
    by_reason,
    counted,
    decimal,
    interval,
    numbers,
    print_table,
    signed,
    with_interval,
)

SCORES = ("auroc", "sensitivity", "specificity")  # of the model, on both labels
WORTH = ("sensitivity", "ppv", "specificity", "kappa")  # of the data set's labels
NO_LABEL = "no image is labelled with it"
NO_KAPPA = "both agree that all images are the same"
FEW_LABELLED = "needs at least ten patients labelled with it"


def cohens_kappa(counts: Integers) -> Floats:
    """Cohen's kappa (Educational and Psychological Measurement 1960) of counts (4, findings).

    Args:
        counts: images positive by both raters, by the first alone, by the second alone, and by
            neither. Kappa is NaN where both raters put all images in one and the same class.
    """
    both, first, second, neither = counts.astype(np.float64)
    images = both + first + second + neither
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    # (observed - expected) / (1 - expected), both parts multiplied by the images squared.
    return share((both + neither) * images - chance, images * images - chance)


@dataclass(frozen=True)
class ExpertOptions:
    """Labels to score on beside the data set's own, read and checked."""

    labels: ExpertLabels
    label_map: LabelMap
    findings: Mapping[str, tuple[str, ...]]  # the model's findings in each of the map's

    @classmethod
    def of(
        cls, labels: Path | None, map: Path | None, *, known: Sequence[str]
    ) -> "ExpertOptions | None":
        """Read both files; None where no labels are given.

        Args:
            known: the findings of the model.

        Raises:
            UserError: one line on whatever is wrong in them, or labels without a map.
        """
        if labels is None:
            return None
        if map is None:
            raise UserError(
                f"--labels {labels} needs --map FILE, which says what its findings are in terms of "
                f"the model's; {NIH_EXPERT_LABELS} is that of the labels of Majkowska et al. 2020"
            )
        label_map = LabelMap.read(map)
        findings = label_map.in_terms_of(known)
        return cls(ExpertLabels.read(labels, label_map), label_map, findings)

    def scored(
        self,
        predictions: pd.DataFrame,
        *,
        operating_points: OperatingPoints | None,
        resamples: int,
        seed: int,
    ) -> dict[str, Any]:
        """The `expert_labels` part of evaluation.json.

        Args:
            predictions: as for `Evaluator`; images without expert labels are left out.
            operating_points: at which findings are called; None for 0.5.
            resamples, seed: of the patients.

        Raises:
            UserError: no image has expert labels.
        """
        table = self.labels.table.set_index("image")
        there = predictions["image"].isin(table.index)
        if not there.any():
            raise UserError(
                f"--labels {self.labels.path}: none of its {len(table):,} images is among the "
                f"{len(predictions):,} that are scored; its image column must name them alike"
            )
        single = ScoredImages.of(predictions[there])
        mapped = MappedFindings.of(self.findings, single.findings)
        own = mapped.images(single)
        expert = table.loc[own.table["image"], list(own.findings)].to_numpy() == 1
        cuts = [
            THRESHOLD if operating_points is None else operating_points.cuts[name]
            for name in single.findings
        ]
        both = BothLabels.of(own, expert, mapped.any_of(single.scores >= np.array(cuts)))
        return {
            "labels": str(self.labels.path),
            "map": self.label_map.name.removeprefix("--map "),
            "images": len(own.labels),
            "patients": own.count,
            "not_scored": list(self.labels.not_scored),
            "per_finding": both.rows(self.findings, resamples=resamples, seed=seed),
        }


@dataclass(frozen=True)
class BothLabels:
    """Scores of a model on a data set's and on experts' labels, and of the data set's labels."""

    own: CallScores
    expert: CallScores
    labels: CallScores  # the data set's labels as calls, the experts' as the truth

    @classmethod
    def of(cls, own: ScoredImages, expert: Bools, called: Bools) -> "BothLabels":
        """Prepare the scores of images; `expert` and `called` are of shape (N, findings)."""
        truth = replace(own, labels=expert)
        return cls(
            CallScores.of(own, called),
            CallScores.of(truth, called),
            CallScores.of(truth, own.labels),
        )

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """All scores where each patient counts `drawn` (patients,) times."""
        own, expert = self.own(drawn), self.expert(drawn)
        counts = np.einsum("p,pcf->cf", drawn, self.labels.counts)
        worth = rates(counts) | {"kappa": cohens_kappa(counts)}
        return {
            **{name: own[name] for name in SCORES},
            **{f"expert_{name}": expert[name] for name in SCORES},
            **{f"{name}_difference": expert[name] - own[name] for name in SCORES},
            **{f"labels_{name}": worth[name] for name in WORTH},
        }

    def rows(
        self, findings: Mapping[str, tuple[str, ...]], *, resamples: int, seed: int
    ) -> dict[str, dict[str, Any]]:
        """Every figure of each finding, for JSON."""
        images = self.own.images
        plain, draws = resampled(self, patients=images.count, resamples=resamples, seed=seed)
        undefined, few = self._undefined(), self._few()
        found = {
            name: Estimate.each(plain[name], draws[name], undefined=undefined[name], few=few[name])
            for name in plain
        }
        confusion = self.labels.confusion
        return {
            name: {
                "findings": list(ours),
                "positives": int(images.labels[:, place].sum()),
                "expert_positives": int(self.expert.images.labels[:, place].sum()),
                **figures_of({key: found[key][place] for key in found if "labels_" not in key}),
                "labels": {
                    **{count: int(confusion[count][place]) for count in COUNTS},
                    **figures_of({key: found[f"labels_{key}"][place] for key in WORTH}),
                },
            }
            for place, (name, ours) in enumerate(findings.items())
        }

    def _undefined(self) -> dict[str, list[str | None]]:
        own, expert = self.own.undefined, self.expert.undefined
        count = len(own["auroc"])
        return {
            **{name: own[name] for name in SCORES},
            **{f"expert_{name}": expert[name] for name in SCORES},
            **{f"{name}_difference": either(own[name], expert[name]) for name in SCORES},
            **{f"labels_{name}": expert[name] for name in ("sensitivity", "specificity")},
            "labels_ppv": [NO_LABEL] * count,
            "labels_kappa": [NO_KAPPA] * count,
        }

    def _few(self) -> dict[str, list[str | None]]:
        own, expert, labels = self.own.too_few, self.expert.too_few, self.labels.too_few
        labelled = [None if why is None else FEW_LABELLED for why in labels["ppv"]]
        return {
            **{name: own[name] for name in SCORES},
            **{f"expert_{name}": expert[name] for name in SCORES},
            **{f"{name}_difference": either(own[name], expert[name]) for name in SCORES},
            **{f"labels_{name}": labels[name] for name in ("sensitivity", "specificity")},
            "labels_ppv": labelled,
            "labels_kappa": either(own["auroc"], expert["auroc"]),
        }


_TITLES = {"auroc": "AUROC", "sensitivity": "Sens.", "specificity": "Spec."}


def show_expert_labels(content: Mapping[str, Any], console: Console) -> None:
    """Print a model's scores on both labels, and the data set's labels against the experts'."""
    for table in (scores_table(content), worth_table(content)):
        console.print()
        print_table(table, console)


def scores_table(content: Mapping[str, Any]) -> Table:
    """The model's scores on the data set's labels and on the experts'."""
    rows: list[tuple[str, ...]] = []
    lacking: list[tuple[str, str]] = []
    for name, row in content["per_finding"].items():
        positives = (f"{row[key]:,} positive" for key in ("positives", "expert_positives"))
        rows.append((name, *positives, ""))
        for key, title in _TITLES.items():
            difference = f"{key}_difference"
            rows.append(
                (
                    f"  {title}",
                    with_interval(row[key], row[f"{key}_ci95"]),
                    with_interval(row[f"expert_{key}"], row[f"expert_{key}_ci95"]),
                    with_interval(row[difference], row[f"{difference}_ci95"], signed, joint=", "),
                )
            )
        lacking += [(f"{name} ({key})", why) for key, why in row["undefined_reason"].items()]
    of = f"{counted(content['images'], 'image')} of {counted(content['patients'], 'patient')}"
    left = ", ".join(content["not_scored"])
    notes = (
        "The images, the model and its operating points are the same on both.",
        *_unions(content),
        *([f"Not scored, since the map leaves it out: {left}."] if left else ()),
        *by_reason(lacking),
    )
    columns = (Column("On both labels"), *numbers("The data set's", "The experts'", "Difference"))
    return Table.of(f"The model, on {of}", columns, rows, notes)


def _unions(content: Mapping[str, Any]) -> list[str]:
    unions = {
        name: row["findings"]
        for name, row in content["per_finding"].items()
        if row["findings"] != [name]
    }
    if not unions:
        return []
    named = "; ".join(f"{name} is {' or '.join(ours)}" for name, ours in unions.items())
    return [
        f"{named}. Any of several makes it labelled, or called; its probability is "
        "1 - (1 - p)(1 - q)..., as if they were independent given the image."
    ]


def worth_table(content: Mapping[str, Any]) -> Table:
    """Scores of the data set's labels, with the experts' as the truth."""
    rows, lacking = [], []
    for name, row in content["per_finding"].items():
        labels = row["labels"]
        cells = [(decimal(labels[key]), interval(labels[f"{key}_ci95"])) for key in WORTH]
        agreed = f"{labels['true_positives']:,}"
        rows.append((name, agreed, *cells))
        lacking += [(f"{name} ({key})", why) for key, why in labels["undefined_reason"].items()]
    columns = (
        Column("Finding"),
        *numbers("Both", "Sensitivity", "PPV", "Specificity", "Kappa"),
    )
    title = "The data set's labels against the experts'"
    return Table.of(title, columns, rows, by_reason(lacking))
