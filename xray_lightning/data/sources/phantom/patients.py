"""Who is X-rayed, when and with what: the exams of a phantom data set, and each patient's chest."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from xray_lightning.data.sources.phantom.anatomy import Chest
from xray_lightning.data.sources.phantom.signs import Sign
from xray_lightning.findings import FINDINGS

_TEST_EVERY = 5  # every fifth patient is a test patient

# Relative frequency as the first finding of a sick film; together with _COMPANIONS and the
# persistence of _CHRONIC this gives about 6 to 9 % of all films each.
_WEIGHTS = {
    "Atelectasis": 1.0,
    "Cardiomegaly": 0.9,
    "Effusion": 1.2,
    "Infiltration": 1.6,
    "Mass": 1.4,
    "Nodule": 1.5,
    "Pneumonia": 1.1,
    "Pneumothorax": 1.5,
    "Consolidation": 1.25,
    "Edema": 0.95,
    "Emphysema": 0.8,
    "Fibrosis": 0.65,
    "Pleural_Thickening": 0.7,
    "Hernia": 0.8,
}
_ALSO = 0.045  # chance of each further finding; higher for companions of the first one:
_COMPANIONS = {
    "Effusion": {"Atelectasis": 0.25, "Edema": 0.10},
    "Cardiomegaly": {"Edema": 0.25, "Effusion": 0.20},
    "Edema": {"Cardiomegaly": 0.25, "Effusion": 0.25},
    "Pneumonia": {"Infiltration": 0.15, "Effusion": 0.10},
    "Consolidation": {"Effusion": 0.15},
    "Emphysema": {"Pneumothorax": 0.15},
    "Fibrosis": {"Pleural_Thickening": 0.15},
    "Mass": {"Nodule": 0.15},
}
_CHRONIC = ("Cardiomegaly", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
# A lung cannot be overinflated and shrunken; an emphysematous chest has a narrow heart.
_EXCLUDES = {"Emphysema": ("Atelectasis", "Fibrosis"), "Cardiomegaly": ("Emphysema",)}
_ILL_IN_BED = {"Effusion", "Edema", "Pneumothorax", "Pneumonia", "Cardiomegaly"}


@dataclass(frozen=True)
class Exam:
    """One film of one patient: a row of the table (age in years, sex M or F, view PA or AP)."""

    patient: int
    follow_up: int
    sex: str
    age: int
    view: str
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file name in NIH's scheme."""
        return f"{self.patient:08d}_{self.follow_up:03d}.png"

    @property
    def in_test(self) -> bool:
        """Whether the patient belongs to the test list."""
        return self.patient % _TEST_EVERY == 2


def plan_exams(images: int, *, seed: int) -> list[Exam]:
    """The first `images` exams of patients 1, 2, ...; a longer plan begins with the shorter one."""
    exams = (exam for patient in count(1) for exam in _exams_of(patient, seed=seed))
    return list(islice(exams, images))


def _exams_of(patient: int, *, seed: int) -> Iterator[Exam]:
    rng = np.random.default_rng([seed, patient, 0])
    sex = "M" if rng.random() < 0.56 else "F"
    age = int(np.clip(rng.normal(49, 16), 12, 90))
    present: frozenset[str] = frozenset()
    for follow_up in range(int(rng.choice(6, p=[0.42, 0.22, 0.14, 0.10, 0.07, 0.05])) + 1):
        if follow_up == 0 or rng.random() < 0.5:  # else the findings are still those of last time
            present = frozenset(_draw_findings(rng)) | (present & frozenset(_CHRONIC))
            present = _without_contradictions(present)
        findings = tuple(name for name in FINDINGS if name in present)
        view = "AP" if rng.random() < (0.5 if present & _ILL_IN_BED else 0.33) else "PA"
        yield Exam(patient, follow_up, sex, age, view, findings)
        age += int(rng.integers(0, 3))


def _draw_findings(rng: np.random.Generator) -> set[str]:
    if rng.random() < 0.45:
        return set()
    weights = np.array([_WEIGHTS[name] for name in FINDINGS])
    # A number, not a name: while numpy makes an array of names it may swallow a Ctrl-C.
    first = FINDINGS[int(rng.choice(len(FINDINGS), p=weights / weights.sum()))]
    likely = _COMPANIONS.get(first, {})
    chances = rng.random(len(FINDINGS))
    further = {n for n, c in zip(FINDINGS, chances, strict=True) if c < likely.get(n, _ALSO)}
    return {first} | further


def _without_contradictions(present: frozenset[str]) -> frozenset[str]:
    for name, impossible in _EXCLUDES.items():
        if name in present:
            present -= set(impossible)
    return present


def sample_chest(exam: Exam, *, seed: int) -> Chest:
    """The patient's healthy chest on this film: the same at every visit but for age and breath."""
    rng = np.random.default_rng([seed, exam.patient, 1])
    female, ap = exam.sex == "F", exam.view == "AP"
    half_width = float(np.clip(rng.normal(12.2 if female else 13.2, 0.55), 10.8, 14.4))
    apex, dome = float(rng.normal(-12.2, 0.5)), float(rng.normal(7.0, 0.9))
    gap = float(rng.uniform(0.7, 1.6))
    ratio = float(np.clip(rng.normal(0.425, 0.025) + 0.0006 * (exam.age - 50), 0.36, 0.475))
    fat = float(np.clip(rng.gamma(6.0, 0.4), 1.2, 4.2))
    breast = float(rng.uniform(4.2, 6.2)) if female and exam.age > 13 else 0.0
    sulcus, spacing = float(rng.normal(4.0, 0.35)), float(rng.normal(2.2, 0.1))
    drop, phase = float(rng.normal(4.5, 0.4)), float(rng.random())
    knob = float(rng.normal(1.0, 0.25))
    visit = np.random.default_rng([seed, exam.patient, 2, exam.follow_up])
    breath = float(visit.normal(0, 0.5)) - (0.9 if ap else 0.0)  # films in bed show less breath
    return Chest(
        half_width=half_width,
        apex=apex + (0.4 if ap else 0.0),
        domes=(dome + breath, dome + gap + breath),
        sulcus=sulcus,
        heart_ratio=ratio + (0.03 if ap else 0.0),  # nearer to the tube, so magnified
        knob=max(0.5, knob + 0.02 * (exam.age - 40)),
        fat=fat,
        breast=breast,
        rib_spacing=spacing,
        rib_drop=drop,
        rib_phase=phase,
        clavicle=float(visit.normal(0, 0.4)) - (0.8 if ap else 0.0),
        inflation=float(np.clip(visit.normal(1.0, 0.12), 0.75, 1.25)),
        vessels=float(np.clip(visit.normal(1.0, 0.13), 0.7, 1.3)),
        scapula=1.8 if ap else 0.0,  # in PA the arms roll the shoulder blades off the lungs
        bone=1.1 - 0.005 * (exam.age - 40),
    )


def sample_sign(exam: Exam, finding: str, *, seed: int, severity: float | None = None) -> Sign:
    """How the finding shows on this film: in the same place at every visit, more or less severe."""
    column = FINDINGS.index(finding)
    lasting = np.random.default_rng([seed, exam.patient, 3, column])
    visit = np.random.default_rng([seed, exam.patient, 4, column, exam.follow_up])
    usual = lasting.beta(1.1, 1.6) + visit.normal(0, 0.12)
    return Sign(
        severity=float(np.clip(usual if severity is None else severity, 0, 1)),
        place=int(lasting.integers(2**31)),
        look=int(visit.integers(2**31)),
    )
