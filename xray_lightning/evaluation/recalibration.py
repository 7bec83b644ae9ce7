"""Recalibration (`xray recalibrate`): operating points and calibration refitted to a site's cases.

At another site a finding may be rarer, or films darker, and a probability means something else. A
model's ranking of images often holds there, but its operating points and calibration do not: these
are refitted to labelled images of the site, and the weights are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from xray_lightning.data.label_map import LabelMap
from xray_lightning.data.manifest import check_folder
from xray_lightning.errors import UserError
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.cross_fitting import Site, fit_both, too_few_to_fit, why_not
from xray_lightning.evaluation.ensemble import Member
from xray_lightning.evaluation.evaluation_data import (
    DataChoice,
    mapped_data_for,
    seen_before,
)
from xray_lightning.evaluation.fitted_in_checkpoint import (
    RECALIBRATED,
    Recalibrated,
    fitted_entry,
    fitted_of,
)
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.evaluation.resampled_scores import THRESHOLD
from xray_lightning.files import check_writable
from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.predictions import ScoredImages
from xray_lightning.runs.run_folder import Provenance
from xray_lightning.terminal import (
    NONE,
    Column,
    Table,
    by_reason,
    count,
    counted,
    numbers,
    print_table,
    probability,
    readable,
    say,
)

OF_SEVERAL = "the labels are of several findings together, and say nothing of each"
NO_LABELS = "the data have no labels of it"
NO_POINT = "it was never fitted, and could not be here"


@dataclass(frozen=True)
class Recalibration:
    """A checkpoint recalibrated and written."""

    out: Path
    record: Recalibrated
    before: OperatingPoints | None
    points: OperatingPoints
    calibration_before: Calibration | None
    calibration: Calibration
    note: str | None


def recalibrate(
    checkpoint: Path,
    out: Path,
    choice: DataChoice,
    *,
    map: Path | None = None,
    rule: str | None = None,
    target: float | None = None,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: Display = unseen,
) -> Recalibration:
    """Refit operating points and calibration on all labelled images of a site.

    Args:
        out: the new checkpoint, which must not be there yet.
        choice: the site's folder, and how it is read.
        map: from the site's findings to the model's; None if they have the same names.
        rule, target: of the operating points; None for the checkpoint's.

    Raises:
        UserError: one line on what is wrong, or nothing can be refitted.
        RunFailedError: a NaN or infinite logit, or the file cannot be written.
    """
    _check_out(out)
    member = Member.read(checkpoint)
    trained = Provenance.of_checkpoint(checkpoint)
    known = tuple(member.described["findings"])
    points, calibration = fitted_of(member.described)
    label_map = _label_map(map, choice, known)
    findings = label_map.in_terms_of(known)
    ours = _one_each(findings, label_map.name)
    data = mapped_data_for(member, trained, choice, label_map, progress=progress)
    if rule is None and points is not None:
        rule, target = points.rule, points.target if target is None else target
    chosen = OperatingRule(rule or "youden", target)
    calibrator = Calibrator("platt" if calibration is None else calibration.method)
    options = {"accelerator": accelerator, "precision": precision}
    site = Site.of(member, data, findings, **options, progress=progress)
    refit = Refit.of(site.images, ours, chosen, calibrator)
    of_several = [name for names in findings.values() if len(names) > 1 for name in names]
    reasons = dict.fromkeys(known, NO_LABELS) | dict.fromkeys(of_several, OF_SEVERAL) | refit.kept
    record = Recalibrated(
        data=str(data.name),
        images=len(site.images.labels),
        patients=site.images.count,
        positives=refit.positives,
        kept={name: why for name, why in reasons.items() if name not in refit.cuts},
        checkpoint_sha256=member.sha256,
        split_sha256=data.usable.split.sha256,
    )
    new_points = refit.merged_points(points, known)
    new_calibration = refit.merged_calibration(calibration, known)
    content = read_checkpoint(checkpoint)
    fitted = fitted_entry(new_points, new_calibration)
    content["xray"] = {**content["xray"], **fitted, RECALIBRATED: record.to_plain()}
    write_checkpoint(content, out)
    note = seen_before(member, trained, data, side="test")
    return Recalibration(out, record, points, new_points, calibration, new_calibration, note)


def _check_out(out: Path) -> None:
    if out.suffix != ".ckpt":
        raise UserError(f"--out {out}: a checkpoint ends in .ckpt")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} is there already; a checkpoint is never overwritten")
    check_writable(out.parent, key="--out")


def _label_map(map: Path | None, choice: DataChoice, known: Sequence[str]) -> LabelMap:
    if map is not None:
        return LabelMap.read(map)
    if choice.root is None:
        raise UserError("xray recalibrate needs the site's labelled images: --data DIR")
    check_folder(choice.root, key="--data")
    return LabelMap.of_same_names(choice.root, known)


def _one_each(findings: Mapping[str, Sequence[str]], name: str) -> dict[str, str | None]:
    """The model's finding for each of the site's; None for a union of several."""
    single = {theirs: ours[0] if len(ours) == 1 else None for theirs, ours in findings.items()}
    named = [ours for ours in single.values() if ours is not None]
    if twice := [ours for ours in dict.fromkeys(named) if named.count(ours) > 1]:
        raise UserError(f"{name}: {twice[0]} is meant by several findings; keep one of them")
    return single


@dataclass(frozen=True)
class Refit:
    """The refitted values, and the findings without any, by the model's names.

    Attributes:
        points, calibration: fitted to the site's images, by the site's names.
        cuts, slope, intercept: of the findings that were refitted.
        positives: images with each of these.
        kept: the other findings of the map, and why they keep the checkpoint's own.
    """

    points: OperatingPoints
    calibration: Calibration
    cuts: dict[str, float]
    slope: dict[str, float]
    intercept: dict[str, float]
    positives: dict[str, int]
    kept: dict[str, str]

    @classmethod
    def of(
        cls,
        images: ScoredImages,
        ours: Mapping[str, str | None],
        rule: OperatingRule,
        calibrator: Calibrator,
    ) -> "Refit":
        """Fit to all images of a site.

        Raises:
            UserError: nothing can be fitted.
        """
        few = too_few_to_fit(images)
        names = [name for name in images.findings if name not in few and ours[name] is not None]
        if not names:
            raise UserError(f"nothing to recalibrate: {_reasons(few, ours)}")
        points, calibration = fit_both(images, names, rule, calibrator)
        why = {name: why_not(name, points, calibration) for name in names}
        few |= {name: reason for name, reason in why.items() if reason is not None}
        fitted = {name: one for name, one in ours.items() if one is not None and name not in few}
        if not fitted:
            raise UserError(f"nothing to recalibrate: {_reasons(few, ours)}")
        labels = dict(zip(images.findings, images.labels.T, strict=True))
        return cls(
            points,
            calibration,
            cuts={one: points.cuts[name] for name, one in fitted.items()},
            slope={one: calibration.slope[name] for name, one in fitted.items()},
            intercept={one: calibration.intercept[name] for name, one in fitted.items()},
            positives={one: int(labels[name].sum()) for name, one in fitted.items()},
            kept={one: few[name] for name, one in ours.items() if one is not None and name in few},
        )

    def merged_points(self, own: OperatingPoints | None, known: Sequence[str]) -> OperatingPoints:
        """The checkpoint's operating points `own`, replaced where they were refitted."""
        before = dict.fromkeys(known, THRESHOLD) if own is None else own.cuts
        lacking = dict.fromkeys(known, NO_POINT) if own is None else own.undefined
        return replace(
            self.points,
            cuts={name: self.cuts.get(name, before[name]) for name in known},
            undefined={name: why for name, why in lacking.items() if name not in self.cuts},
        )

    def merged_calibration(self, own: Calibration | None, known: Sequence[str]) -> Calibration:
        """The checkpoint's calibration `own`, replaced where it was refitted."""
        slope = dict.fromkeys(known, 1.0) if own is None else own.slope
        intercept = dict.fromkeys(known, 0.0) if own is None else own.intercept
        lacking = dict.fromkeys(known, NO_POINT) if own is None else own.undefined
        return replace(
            self.calibration,
            slope={name: self.slope.get(name, slope[name]) for name in known},
            intercept={name: self.intercept.get(name, intercept[name]) for name in known},
            undefined={name: why for name, why in lacking.items() if name not in self.slope},
        )


