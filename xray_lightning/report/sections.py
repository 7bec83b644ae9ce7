"""Sections of a run page: plots with their text, and the most confident mistakes."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from xray_lightning.data.decode_resize import decode_gray
from xray_lightning.data.image_files import find_named
from xray_lightning.errors import UserError
from xray_lightning.html.page import data_uri
from xray_lightning.report import clinical_wording, plots
from xray_lightning.report.plots import precision_recall_curve, roc_curve, thinned
from xray_lightning.runs.run_folder import Run
from xray_lightning.runs.schema import CalibrationMetrics, Subgroup, TestMetrics, Timing
from xray_lightning.terminal import decimal, duration, readable


@dataclass(frozen=True)
class Panel:
    """A plot with its title and a line of figures below it."""

    title: str
    remark: str
    svg: Markup


@dataclass(frozen=True)
class Share:
    """A part of a run's time in seconds; `number` is that of its colour, from 1."""

    name: str
    seconds: float
    number: int


SHORTEST = 0.05  # seconds; shorter parts are left out, as they would show as 0.0
BY = {"sex": "Sex", "age": "Age in years", "view": "View", "visit": "Visit"}


def findings_panel(test: TestMetrics) -> Markup | None:
    """Forest plot of each finding's AUROC with its interval; None if no finding has one."""
    rows = [
        plots.Estimate(readable(row.finding), row.auroc, row.auroc_ci95, decimal(row.auroc))
        for row in test.finding_rows
        if row.auroc is not None
    ]
    if not rows:
        return None
    text = f"AUROC with 95 % interval of {len(rows)} findings: " + ", ".join(
        f"{row.label} {row.remark}" for row in rows
    )
    return plots.forest_plot(
        rows, reference=test.auroc_macro, xlabel="AUROC", name="findings", text=text
    )


def curve_panels(test: TestMetrics, predictions: pd.DataFrame) -> tuple[list[Panel], list[Panel]]:
    """The ROC and the precision-recall curves of the findings that have them."""
    roc, precision_recall = [], []
    for number, row in enumerate(test.finding_rows):
        if row.auroc is None or f"prob_{row.finding}" not in predictions:
            continue
        scores = predictions[f"prob_{row.finding}"].to_numpy(dtype=float)
        labels = predictions[f"label_{row.finding}"].to_numpy() == 1
        if labels.all() or not labels.any():
            continue
        title, chance = readable(row.finding), float(labels.mean())
        roc_point = recall_point = None
        if row.sensitivity is not None and row.specificity is not None:
            roc_point = 1 - row.specificity, row.sensitivity
        if row.sensitivity is not None and (called := row.true_positives + row.false_positives):
            recall_point = row.sensitivity, row.true_positives / called
        svg = plots.curve_plot(
            thinned(roc_curve(scores, labels)),
            ("1 \N{MINUS SIGN} specificity", "sensitivity"),
            chance=(0, 1),
            point=roc_point,
            name=f"roc-{number}",
            text=f"ROC curve of {title}: AUROC {decimal(row.auroc)}; at the threshold "
            f"{decimal(row.threshold)} sensitivity {decimal(row.sensitivity)}, specificity "
            f"{decimal(row.specificity)}",
        )
        roc.append(Panel(title, f"AUROC {decimal(row.auroc)}", svg))
        precision = decimal(row.average_precision)
        svg = plots.curve_plot(
            thinned(precision_recall_curve(scores, labels)),
            ("recall (sensitivity)", "precision"),
            chance=(chance, chance),
            point=recall_point,
            name=f"pr-{number}",
            text=f"Precision-recall curve of {title}: average precision {precision}, prevalence "
            f"{decimal(chance)}",
        )
        precision_recall.append(Panel(title, f"AP {precision}, chance {decimal(chance)}", svg))
    return roc, precision_recall


def decision_panels(test: TestMetrics) -> list[Panel]:
    """The decision curves of the findings that have one."""
    panels = []
    for number, row in enumerate(test.finding_rows):
        curve = row.decision_curve
        if curve is None or row.auroc is None:
            continue
        useful, title = clinical_wording.useful_range(curve), readable(row.finding)
        svg = plots.decision_plot(
            plots.NetBenefit(
                curve.thresholds,
                curve.net_benefit,
                curve.net_benefit_ci95 or [None] * len(curve.thresholds),
                curve.treat_all,
                None
                if curve.useful_from is None or curve.useful_to is None
                else (curve.useful_from, curve.useful_to),
            ),
            name=f"decision-{number}",
            text=f"Decision curve of {title}, {curve.of} probabilities: {useful}",
        )
        panels.append(Panel(title, useful, svg))
    return panels


