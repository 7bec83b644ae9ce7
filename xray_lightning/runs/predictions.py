"""Predictions tables: one row an image, as written, read and validated."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.csv_table import Titles, fail_at, header_of, read_cells, shown
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import write_atomically
from xray_lightning.findings import FINDINGS, check_findings, folded
from xray_lightning.runs.results_json import predictions_name

if TYPE_CHECKING:  # `xray info` should not wait for lightning
    from xray_lightning.models.gathered_outputs import Outputs

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

REQUIRED = ("image", "patient_id")
OPTIONAL = ("split", "age", "sex", "view", "follow_up")  # older files lack the last four
TEXTS = {"sex": ("M", "F", ""), "view": ("PA", "AP", "")}
# What the columns of a finding start with.
PROBABILITY, LABEL = "prob_", "label_"


def prediction_table(
    table: pd.DataFrame,
    outputs: "Outputs | None",
    *,
    side: str,
    findings: Sequence[str] = FINDINGS,
    further: Sequence[str] = (),
) -> pd.DataFrame:
    """One row an image: image, patient_id, split, prob_<Finding> and label_<Finding> of each.

    Then age, sex, view, follow_up and the further columns, by which the evaluation forms
    subgroups.
    """
    if outputs is None or len(outputs.rows) != len(table):
        raise RuntimeError("the predictions are not one an image")
    rows = table.iloc[outputs.rows.numpy()]
    probabilities = outputs.probabilities.numpy()
    columns: dict[str, Any] = {name: rows[name].to_numpy() for name in REQUIRED}
    columns["split"] = side
    columns |= {f"prob_{name}": probabilities[:, i] for i, name in enumerate(findings)}
    columns |= {f"label_{name}": rows[name].to_numpy(dtype=np.uint8) for name in findings}
    named = ("age", "sex", "view", "follow_up", *further)
    columns |= {name: rows[name].to_numpy() for name in named}
    return pd.DataFrame(columns)


def csv_of(predictions: pd.DataFrame) -> str:
    """The text of a predictions file, from which the same numbers can be read back.

    Probabilities are float32, which nine digits tell apart (IEEE 754).
    """
    return predictions.to_csv(index=False, float_format="%.9g")


def write_predictions(folder: Path, predictions: pd.DataFrame, *, side: str) -> None:
    """Write predictions_<side>.csv into a folder.

    Raises:
        OSError: it cannot be written; a file that was there is untouched.
    """
    write_atomically(folder / predictions_name(side), csv_of(predictions))


# With few patients in a class, bootstrap intervals are too narrow. Simulated (400 patients, true
# AUROC 0.69), the 95 % interval of AUROC contains the true value in 50 % of the cases with 2
# positive patients, 73 % with 3, 86 % with 5, 92 % with 10 and 94 % with 20.
ENOUGH_PATIENTS = 10
# An average over findings varies less, so that fewer patients per class are enough. But a class of
# one patient is the same in all resamples that contain it.
SEVERAL_PATIENTS = 2


@dataclass(frozen=True)
class ScoredImages:
    """Predictions of N images as arrays.

    Images are sorted by name and patients numbered by sorted id, both as text, so that any number
    of ranks and a table read back from a file give the same figures to the last digit.

    Attributes:
        table: the predictions in the order of the arrays.
        findings: those that the table has columns of, in their order.
        scores: probabilities, shape (N, findings).
        labels: whether each image has each finding, shape (N, findings).
        patients: number of each image's patient, from 0, shape (N,).
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    scores: Floats
    labels: Bools
    patients: Integers

    @classmethod
    def of(cls, predictions: pd.DataFrame) -> "ScoredImages":
        """Check the table and take its arrays.

        Raises:
            UserError: a missing column, an empty table, or a label other than 0 and 1.
            RunFailedError: a probability that is not a number in 0..1, or an image twice.
        """
        findings = findings_of(predictions.columns, what="predictions")
        missing = [column for column in REQUIRED if column not in predictions]
        if missing:
            raise UserError(f"predictions: no column {missing[0]} ({len(missing)} missing in all)")
        if predictions.empty:
            raise UserError("predictions: no rows, nothing to evaluate")
        if predictions["patient_id"].isna().any():
            count = int(predictions["patient_id"].isna().sum())
            raise UserError(f"predictions: {count} rows without patient_id, which intervals need")
        twice = predictions["image"].duplicated()
        if twice.any():
            first = predictions.loc[twice, "image"].iloc[0]
            raise RunFailedError(
                f"predictions: {int(twice.sum())} images are there twice, such as {first}; "
                "each must count once"
            )
        names = np.array([str(name) for name in predictions["image"]], dtype=object)
        table = predictions.iloc[np.argsort(names, kind="stable")].reset_index(drop=True)
        ids = np.array([str(patient) for patient in table["patient_id"]], dtype=object)
        scores, labels = _probabilities_and_labels(
            table, findings, what="predictions", outcome="no score given"
        )
        return cls(
            table=table,
            findings=findings,
            scores=scores,
            labels=labels,
            patients=pd.factorize(ids, sort=True)[0].astype(np.int64),
        )

    @property
    def count(self) -> int:
        """How many patients there are."""
        return int(self.patients.max()) + 1

    def enough(
        self, images: Bools | None = None, *, least: int = ENOUGH_PATIENTS
    ) -> tuple[Bools, Bools]:
        """Whether enough patients have each finding, and whether enough lack it.

        Args:
            images: those that count, shape (N,); None for all.
            least: how many patients are enough.

        Returns:
            Two arrays of shape (findings,). A patient with images of both kinds counts for both.
        """
        kept = np.ones(len(self.patients), dtype=bool) if images is None else images
        labels, patients = self.labels[kept], self.patients[kept]
        having, lacking = (
            np.array([len(np.unique(patients[column])) for column in flags.T]) >= least
            for flags in (labels, ~labels)
        )
        return having, lacking


