"""CLAIM checklist: what a report of AI in medical imaging should say, and what a run can answer.

The items are those of the Checklist for Artificial Intelligence in Medical Imaging, 2024 update
(A. S. Tejani et al., Radiology: Artificial Intelligence 2024), in words of our own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xray_lightning.report import wording
from xray_lightning.runs.run_folder import Run
from xray_lightning.terminal import NONE, count, counted, readable, with_interval

SOURCE = (
    "CLAIM 2024: A. S. Tejani et al., Checklist for Artificial Intelligence in Medical Imaging "
    "(CLAIM): 2024 Update, Radiology: Artificial Intelligence 2024"
)


class Item(NamedTuple):
    """One item of the checklist.

    Attributes:
        answer: what the run's record says of it; None for what only an author can say.
        section: the report's section with details; empty if there is none.
    """

    number: int
    words: str
    answer: str | None
    section: str


Answer = Callable[[Run], str | None]


def items(run: Run) -> list[Item]:
    """All items in their order, each with the run's answer."""
    return [
        Item(number, words, None if answer is None else answer(run), section)
        for number, (words, answer, section) in enumerate(_ITEMS, start=1)
    ]


def left_to_authors(run: Run) -> str:
    """The items that the record cannot answer, as one sentence."""
    named = [f"{item.words} ({item.number})" for item in items(run) if item.answer is None]
    return f"Only its authors can answer: {'; '.join(named)}."


# Origin of the labels, for data sets that are known by their names.
_MINED = (
    "The data set's labels, read out of radiology reports by a program (Wang et al., CVPR 2017)"
)
_LABELS: Mapping[str, str] = {
    **dict.fromkeys(("nih", "ai4m", "chestmnist"), _MINED),
    "phantom": "What was drawn into each phantom",
}


def _of_labels(said: str) -> Answer:
    """Answer with the labels' origin where it is known; None for other data sets."""
    return lambda run: said.format(_LABELS[run.data]) if run.data in _LABELS else None


def _tested(said: Callable[[Run, Any], str]) -> Answer:
    """Answer by `said` for a run that was tested; for others, why there is no test."""
    return lambda run: wording.no_test(run) if run.test is None else said(run, run.test)


def _trained(said: Callable[[Run], str]) -> Answer:
    """Answer by `said` for a run that has trained; for others, that no epoch was trained."""
    return lambda run: said(run) if run.history else "No epoch was trained in this run"


def _title(run: Run) -> str:
    return (
        f"Deep learning: multi-label classification of chest X-rays by {run.model or 'a network'}"
    )


def _source(run: Run) -> str:
    images = counted(sum(run.images.values()), "image")
    return f"{run.data}, {images}" if run.data else "The run ended before it had read its data"


def _criteria(run: Run) -> str:
    left_out = ", ".join(f"{number} x {why}" for why, number in run.dropped.items())
    counts = f"Counted while reading: {left_out}" if left_out else "No row was left out"
    return f"{counts}. Whom the data set itself includes, its own authors say"


def _preprocessing(run: Run) -> str:
    size, settings = run.settings.get("data.image_size"), run.settings
    augment, mixing = (
        str(settings.get(f"{group}._target_") or "").rpartition(".")[2]
        for group in ("augment", "mixing")
    )
    changed = f"augmented in training by {augment}" if augment else "not augmented"
    changed += f", mixed by {mixing}" if mixing else ""
    smallest = settings.get("growth.start")
    changed += f", from {smallest} x {smallest} px on in the first epochs" if smallest else ""
    return f"Gray, {size} x {size} px, normalised {settings.get('data.normalize')}; {changed}"


def _missing(run: Run) -> str:
    files = {"skip": "left out and counted", "error": "refused"}
    said = files.get(str(run.settings.get("data.missing")), NONE)
    return (
        f"Images without a file are {said}. Unknown age, sex and view are groups of their own, and "
        "features of their own in the metadata baseline"
    )


def _partition(run: Run) -> str:
    seed = run.settings.get("data.split_seed")
    fold, folds = (run.settings.get(f"data.{key}") for key in ("fold", "folds"))
    cut = "" if fold is None else f", fold {fold} (from 0) of {folds} validates"
    return f"Split {run.split}, seed {seed}{cut}, SHA-256 {(run.split_sha256 or NONE)[:12]}"


def _disjoint(run: Run) -> str:
    if run.data == "chestmnist":
        return "Images: the data set names no patients"
    shared = ", ".join(f"{number} on {pair}" for pair, number in run.overlap.items())
    return f"Images: {shared} are on two sides" if shared else "Patients: none is on two sides"


def _model(run: Run) -> str:
    findings = ", ".join(map(readable, run.findings))
    return f"{run.model or NONE}; a probability of each of {len(run.findings)} findings: {findings}"


def _initialisation(run: Run) -> str:
    if run.weights_files:
        return f"Weights of {' and '.join(path.rpartition('/')[2] for path in run.weights_files)}"
    pretrained = run.settings.get("model.pretrained")
    library = run.settings.get("model.library") or "torchvision"
    start = f"{library}'s pretrained weights" if pretrained else "Random weights"
    return f"{start}, seed {NONE if run.seed is None else run.seed}"


