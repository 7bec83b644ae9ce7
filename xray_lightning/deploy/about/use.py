"""What a model is for, what it is not for, and what keeps its figures from being what they seem.

Beside sentences that hold of every model, each says only what the run has recorded, or what others
have published of its data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from xray_lightning.deploy.about.known import Known
from xray_lightning.evaluation.record import Run, TestMetrics
from xray_lightning.evaluation.report.page import words

INTENDED = (
    "Research and teaching: comparing models, training recipes, hardware and evaluation methods in "
    "multi-label classification of chest X-rays."
)
OUT_OF_SCOPE = (
    "Anything that touches a patient: diagnosis, triage, screening, second reading, ruling out.",
    "Images unlike those it was trained on: it answers all the same (xray predict flags some).",
    "Findings that are not in its list: an image without any of them is not a healthy one.",
    "Taking a probability for a person's risk: it follows how frequent a finding is in the "
    "training images.",
)
_REVIEWED = (
    "a radiologist who looked at a sample found that they often do not say what the image shows "
    "(L. Oakden-Rayner, Exploring Large-scale Public Medical Image Datasets, Academic Radiology "
    "2020)"
)
MINED = (
    "The labels were read out of radiology reports by a program (Wang et al., CVPR 2017), and "
    f"{_REVIEWED}. The figures are against these labels, not against the truth."
)
FEW = 50  # training images with a finding, below which the findings are named


@dataclass(frozen=True)
class DataSet:
    """A data set as others know it.

    Attributes:
        name: in full.
        told: what to know of its images and labels.
        credit: whom to name; None where nobody needs to be.
    """

    name: str
    told: str
    credit: str | None = None


_NIH = (
    "NIH Clinical Center; X. Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and "
    "Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases, "
    "CVPR 2017."
)
DATA_SETS: Mapping[str, DataSet] = {
    "nih": DataSet("NIH ChestX-ray14", MINED, _NIH),
    "ai4m": DataSet("NIH ChestX-ray14, the tables of the AI for Medicine course", MINED, _NIH),
    "chestmnist": DataSet(
        "ChestMNIST of MedMNIST v2, NIH ChestX-ray14 made small",
        f"It names no patients: whether the sides of its split share some is not known. {MINED}",
        f"J. Yang et al., MedMNIST v2, Scientific Data 2023. {_NIH}",
    ),
    "phantom": DataSet(
        "Chest X-ray phantoms",
        "Drawings, made by a program from a seed, of nobody's chest: the figures show that a "
        "pipeline works, and nothing about medicine.",
    ),
}
_UNTOLD = "Where the images come from, and who labelled them how, is not recorded."


def data_set(run: Run) -> DataSet:
    """What is known of the data by its name, which is all that a run records of its origin."""
    return DATA_SETS.get(run.data) or DataSet(run.data or "not recorded", _UNTOLD)


def limits(known: Known, *, of_data: bool = True) -> list[str]:
    """What to know before using the model, or believing its figures, one sentence or two each.

    Args:
        known: the model.
        of_data: whether what is known of its data set is to be said here, too.
    """
    run, test = known.run, known.test
    said = []
    if run is not None:
        said += [data_set(run).told] if of_data else []
        # Warnings may name files, and files may name patients.
        said += [*words.notes(replace(run, warnings=())), *_rare(run)]
    if test is not None:
        verdict = words.verdict(test)
        said += [
            *([] if verdict is None else [verdict]),
            "The test images come from where the training images come from: how it does "
            "elsewhere is not known.",
            "The intervals are of the patients drawn, not of the training: another seed may "
            "differ by more.",
            *_few(test),
            *_flagged(test),
        ]
    if (size := known.image_size) is not None:
        said.append(f"It sees {size} x {size} pixels: smaller signs are lost.")
    if known.checkpoint is not None and known.checkpoint.points is not None:
        images = words.counted(known.checkpoint.points.images, "validation image")
        said.append(f"Its operating points are fitted to {images}: fit them anew for other images.")
    return said


def _rare(run: Run) -> list[str]:
    train = next((side.positives for side in run.sides if side.name == "train"), {})
    rare = {finding: count for finding, count in train.items() if count < FEW}
    if not rare:
        return []
    named = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in rare.items())
    return [f"Findings in fewer than {FEW} training images: {named}."]


def _few(test: TestMetrics) -> list[str]:
    rows = [row for row in test.per_finding if row.auroc_ci95 is None]
    named = ", ".join(row.finding.replace("_", " ") for row in rows)
    return [f"Without an interval of their AUROC: {named}."] if rows else []


def _flagged(test: TestMetrics) -> list[str]:
    if test.subgroups is None:
        return ["How it does by sex, age, view and visit was not recorded."]
    if not test.subgroups:
        return ["How it does by sex, age, view and visit is not known: the data do not name them."]
    flagged = [f"{one.by} {one.group}" for one in test.subgroups if one.flagged]
    if not flagged:
        return []
    return [f"Groups whose AUROC stands apart from that of the others: {', '.join(flagged)}."]
