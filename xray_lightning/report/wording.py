"""Wording of the report: what was run, what to know, what is missing and why."""

from collections.abc import Sequence

from xray_lightning.evaluation.operating_points import RATES
from xray_lightning.evaluation.published_results import (
    OFFICIAL_TEST_IMAGES,
    PAPER_ROWS,
    PUBLISHED_AUROCS,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.run_folder import Run, Side
from xray_lightning.runs.schema import Subgroup, TestMetrics, Timing
from xray_lightning.runs.summary import IMAGES_ADD, images_add, shuffled_reach
from xray_lightning.terminal import NONE, Cell, by_reason, counted, decimal, readable, said_alike

NO_BETTER = "label accuracy is no better than that of a model that always answers 'no finding'"


def label_of(run: Run) -> str:
    """How notes and figures call a run: its row of the paper, or its name."""
    return f"Row {run.paper_row}" if run.paper_row else run.name


def state(run: Run) -> str:
    """The status; of a skipped run also the reason, as it is short: "skipped: needs CUDA"."""
    return _state_and_reason(run) if run.status == "skipped" else run.status


def _state_and_reason(run: Run) -> str:
    return f"{run.status}: {reason}" if (reason := _reason(run)) else run.status


def _reason(run: Run) -> str:
    return (run.reason or "").removeprefix(f"{run.status}: ").rstrip(".")


def state_notes(runs: Sequence[Run]) -> list[str]:
    said = [(run, f" {_state_and_reason(run)}.") for run in runs if run.status != "finished"]
    return grouped(said)


def baseline_note(runs: Sequence[Run]) -> list[str]:
    """A note on runs whose label accuracy does not beat always "no finding"; else empty."""
    said = f": {NO_BETTER}."
    return grouped([(run, said) for run in runs if run.test and not beats_baseline(run.test)])


def metadata_note(runs: Sequence[Run]) -> list[str]:
    """A note on runs whose images are not shown to add to metadata; else empty."""
    said = ": that its images add anything to view, age, sex and follow-up cannot be shown."
    return grouped([(run, said) for run in runs if run.test and not beats_metadata(run.test)])


def beats_baseline(test: TestMetrics) -> bool:
    """Whether label accuracy beats always answering "no finding"; True if either is unknown."""
    if test.label_accuracy is None or test.always_negative_accuracy is None:
        return True  # nothing to say
    # Different orders of summation may differ in the last bit; one label changes far more.
    return test.label_accuracy > test.always_negative_accuracy + 1e-12


def data_notes(runs: Sequence[Run]) -> list[str]:
    """What to know of the data before comparing: several splits, leaks, drops."""
    notes = []
    if len({r.split_sha256 for r in runs if r.split_sha256}) > 1:
        notes.append(
            "These runs do not share one split (split_sha256 differs): compare only within a split."
        )
    said = []
    for run in runs:
        for pair, patients in run.overlap.items():
            leak = f": {patients} patients are on both sides of {pair}, which flatters the figures."
            said.append((run, leak))
        said += [(run, f": {sentence}") for sentence in seen_by_weights(run)]
        if run.dropped:
            counts = ", ".join(f"{count} x {reason}" for reason, count in run.dropped.items())
            said.append((run, f": counted while reading: {counts}."))
        if run.test and run.test.auroc_macro_findings < len(run.test.per_finding):
            count = f"{run.test.auroc_macro_findings} of {len(run.test.per_finding)}"
            said.append((run, f": macro AUROC over the {count} findings that have one."))
    return notes + grouped(said)


def source_notes(runs: Sequence[Run]) -> list[str]:
    """Notes on which data the runs used, and whether these are the paper's."""
    sources = sorted({f"{run.data}, split {run.split}" for run in runs if run.data})
    images = sorted({run.test.images for run in runs if run.test})
    tested = f", {' / '.join(map(str, images))} test images" if images else ""
    notes = [f"Ours: {'; '.join(sources)}{tested}."] if sources else []
    if any(run.data not in ("ai4m", "") for run in runs):
        notes.append("Ours are other images than the paper's: do not compare the accuracies.")
    return notes


def grouped(said: Sequence[tuple[Run, str]]) -> list[str]:
    """One sentence per distinct remark, naming all its runs: "Row 2 and Row 3 skipped: ..."."""
    labels = said_alike((label_of(run), sentence) for run, sentence in said)
    return [
        " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) + sentence
        for sentence, names in labels.items()
    ]


def on_published_split(run: Run) -> bool:
    """Whether the run was tested on NIH's official test list, as the published figures were."""
    official = (run.data, run.split) == ("nih", "official")
    tested = run.test is not None and run.test.images == OFFICIAL_TEST_IMAGES
    return official and tested and set(run.findings) == set(FINDINGS)


RULES = {
    "youden": "the highest sum of sensitivity and specificity (Youden's index)",
    "f1": "the highest F1 score",
    "sensitivity": "the highest threshold whose sensitivity is at least {target}",
    "specificity": "the lowest threshold whose specificity is at least {target}",
    "cost": "the threshold of the least cost, one missed finding weighing {target} false alarms,",
    "alerts": "the lowest threshold that raises at most {target} alerts per 1,000 images",
}
METHODS = {"platt": "Platt", "temperature": "temperature"}


def summary(run: Run) -> str:
    """What was trained and tested on what, in one sentence."""
    images = {side.name: counted(side.images, "image") for side in run.sides}
    data = f"{run.data}, split {run.split}" if run.data else "data that was never read"
    parts = [f"{run.model or 'A model'} on {data}"]
    if run.history and "train" in images:
        parts.append(f"trained for {counted(len(run.history), 'epoch')} on {images['train']}")
    if run.test:
        patients = f" of {counted(run.test.patients, 'patient')}" if run.test.patients else ""
        parts.append(f"tested on {counted(run.test.images, 'image')}{patients}")
    return f"{'; '.join(parts)}."


def facts(run: Run) -> list[tuple[str, str]]:
    """What the run was made of, as terms and values."""
    ranks = f", {run.world_size} ranks" if run.world_size and run.world_size > 1 else ""
    accelerator = f" ({run.accelerator})" if run.accelerator else ""
    size = run.settings.get("data.image_size")
    normalised = run.settings.get("data.normalize")
    return [
        ("Model", run.model or NONE),
        ("Data", run.data or NONE),
        ("Split", run.split or NONE),
        ("Split hash", (run.split_sha256 or NONE)[:12]),
        ("Input", f"{size} x {size} px, {normalised}" if size else NONE),
        ("Device", f"{run.device or 'none was chosen'}{accelerator}{ranks}"),
        ("Strategy", run.strategy or NONE),
        ("Precision", precision_of(run)),
        ("Seed", NONE if run.seed is None else str(run.seed)),
    ]


def imaged(side: Side) -> str:
    """Age, sex and view of a split's images in a few words; empty if not recorded."""
    who = side.demographics
    if who is None:
        return ""
    age, said = who.age, []
    if age.median is not None and age.quartiles is not None:
        low, high = age.quartiles
        said.append(f"age {age.median:.0f} ({low:.0f}-{high:.0f})")
    shares = (
        ("female", who.sex.get("female", 0), who.sex.get("male", 0)),
        ("AP", who.view.get("AP", 0), who.view.get("PA", 0)),
    )
    said += [f"{100 * n / (n + rest):.0f} % {name}" for name, n, rest in shares if n + rest]
    return ", ".join(said) or "age, sex and view unknown"


def precision_cell(run: Run | None) -> Cell:
    """The precision that a run used, and below it the one asked for, if that differs."""
    if run is None or run.precision_used is None:
        return (NONE,)
    if run.precision_asked in (None, run.precision_used):
        return (run.precision_used,)
    return (run.precision_used, f"asked {run.precision_asked}")


def precision_of(run: Run) -> str:
    """The content of `precision_cell` in one line."""
    used, *asked = precision_cell(run)
    return f"{used} ({asked[0]})" if asked else used


def verdicts(test: TestMetrics) -> list[str]:
    """The warnings that apply: no gain in label accuracy, no shown gain of images over metadata."""
    said = [] if beats_baseline(test) else [f"Its {NO_BETTER}."]
    return said if beats_metadata(test) else [*said, metadata(test)]


def metadata(test: TestMetrics) -> str:
    """What the images have added to metadata; empty where it is not known."""
    return images_add(*(getattr(test, name) for name in IMAGES_ADD)) or ""


def shuffled(test: TestMetrics) -> str:
    """What the recipe reaches on shuffled labels; empty where that was not asked for."""
    found = test.shuffled_labels
    return "" if found is None else shuffled_reach(found.auroc_macro, found.auroc_macro_ci95)


def beats_metadata(test: TestMetrics) -> bool:
    """Whether the images are shown to add to metadata (interval above 0); True if unknown."""
    ends = test.gain_over_metadata_macro_ci95
    return ends is None or ends[0] > 0


def seen_by_weights(run: Run) -> list[str]:
    """One sentence for each way in which the first weights have seen test images."""
    seen = () if run.first_weights is None else run.first_weights.seen_test
    return [f"the first weights have seen {part}, which flatters the figures." for part in seen]


def notes(run: Run) -> list[str]:
    """What to know before believing the figures."""
    said = [
        f"{counted(patients, 'patient')} on both sides of {pair}: this flatters the figures."
        for pair, patients in run.overlap.items()
    ]
    said += [f"{sentence[0].upper()}{sentence[1:]}" for sentence in seen_by_weights(run)]
    said += [f"Counted while reading: {count} x {why}." for why, count in run.dropped.items()]
    if run.test and run.test.auroc_macro_findings < len(run.test.per_finding):
        without = [row.finding for row in run.test.finding_rows if row.auroc is None]
        names = readable(", ".join(without))
        all_findings = len(run.test.per_finding)
        said.append(
            f"Macro figures are over {run.test.auroc_macro_findings} of {all_findings} findings"
            f"{f'; without an AUROC: {names}' if names else ''}."
        )
    paper = next((row for row in PAPER_ROWS if row.row == run.paper_row), None)
    if paper and run.accelerator and paper.accelerator != run.accelerator:
        said.append(
            f"Ran on {run.accelerator.upper()}, where the paper's row {paper.row} ran on "
            f"{paper.accelerator.upper()}."
        )
    if run.precision_used and run.precision_asked not in (None, run.precision_used):
        asked = run.precision_asked
        said.append(f"Precision {asked} was asked for; it ran as {run.precision_used}.")
    if run.skipped_steps:
        said.append(f"{counted(run.skipped_steps, 'step')} left out by fp16's loss scaling.")
    return said + [f"Warning: {text}" for text in run.warnings]


def no_test(run: Run) -> str:
    """Why a run has no test figures."""
    reason = _reason(run)
    ended = "was interrupted" if run.status == "interrupted" else run.status
    return {
        "finished": "This run was not tested: its stages were "
        f"{run.settings.get('stages', 'others')}.",
        "running": "This run has not come to its test yet.",
        "skipped": f"This run was skipped: {reason}.",
    }.get(run.status, f"This run {ended} before its test: {reason}.")


def operating_point(test: TestMetrics) -> str:
    """By which rule the thresholds were chosen."""
    point = test.operating_point
    if point is None:
        return "No operating point was fitted: each finding is called present from 0.5 on."
    rate = point.rule in RATES
    target = decimal(point.target) if rate or point.target is None else f"{point.target:g}"
    rule = RULES[point.rule].format(target=target)
    return (
        f"A finding is called present from its threshold on, chosen as {rule} on "
        f"{counted(point.images, 'validation image')}; no test image had a say in it."
    )


def calibrated_label(test: TestMetrics) -> str | None:
    """What the calibrated probabilities are, in a few words; None where there are none."""
    if test.calibrated is None:
        return None
    method = METHODS[test.calibrated.method]
    return f"calibrated ({method}, fitted on {counted(test.calibrated.images, 'validation image')})"


def chance_precision(test: TestMetrics) -> float | None:
    """The mean prevalence of the findings that the macro average precision is over."""
    known = [
        row.prevalence
        for row in test.finding_rows
        if row.average_precision is not None and row.prevalence is not None
    ]
    return sum(known) / len(known) if known else None


def undefined(test: TestMetrics) -> list[str]:
    """Why figures of some findings are not there, one sentence a reason."""
    return by_reason(
        (readable(row.finding), reason)
        for row in test.finding_rows
        for reason in row.undefined_reason.values()
    )


def undefined_groups(groups: Sequence[Subgroup]) -> list[str]:
    """Why figures of some groups are not there, one sentence a reason."""
    return by_reason(
        (f"{group.by} {group.group}", "; ".join(dict.fromkeys(group.undefined_reason.values())))
        for group in groups
        if group.undefined_reason
    )


def speed(timing: Timing) -> str | None:
    """Images a second, wait for data and memory, as far as they were measured."""
    parts = []
    if timing.fit_images_per_second is not None:
        parts.append(f"{timing.fit_images_per_second:.0f} images/s over all of training")
    if timing.steady_images_per_second is not None:
        parts.append(f"{timing.steady_images_per_second:.0f} in its steps once warm")
    if timing.data_wait_fraction is not None:
        parts.append(f"{100 * timing.data_wait_fraction:.1f} % of that time waiting for data")
    for name, size in timing.peak_memory_bytes:
        if size is not None:
            parts.append(f"at most {size / 2**30:.2f} GiB of {name} memory")
    return f"{'; '.join(parts)}." if parts else None


def multiplicity(groups: Sequence[Subgroup]) -> str:
    """How to read flags, and gaps without a flag, given how many gaps were tested."""
    gaps = sum(ends is not None for group in groups for _, ends, _ in group.gaps)
    if not gaps:
        flagged = sum(group.flagged for group in groups)
        return (
            f"{counted(flagged, 'group')} flagged, by the interval of the gap in AUROC alone: no "
            "intervals that hold for all gaps together are known."
        )
    flags = [name for group in groups for name in group.flagged_by]
    said = (
        f"{len(flags)} of {counted(gaps, 'gap')} in AUROC, sensitivity and specificity flagged, as "
        "the interval of the gap to all other images of the attribute leaves out 0. These "
        "intervals hold at 95 % for all gaps together: where no group differs, at most one test in "
        "twenty has any flag. A gap without a flag may still be there: 'shown from' is the size "
        "that would have been flagged in 80 % of such tests. Two groups of one attribute share one "
        "gap."
    )
    if {"sensitivity", "specificity"}.isdisjoint(flags):
        return said
    return (
        f"{said} One threshold for all groups by itself gives a group that scores higher, such as "
        "one of more ill patients, more sensitivity and less specificity."
    )


def flagged_groups(groups: Sequence[Subgroup]) -> list[str]:
    """Each group that stands apart, and in what: "view AP (sensitivity)"."""
    return [
        f"{group.by} {group.group} ({', '.join(group.flagged_by or ('AUROC',))})"
        for group in groups
        if group.flagged
    ]


def published(run: Run) -> str | None:
    """Why no published figure stands beside the run's; None where some do."""
    if on_published_split(run):
        return None
    images = counted(run.test.images if run.test else 0, "test image")
    ours = f"{images} of {run.data or 'no data'}, split {run.split or 'none'}"
    return (
        f"No published figure is shown: the {len(PUBLISHED_AUROCS)} that the project knows for an "
        f"official split are of all {OFFICIAL_TEST_IMAGES:,} images of NIH's official test list, "
        f"and this run is of {ours}. Figures of different splits do not compare."
    )