def calibration_panels(test: TestMetrics) -> list[Panel]:
    """The reliability diagrams by finding: raw, and calibrated in the same plot, if fitted."""
    panels = []
    for number, row in enumerate(test.finding_rows):
        title, after = readable(row.finding), row.calibrated
        remark = f"ECE {decimal(row.expected_calibration_error)}"
        text = f"Reliability of {title}, raw: {_bins(row)}"
        if after is not None:
            remark += f" \N{RIGHTWARDS ARROW} {decimal(after.expected_calibration_error)}"
            text += f"; calibrated: {_bins(after)}"
        svg = plots.reliability_plot(
            row.reliability,
            after.reliability if after else None,
            name=f"reliability-{number}",
            text=text,
        )
        panels.append(Panel(title, remark, svg))
    return panels


def _bins(metrics: CalibrationMetrics) -> str:
    return ", ".join(
        f"{b.mean_probability:.2f} given, {b.share_positive:.2f} true ({b.images} images)"
        for b in metrics.reliability
    )


def subgroup_panel(test: TestMetrics) -> Markup | None:
    """The macro AUROC of each group of images as a forest plot; None where none is defined."""
    rows = [
        plots.Estimate(
            _label(group),
            group.auroc_macro,
            group.auroc_macro_ci95,
            f"n = {group.images}",
            group.flagged and "AUROC" in (group.flagged_by or ("AUROC",)),
        )
        for group in test.subgroups
        if group.auroc_macro is not None
    ]
    if not rows:
        return None
    text = "Macro AUROC by group: " + ", ".join(
        f"{row.label} {decimal(row.value)}{' (flagged)' if row.flagged else ''}" for row in rows
    )
    return plots.forest_plot(
        rows, reference=test.auroc_macro, xlabel="macro AUROC", name="subgroups", text=text
    )


def _label(group: Subgroup) -> str:
    """A group's name that is clear without a heading: "age 0-17", "PA view"."""
    if group.by == "view":
        return f"{group.group} view"
    return group.group if group.by in ("sex", "visit") else f"{group.by} {group.group}"


def grouped(groups: Sequence[Subgroup]) -> list[tuple[str, list[Subgroup]]]:
    """The groups of each attribute under its heading: [("Sex", [...]), ...]."""
    return [
        (BY.get(by, by), list(together)) for by, together in groupby(groups, key=lambda g: g.by)
    ]


def training_panels(run: Run) -> list[Panel]:
    """Loss, learning rate and validation AUROC by epoch, as far as they were recorded."""
    best = run.best_epoch
    panels: list[Panel] = []
    for title, keys in (
        ("Loss", {"train_loss": 0, "val_loss": 1}),
        ("Validation macro AUROC", {"val_auroc_macro": 1}),
        ("Learning rate", {"lr": 0}),
    ):
        lines = [line_of(run, key, number=number) for key, number in keys.items()]
        lines = [line for line in lines if line.values]
        if not lines:
            continue
        ends = [f"{line.values[0]:.4g} to {line.values[-1]:.4g}" for line in lines]
        text = f"{title} by epoch, first to last: {'; '.join(ends)}"
        if best is not None:
            text += f"; best epoch {best}"
        name = f"epochs-{len(panels)}"
        svg = plots.epoch_plot(lines, best=best, name=name, text=text)
        panels.append(Panel(title, "", svg))
    return panels


def line_of(run: Run, key: str, *, number: int) -> plots.Line:
    """The known values of a column of a run's history by epoch, counted from 1."""
    known = [(e.epoch + 1, v) for e in run.history if (v := getattr(e, key)) is not None]
    return plots.Line(number, [epoch for epoch, _ in known], [v for _, v in known])


def time_shares(timing: Timing) -> list[Share]:
    """The parts of a run's time that were recorded, and the rest; they add up to the whole."""
    parts = {
        "start-up": timing.startup or 0.0,
        "image cache": timing.cache or 0.0,
        "training, with validation": timing.fit or 0.0,
        "test": timing.test or 0.0,
        "shuffled labels": timing.shuffled or 0.0,
    }
    parts["the rest"] = (timing.total or 0.0) - sum(parts.values())
    return [
        Share(name, seconds, number)
        for number, (name, seconds) in enumerate(parts.items(), start=1)
        if seconds >= SHORTEST
    ]


def time_panel(shares: Sequence[Share]) -> Markup | None:
    """Where the time went, as one bar; None where nothing was timed."""
    if not shares:
        return None
    total = sum(share.seconds for share in shares)
    scale, unit = (1.0, "seconds") if total < 300 else (60.0, "minutes")
    if total >= 3 * 3600:
        scale, unit = 3600.0, "hours"
    text = "Where the time went: " + ", ".join(f"{s.name} {duration(s.seconds)}" for s in shares)
    parts = [(share.number - 1, share.seconds / scale) for share in shares]
    return plots.bar_plot(parts, xlabel=unit, name="time", text=text)