def findings_of(columns: Iterable[object], *, what: str) -> tuple[str, ...]:
    """The findings F of the columns prob_F, in their order; each needs a column label_F.

    Raises:
        UserError: a column is missing, or there is no finding; the message begins with `what`.
    """
    names = [str(column) for column in columns]
    by_kind = [
        [name.removeprefix(kind) for name in names if name.startswith(kind)]
        for kind in (PROBABILITY, LABEL)
    ]
    probabilities, labels = by_kind
    missing = [f"{PROBABILITY}{one}" for one in labels if one not in probabilities]
    missing += [f"{LABEL}{one}" for one in probabilities if one not in labels]
    if missing:
        raise UserError(f"{what}: no column {missing[0]} ({len(missing)} missing in all)")
    if not probabilities:
        raise UserError(
            f"{what}: no column {PROBABILITY}<Finding>; predictions have one of each finding"
        )
    return tuple(probabilities)


def _probabilities_and_labels(
    table: pd.DataFrame, findings: Sequence[str], *, what: str, outcome: str
) -> tuple[Floats, Bools]:
    """Probabilities and labels of a table, checked, each of shape (N, findings).

    Args:
        what: begins each message.
        outcome: the consequence of an invalid probability, which ends its message.

    Raises:
        UserError: text for a number, or a label other than 0 and 1.
        RunFailedError: a probability that is not a number in 0..1.
    """
    arrays = []
    for kind in (PROBABILITY, LABEL):
        columns = table[[f"{kind}{finding}" for finding in findings]]
        try:
            arrays.append(columns.to_numpy(dtype=np.float64, na_value=np.nan))
        except (ValueError, TypeError) as error:
            raise UserError(f"{what}: a {kind} column holds text for a number: {error}") from error
    scores, labels = arrays
    bad = ~((scores >= 0) & (scores <= 1))  # NaN is bad, too
    if bad.any():
        raise RunFailedError(
            f"{what}: {int(bad.sum())} of {bad.size} probabilities are NaN or outside 0..1, "
            f"in {int(bad.any(axis=1).sum())} of {len(bad)} images; {outcome}"
        )
    right = np.isin(labels, (0, 1)).all(axis=0)
    if not right.all():
        column = f"{LABEL}{findings[int(np.argmin(right))]}"
        raise UserError(f"{what}: column {column} holds a value other than 0 and 1")
    return scores, labels == 1


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        `image` and `patient_id` as text, `prob_<Finding>` as float32, `label_<Finding>` as uint8;
        and where the file has them `split`, `age` (NaN unknown), `sex`, `view` ("" unknown) and
        `follow_up` (Int64); then its further columns as text, by which subgroups may be formed.

    Raises:
        UserError: not such a file, or the first fault in it with its line and column.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; give a predictions CSV of a run folder")
    titles = header_of(path)
    kinds = (PROBABILITY, LABEL)
    named = [t.removeprefix(kind) for kind in kinds for t in titles if t.startswith(kind)]
    findings: tuple[str, ...] = ()
    if named:
        findings = check_findings(list(dict.fromkeys(named)), what=f"{path}, line 1: findings")
    probabilities = [f"{PROBABILITY}{finding}" for finding in findings]
    labels = [f"{LABEL}{finding}" for finding in findings]
    required = (*REQUIRED, *probabilities, *labels)
    known = (*required, *OPTIONAL)
    further = _further_titles(titles, known)
    wanted: Titles = {name: (name,) for name in (*known, *further)}
    cells = read_cells(path, wanted, required=required)
    if not findings:
        raise UserError(f"{path}, line 1: no column {PROBABILITY}<Finding>, one of each finding")
    for name in REQUIRED:
        _refuse(cells, name, cells[name] == "", "is empty")
    _refuse_repeats(cells)
    columns = {name: cells[name] for name in (*REQUIRED, "split") if name in cells}
    for name in probabilities:
        fault = "is not a probability from 0 to 1"
        columns[name] = _numbers(cells, name, lambda n: n.between(0, 1), fault).astype(np.float32)
    for name in labels:
        fault = "is neither 0 nor 1"
        columns[name] = _numbers(cells, name, lambda n: n.isin((0, 1)), fault).astype(np.uint8)
    if "age" in cells:
        ages = _numbers(
            cells, "age", lambda n: (n >= 0) & (n < np.inf), "is no age in years", optional=True
        )
        columns["age"] = ages
    for name, allowed in TEXTS.items():
        if name in cells:
            fault = f"is none of {', '.join(filter(None, allowed))}, or nothing"
            _refuse(cells, name, ~cells[name].isin(allowed), fault)
            columns[name] = cells[name]
    if "follow_up" in cells:
        numbers = _numbers(
            cells,
            "follow_up",
            lambda n: (n >= 0) & (n % 1 == 0) & (n < 2**31),
            "is no whole number from 0",
            optional=True,
        )
        columns["follow_up"] = numbers.astype("Int64")
    return pd.DataFrame(columns | {name: cells[name] for name in further})


