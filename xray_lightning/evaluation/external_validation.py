"""External validation: a checkpoint on another site's images, whose findings have other names.

Its operating points and calibration are compared with ones refitted on the site, by cross-fitting:
no patient is judged by a fit that includes the patient. Its AUROC, sensitivity and specificity are
compared with those of the run's own test, with the gap between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xray_lightning.data.label_map import LabelMap
from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import (
    NAN,
    NO_FINDINGS,
    ONE_PATIENT,
    Estimate,
    mean_of_defined,
    resampled,
)
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.cross_fitting import FOLDS, CrossFitted, Site
from xray_lightning.evaluation.ensemble import read_members
from xray_lightning.evaluation.evaluate import Options, Scored, folder_for, head
from xray_lightning.evaluation.evaluation_data import labels_not_named, mapped_data_for, seen_before
from xray_lightning.evaluation.fitted_in_checkpoint import Recalibrated, fitted_of
from xray_lightning.evaluation.mapped_findings import (
    CallScores,
    MappedFindings,
    either,
    figures_of,
)
from xray_lightning.evaluation.metrics import reliability
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.evaluation.resampled_scores import COUNTS, THRESHOLD, sums_by_patient, too_few
from xray_lightning.hardware import choose_accelerator, choose_precision
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.predictions import Bools, Floats, Integers, ScoredImages, read_predictions
from xray_lightning.runs.results_json import predictions_name
from xray_lightning.runs.run_folder import Provenance

Drawn = tuple[dict[str, Floats], dict[str, Floats]]  # plain, and of each resample

AT_POINTS = ("sensitivity", "specificity", "ppv")  # with `brier`: what recalibration changes
COMPARED = ("auroc", "sensitivity", "specificity")  # with the run's own test
NO_RUN = "the checkpoint lies in no run folder whose predictions_test.csv is of it"


def validate(
    checkpoints: Sequence[Path], options: Options, *, command: str, progress: Display = unseen
) -> Scored:
    """Score a checkpoint on another site's images.

    Args:
        options: with a `map`, and the site's folder in `data`.

    Raises:
        XrayError: a checkpoint, map or data that cannot be used.
    """
    if len(checkpoints) != 1 or options.map is None:
        raise UserError("--map of --data takes one checkpoint: an ensemble has no own calibration")
    if options.prevalence is not None:
        raise UserError("--prevalence is of the model's own findings, not of --data with --map")
    if options.tta is not None:
        raise UserError("--tta is not of --data with --map, which takes the checkpoint's own")
    (member,) = read_members(checkpoints)
    trained = Provenance.of_checkpoint(member.path)
    known = tuple(member.described["findings"])
    label_map = LabelMap.read(options.map)
    findings = label_map.in_terms_of(known)
    data = mapped_data_for(member, trained, options.data, label_map, progress=progress)
    out = folder_for([member], options.out, name=f"external_{data.name}")
    points, calibration = fitted_of(member.described)
    resamples, seed = trained.bootstrap(options.resamples, options.seed)
    accelerator = choose_accelerator(options.accelerator)
    precision = choose_precision(options.precision, accelerator=accelerator)
    site = Site.of(
        member,
        data,
        findings,
        side=options.side,
        accelerator=accelerator,
        precision=precision,
        progress=progress,
    )
    judged = Judged.of(site, points, calibration, known, seed=seed)
    own = own_test(trained, findings, points)
    notes = [seen_before(member, trained, data, side=options.side)]
    record = Recalibrated.in_entry(member.described)
    if record is not None:
        same = record.split_sha256 == data.usable.split.sha256
        own_images = "it was recalibrated on these images: what is at its points is too good"
        notes.append(own_images if same else record.told)
    mapped = {ours for names in findings.values() for ours in names}
    content = {
        **head([member], data, side=options.side, command=command),
        "note": "; ".join(filter(None, notes)) or None,
        "precision": precision,
        "average": None,
        "fitted": None,
        "bootstrap": {"resamples": resamples, "seed": seed},
        "metrics": None,
        "expert_labels": None,
        "external": {
            "map": label_map.name.removeprefix("--map "),
            "not_scored": {
                "data_set": labels_not_named(data),
                "model": [name for name in known if name not in mapped],
            },
            **judged.figures(findings, own, resamples=resamples, seed=seed),
        },
        "ensemble": None,
    }
    return Scored({options.side: site.table}, content, out)


def own_test(
    trained: Provenance, findings: Mapping[str, Sequence[str]], points: OperatingPoints | None
) -> CallScores | None:
    """The run's own test with findings mapped alike; None if lacking or of another checkpoint."""
    if trained.folder is None or points is None or trained.thresholds != points.cuts:
        return None
    path = trained.folder / predictions_name("test")
    if not path.is_file():
        return None
    single = ScoredImages.of(read_predictions(path))
    mapped = MappedFindings.of(findings, single.findings)
    cuts = np.array([points.cuts[name] for name in single.findings])
    return CallScores.of(mapped.images(single), mapped.any_of(single.scores >= cuts))