MOST = 6  # mistakes of each kind, false alarms and missed findings
MOST_PER_FINDING = 2  # so that one finding does not fill all places
SIDE = 224  # pixels of a picture's longer side
_QUALITY = 80  # of its JPEG
_LEAST = 1e-7  # probabilities nearer to 0 or 1 differ by rounding alone
_ANCESTORS = 4  # parents of the run folder that a relative data.root is looked up in


@dataclass(frozen=True)
class Mistake:
    """One image that was called wrongly for one finding.

    Attributes:
        times: odds of the probability over odds of the threshold, or the inverse for a missed
            finding; at least 1.
        picture: a data URI; None if `reason` says why there is none.
    """

    image: str
    finding: str
    probability: float
    threshold: float
    times: float
    picture: str | None = None
    reason: str | None = None


def most_confident(
    predictions: pd.DataFrame, thresholds: Mapping[str, float], *, missed: bool
) -> list[Mistake]:
    """The false alarms, or the missed findings, that the model was surest of.

    Probabilities of a rare and of a common finding are not comparable, nor are their distances
    from different thresholds. So mistakes are ordered by an odds ratio: the odds of the
    probability over those of the finding's own threshold (or the inverse, for missed findings),
    i.e. how far the evidence lies beyond the threshold. Each image is taken at most once, each
    finding at most twice.

    Args:
        predictions: see `Evaluator`.
        thresholds: operating point by finding; findings without one are left out.
        missed: whether to look for missed findings rather than for false alarms.
    """
    found: list[Mistake] = []
    for finding, cut in thresholds.items():
        scores = predictions[f"prob_{finding}"].to_numpy(dtype=np.float64)
        present = predictions[f"label_{finding}"].to_numpy() == 1
        wrong = np.flatnonzero(present & (scores < cut) if missed else ~present & (scores >= cut))
        sure = np.abs(_log_odds(scores[wrong]) - _log_odds(np.array(cut)))
        # More than are shown, as some of the images may be taken by another finding.
        for place in np.argsort(-sure, kind="stable")[: MOST + MOST_PER_FINDING]:
            image = str(predictions["image"].iloc[wrong[place]])
            score, times = float(scores[wrong[place]]), float(np.exp(sure[place]))
            found.append(Mistake(image, finding, score, float(cut), times))
    found.sort(key=lambda mistake: (-mistake.times, mistake.image, mistake.finding))
    kept: list[Mistake] = []
    for mistake in found:
        of_finding = sum(other.finding == mistake.finding for other in kept)
        taken = any(other.image == mistake.image for other in kept)
        if of_finding < MOST_PER_FINDING and not taken and len(kept) < MOST:
            kept.append(mistake)
    return kept


def _log_odds(probability: np.ndarray) -> np.ndarray:
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: np.ndarray = np.log(inside / (1 - inside))
    return odds


def with_pictures(
    mistakes: Sequence[Mistake], *, root: str | None, run_folder: Path
) -> list[Mistake]:
    """The mistakes with their pictures, or with the reason why there is none.

    Args:
        root: the folder of the images, as the run's configuration names it.
        run_folder: a relative root is also looked up in this folder and those above it, since a
            run lies below the working directory that it was started in.
    """
    above = [run_folder.resolve(), *run_folder.resolve().parents][: _ANCESTORS + 1]
    places = (Path(root), *(folder / root for folder in above)) if root else ()
    try:
        folder = next((place for place in places if os.path.isdir(place)), None)
        if folder is None:
            raise UserError(f"{root or 'the folder of its images'} is not there")
        paths, _ = find_named(folder, frozenset(filter(_inside, (m.image for m in mistakes))))
    except UserError as error:
        return [replace(mistake, reason=str(error)) for mistake in mistakes]
    return [_pictured(mistake, paths.get(mistake.image), folder) for mistake in mistakes]


def _inside(image: str) -> bool:
    """Whether a relative path stays within the folder that it is looked up in."""
    path = PurePosixPath(image)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _pictured(mistake: Mistake, path: str | None, folder: Path) -> Mistake:
    if path is None:
        return replace(mistake, reason=f"no file of this name in {folder}")
    try:
        picture = Image.fromarray(decode_gray(path))
    except UserError as error:
        return replace(mistake, reason=str(error))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return replace(mistake, picture=data_uri(buffer.getvalue(), kind="image/jpeg"))