def _further_titles(titles: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The titles that are not `known`, without empty and repeated ones (as `folded`)."""
    counts = Counter(map(folded, titles))
    taken = set(map(folded, known))
    return tuple(t for t in titles if folded(t) not in taken | {""} and counts[folded(t)] == 1)


def _numbers(
    cells: pd.DataFrame,
    name: str,
    allowed: Callable[[pd.Series], pd.Series],
    fault: str,
    *,
    optional: bool = False,
) -> pd.Series:
    """A column of text as float64, checked by `allowed`; NaN if an `optional` cell is empty.

    Underscores and hexadecimals are no numbers here.
    """
    numbers = pd.to_numeric(cells[name], errors="coerce").astype(np.float64)
    bad = ~allowed(numbers)  # NaN is bad
    _refuse(cells, name, bad & (cells[name] != "") if optional else bad, fault)
    return numbers


def _refuse(cells: pd.DataFrame, name: str, bad: pd.Series, fault: str) -> None:
    """Raise an error that names the first bad cell of a column, if any is bad."""
    if bad.any():
        first, more = int(np.argmax(bad)), int(bad.sum()) - 1
        further = f" (and {more:,} more)" if more else ""
        raise fail_at(cells, first, f"{name} {shown(cells[name].iloc[first])} {fault}{further}")


def _refuse_repeats(cells: pd.DataFrame) -> None:
    twice = cells["image"].duplicated()
    if not twice.any():
        return
    second = int(np.argmax(twice))
    image = cells["image"].iloc[second]
    first = int(np.argmax(cells["image"] == image))
    raise fail_at(
        cells,
        second,
        f"image {shown(image)} is in line {cells['line'].iloc[first]} already "
        f"({int(twice.sum()):,} repeated in all); each image counts once",
    )


VALIDATION = "val"
SAME_SCORE = "all validation images have the same score"


def validation_arrays(
    predictions: pd.DataFrame, *, purpose: str
) -> tuple[tuple[str, ...], Floats, Bools]:
    """Arrays of a table of validation predictions: its `split` must be "val" in every row.

    What is fitted on them must be independent of the test images and of the training images.

    Args:
        predictions: one row per image with columns `split`, and for each finding
            `prob_<Finding>` in 0..1 and `label_<Finding>` of 0 or 1.
        purpose: what is fitted, for messages.

    Returns:
        The findings in the order of the columns, probabilities (N, findings), and whether the
        finding is there (N, findings).

    Raises:
        UserError: another split, a missing column, no rows, a label other than 0 and 1.
        RunFailedError: a probability that is not a number in 0..1.
    """
    findings = findings_of(predictions.columns, what=f"{purpose}: the predictions")
    if "split" not in predictions:
        raise UserError(f"{purpose}: the predictions have no column split")
    if predictions.empty:
        raise UserError(f"{purpose}: no validation images; choose a split that has some")
    others = sorted(set(predictions["split"].astype(str)) - {VALIDATION})
    if others:
        raise UserError(
            f"{purpose}: fitted on the split {VALIDATION!r} alone, and the predictions hold "
            f"{', '.join(map(repr, others))}"
        )
    scores, labels = _probabilities_and_labels(
        predictions, findings, what=purpose, outcome="nothing fitted"
    )
    return findings, scores, labels


def one_class(labels: Bools, what: str = "image") -> str | None:
    """The reason if labels (N,) are all of one class; None if both classes are there."""
    if not labels.any():
        return f"no {what} has the finding"
    return f"every {what} has the finding" if labels.all() else None