@dataclass(frozen=True)
class Judged:
    """A site's images, scored with a checkpoint's operating points and calibration, and refitted.

    Attributes:
        kept, refit: scores of calls by the checkpoint's operating points, and by those refitted.
        probabilities: by the checkpoint's calibration and the refitted one, each (N, findings).
        undefined: the findings that cannot be recalibrated, and why.
        rule, method: of the checkpoint's operating points and calibration; None if it has none.
    """

    kept: CallScores
    refit: CallScores
    probabilities: tuple[Floats, Floats]
    undefined: dict[str, str]
    rule: OperatingRule | None
    method: str | None

    @classmethod
    def of(
        cls,
        site: Site,
        points: OperatingPoints | None,
        calibration: Calibration | None,
        known: Sequence[str],
        *,
        seed: int,
    ) -> "Judged":
        """Score a site's images; 0.5 is the cut for a checkpoint without operating points."""
        cuts = [THRESHOLD if points is None else points.cuts[name] for name in known]
        called = site.mapped.any_of(site.single >= np.array(cuts))
        calibrated = site.images.scores
        if calibration is not None:
            calibrated = site.mapped.probabilities(calibration.apply(site.single, findings=known))
        rule = None if points is None else OperatingRule(points.rule, points.target)
        method = None if calibration is None else calibration.method
        fitted = CrossFitted.of(
            site.images, rule or OperatingRule(), Calibrator(method or "platt"), seed=seed
        )
        return cls(
            CallScores.of(site.images, called),
            CallScores.of(site.images, fitted.called),
            (calibrated, fitted.probabilities),
            fitted.undefined,
            rule,
            method,
        )

    def figures(
        self,
        findings: Mapping[str, Sequence[str]],
        own: CallScores | None,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Any]:
        """The `external` part of evaluation.json, except for `map` and `not_scored`."""
        images = self.kept.images
        errors = np.stack([np.square(one - images.labels) for one in self.probabilities], axis=1)
        sums, sizes = sums_by_patient(images, errors), np.bincount(images.patients)

        def statistic(drawn: Integers) -> dict[str, Floats]:
            brier = np.einsum("p,pkf->kf", drawn, sums) / (drawn * sizes).sum()
            kept, refit = self.kept(drawn), self.refit(drawn)
            kept |= {f"recalibrated_{name}": refit[name] for name in AT_POINTS}
            return kept | {"brier": brier[0], "recalibrated_brier": brier[1]}

        plain, draws = resampled(statistic, patients=images.count, resamples=resamples, seed=seed)
        # Another seed: the two sets of patients are resampled independently.
        before = None
        if own is not None:
            options = {"resamples": resamples, "seed": seed + 1}
            before = resampled(own, patients=own.images.count, **options)
        return {
            "images": len(images.labels),
            "patients": images.count,
            "rule": None if self.rule is None else self.rule.rule,
            "target": None if self.rule is None else self.rule.target,
            "calibration": self.method,
            "folds": FOLDS,
            **self._macro((plain, draws), own, before),
            "per_finding": self._rows(findings, (plain, draws), own, before),
        }

    def _rows(
        self,
        findings: Mapping[str, Sequence[str]],
        drawn: Drawn,
        own: CallScores | None,
        before: Drawn | None,
    ) -> dict[str, dict[str, Any]]:
        """Every figure of each finding."""
        found = self._estimates(drawn)
        compared = {} if own is None or before is None else _compared(self.kept, drawn, own, before)
        labels, rows = self.kept.images.labels, {}
        for place, (name, ours) in enumerate(findings.items()):
            auroc = {"auroc": found["auroc"][place]}
            why = dict(figures_of(auroc)["undefined_reason"])
            if name in self.undefined:
                why["recalibrated"] = self.undefined[name]
            if not compared:
                why |= {"own_test": NO_RUN, "gap": NO_RUN}
            rows[name] = {
                "findings": list(ours),
                "positives": int(labels[:, place].sum()),
                "prevalence": float(labels[:, place].mean()),
                **figures_of(auroc),
                "kept": self._block(found, "", self.kept, self.probabilities[0], place),
                "recalibrated": None
                if name in self.undefined
                else self._block(found, "recalibrated_", self.refit, self.probabilities[1], place),
                **{
                    block: figures_of({key: one[place] for key, one in estimates_.items()})
                    for block, estimates_ in compared.items()
                },
                "undefined_reason": why,
            }
            if not compared:
                rows[name] |= {"own_test": None, "gap": None}
        return rows

    def _estimates(self, drawn: Drawn) -> dict[str, list[Estimate]]:
        plain, draws = drawn
        count = len(self.kept.images.findings)
        alone = ONE_PATIENT if self.kept.images.count < 2 else None
        undefined, few = {}, {}
        for prefix, calls in (("", self.kept), ("recalibrated_", self.refit)):
            for name in AT_POINTS:
                undefined[f"{prefix}{name}"] = calls.undefined[name]
                few[f"{prefix}{name}"] = calls.too_few[name]
            undefined[f"{prefix}brier"] = [None] * count
            few[f"{prefix}brier"] = [alone] * count
        undefined["auroc"], few["auroc"] = self.kept.undefined["auroc"], self.kept.too_few["auroc"]
        return {
            name: Estimate.each(plain[name], draws[name], undefined=undefined[name], few=few[name])
            for name in plain
        }

    def _block(
        self,
        found: Mapping[str, Sequence[Estimate]],
        prefix: str,
        calls: CallScores,
        probabilities: Floats,
        place: int,
    ) -> dict[str, Any]:
        """A finding's figures with one set of operating points and calibration."""
        of = {name: found[f"{prefix}{name}"][place] for name in (*AT_POINTS, "brier")}
        counts = {name: int(calls.confusion[name][place]) for name in COUNTS}
        curve = reliability(probabilities[:, place], calls.images.labels[:, place])
        return curve | counts | figures_of(of)

    def _macro(self, drawn: Drawn, own: CallScores | None, before: Drawn | None) -> dict[str, Any]:
        """Means: AUROC over findings that both tests can rank, the rest over recalibrated ones."""
        plain, draws = drawn
        names = self.kept.images.findings
        ranked = ~np.isnan(plain["auroc"])
        if before is not None:
            ranked &= ~np.isnan(before[0]["auroc"])
        few = too_few(self.kept.images)["auroc_macro"][0]
        found = {"auroc_macro": _mean(plain["auroc"], draws["auroc"], ranked, few)}
        if own is not None and before is not None:
            less = too_few(own.images)["auroc_macro"][0]
            first, drawn_first = before[0]["auroc"], before[1]["auroc"]
            found["own_test_auroc_macro"] = _mean(first, drawn_first, ranked, less)
            both = plain["auroc"] - first, draws["auroc"] - drawn_first
            found["gap_auroc_macro"] = _mean(*both, ranked, few or less)
        mended = np.array([name not in self.undefined for name in names])
        alone = ONE_PATIENT if self.kept.images.count < 2 else None
        kept = mended if mended.any() else ~mended
        found["brier_macro"] = _mean(plain["brier"], draws["brier"], kept, alone)
        key = "recalibrated_brier"
        found[f"{key}_macro"] = _mean(plain[key], draws[key], mended, alone)
        labels = self.kept.images.labels.T
        errors = [
            [
                reliability(*pair)["expected_calibration_error"]
                for pair in zip(one.T, labels, strict=True)
            ]
            for one in self.probabilities
        ]
        means = [float(np.mean(np.array(one)[kept])) for one in errors]
        return {
            "auroc_macro_findings": int(ranked.sum()),
            "recalibrated_findings": int(mended.sum()),
            **figures_of(found),
            "expected_calibration_error_macro": means[0],
            "recalibrated_expected_calibration_error_macro": means[1] if mended.any() else None,
        }


def _compared(
    here: CallScores, drawn: Drawn, own: CallScores, before: Drawn
) -> dict[str, dict[str, list[Estimate]]]:
    """The scores of the run's own test, and the gap: the site's minus these, draw by draw."""
    (plain, draws), (first, drawn_first) = drawn, before
    of_own, gap = {}, {}
    for name in COMPARED:
        why, few = own.undefined[name], own.too_few[name]
        of_own[name] = Estimate.each(first[name], drawn_first[name], undefined=why, few=few)
        gap[name] = Estimate.each(
            plain[name] - first[name],
            draws[name] - drawn_first[name],
            undefined=either(here.undefined[name], why),
            few=either(here.too_few[name], few),
        )
    return {"own_test": of_own, "gap": gap}


def _mean(plain: Floats, draws: Floats, kept: Bools, few: str | None) -> Estimate:
    """The mean over the findings that are kept, with its interval."""
    value = float(plain[kept].mean()) if kept.any() else NAN
    return Estimate.of(value, mean_of_defined(draws[:, kept]), undefined=NO_FINDINGS, few=few)