def _reasons(few: Mapping[str, str], ours: Mapping[str, str | None]) -> str:
    told = [(name, OF_SEVERAL if one is None else few[name]) for name, one in ours.items()]
    return " ".join(by_reason(told))


def show_recalibration(done: Recalibration, console: Console) -> None:
    """Print the values before and after the refit, and the findings that were kept."""
    record = done.record
    rows = [
        (
            readable(name),
            count(positives),
            probability(done.before.cuts[name]) if done.before else NONE,
            probability(done.points.cuts[name]),
            _line(done.calibration_before, name),
            _line(done.calibration, name),
        )
        for name, positives in record.positives.items()
    ]
    cases = f"{counted(record.images, 'image')} of {counted(record.patients, 'patient')}"
    notes = [f"As they were: {told}" for told in by_reason(_readable(record.kept))]
    notes.append(
        "Slope and intercept are of the logit; operating points are of the raw probability."
    )
    headings = ("Positives", "Present from", "now", "Calibration", "now")
    title = f"Recalibrated on {cases} of {record.data}"
    table = Table.of(title, (Column("Finding"), *numbers(*headings)), rows, notes)
    print_table(table, console)
    if done.note is not None:
        say(f"Note: {done.note}", console=console, style="yellow")
    say(f"Written: {done.out}", console=console)


def _readable(kept: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(readable(name), why) for name, why in kept.items()]


def _line(calibration: Calibration | None, name: str) -> str:
    if calibration is None:
        return NONE
    return f"{calibration.slope[name]:.2f}, {calibration.intercept[name]:+.2f}"