def _training(run: Run) -> str:
    settings = run.settings
    loss, optimizer = (
        str(settings.get(f"{key}._target_", NONE)).rpartition(".")[2]
        for key in ("loss", "optimizer")
    )
    return (
        f"{loss}, {optimizer} at {settings.get('optimizer.lr')}, "
        f"{settings.get('data.batch_size')} images a step, {counted(len(run.history), 'epoch')}, "
        f"{wording.precision_of(run)}"
    )


def _selection(run: Run) -> str:
    if run.best_epoch is None:
        monitor = run.settings.get("callbacks.best.monitor", "none recorded")
        return "The last epoch" if monitor is None else f"By {monitor} on validation"
    return f"Epoch {run.best_epoch}, of the highest macro AUROC on validation; the test came after"


def _uncertainty(run: Run) -> str:
    resamples = run.settings.get("evaluation.resamples", NONE)
    return (
        f"95 % intervals over {resamples} bootstrap resamples of patients; differences are paired"
    )


def _robustness(run: Run, test: Any) -> str:
    by = list(dict.fromkeys(group.by for group in test.subgroups))
    said = f"By {', '.join(by)}" if by else "By no subgroup: the data name none"
    return f"{said}; beside metadata alone{' and shuffled labels' if test.shuffled_labels else ''}"


def _included(run: Run) -> str:
    sides = [
        f"{side.name} {counted(side.images, 'image')} of {counted(side.patients or 0, 'patient')}"
        for side in run.sides
    ]
    left_out = sum(run.dropped.values())
    return f"{', '.join(sides) or NONE}; {count(left_out)} counted as left out or nulled"


def _who(run: Run) -> str:
    said = [f"{side.name} {told}" for side in run.sides if (told := wording.imaged(side))]
    return "; ".join(said) or "Not recorded"


def _performance(run: Run, test: Any) -> str:
    return f"Macro AUROC {with_interval(test.auroc_macro, test.auroc_macro_ci95, joint=' to ')}"


_ITEMS: tuple[tuple[str, Answer | None, str], ...] = (
    ("Title that names the kind of AI", _title, "run"),
    ("Structured summary", None, ""),
    ("Background and role of the model", None, ""),
    ("Aims and hypotheses", None, ""),
    ("Prospective or retrospective", None, ""),
    ("Goal of the study", None, ""),
    ("Sources of the data", _source, "run"),
    ("Who and what was included and excluded", _criteria, "notes"),
    ("Preprocessing", _preprocessing, "reproduce"),
    ("Parts of the data that were used", lambda run: "Whole images, none cut out", "run"),
    ("De-identification", None, ""),
    ("Missing data", _missing, "notes"),
    ("How images were acquired", None, ""),
    ("Definition of the reference standard", _of_labels("{}"), "findings"),
    ("Why this reference standard", None, ""),
    ("Who annotated, and how", _of_labels("{}; no annotator was asked"), ""),
    ("Annotation of the test images", _of_labels("As the training images'"), ""),
    ("Agreement between and within readers", None, ""),
    ("How images were assigned to partitions", _partition, "run"),
    ("Level at which partitions are disjoint", _disjoint, "notes"),
    ("Intended sample size", None, ""),
    ("Model, its inputs and outputs", _model, "run"),
    (
        "Software",
        lambda run: ", ".join(f"{name} {one}" for name, one in run.versions.items()) or NONE,
        "reproduce",
    ),
    ("Initial weights", _trained(_initialisation), "reproduce"),
    ("Training", _trained(_training), "training"),
    ("Selection of the final model", _trained(_selection), "training"),
    ("Ensembling", lambda run: "None", ""),
    (
        "Metrics",
        _tested(lambda run, test: "AUROC, average precision, sensitivity, specificity, Brier, ECE"),
        "result",
    ),
    ("Uncertainty", _uncertainty, "result"),
    ("Robustness", _tested(_robustness), "subgroups"),
    (
        "Explainability",
        lambda run: "Not in this record; xray explain draws maps and scores them on boxes",
        "",
    ),
    (
        "Test on internal data",
        _tested(lambda run, test: f"{counted(test.images, 'image')} of the same data set"),
        "result",
    ),
    (
        "Test on external data",
        lambda run: "None in this record; xray evaluate --data scores one",
        "",
    ),
    ("Registration of a trial", None, ""),
    ("Patients and images, included and excluded", _included, "run"),
    ("Who they are, in each partition", _who, "run"),
    ("Performance and its uncertainty", _tested(_performance), "result"),
    (
        "Diagnostic performance and its precision",
        _tested(lambda run, test: "Sensitivity and specificity of each finding, with intervals"),
        "findings",
    ),
    (
        "Analysis of failures",
        _tested(lambda run, test: "Confusion counts, and the most confident mistakes as images"),
        "mistakes",
    ),
    ("Limitations", lambda run: "As far as the record knows them", "notes"),
    ("Implications for practice", None, ""),
    (
        "Protocol and technical details",
        lambda run: f"Command, configuration, commit {(run.git_commit or NONE)[:12]}",
        "reproduce",
    ),
    (
        "Availability of software, model and data",
        lambda run: "Software: xray-lightning, Apache-2.0. Of model and data, the authors say",
        "reproduce",
    ),
    ("Funding", None, ""),
)
