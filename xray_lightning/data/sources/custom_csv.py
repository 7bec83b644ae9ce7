"""Reader of a custom CSV: which of its columns mean what, and what its cells say."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.csv_table import (
    fail_at,
    header_of,
    one_row_an_image,
    read_cells,
    readable,
    shown,
)
from xray_lightning.data.faults import CellFault, Faults, FirstFault
from xray_lightning.data.sources import Listing, Release, Source
from xray_lightning.data.sources.nih import (
    PERSON_CELLS,
    check_sexes,
    name_columns,
    person_columns,
)
from xray_lightning.errors import UserError
from xray_lightning.findings import ALIASES, FINDINGS, folded, names_in

log = logging.getLogger(__name__)

# The titles that a column is known by where data.columns does not name it; compared by their
# letters and digits alone, so that "Patient ID" is "patient_id".
GUESSES: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "image index", "image name", "image path", "image file", "path", "file"),
        *("file name", "file path"),
    ),
    "patient": ("patient", "patient id", "subject", "subject id"),
    "labels": ("labels", "finding labels", "findings"),
    "follow_up": ("follow-up", "follow-up #", "follow-up number"),
    "age": ("age", "patient age"),
    "sex": ("sex", "gender", "patient sex", "patient gender"),
    "view": ("view", "view position", "ap/pa"),
    "split": ("split",),
}
REQUIRED = ("image", "patient")
SEXES = {"male": "M", "female": "F"}

MOST_NAMED = 20  # ignored labels that are counted by name; others are counted together

NEGATIVE, POSITIVE, UNCERTAIN, EMPTY = range(4)
_VALUES = {
    **dict.fromkeys(("0", "0.0", "false"), NEGATIVE),
    **dict.fromkeys(("1", "1.0", "true"), POSITIVE),
    **dict.fromkeys(("-1", "-1.0"), UNCERTAIN),
    "": EMPTY,
}
_TAKEN_AS = {"negative": NEGATIVE, "positive": POSITIVE}


# A reading error quotes the faulty cell; the check removes the quote if it is a patient's data.
_QUOTED = re.compile(r"(: (?:age|follow_up|patient_id)) (['\"]).*\2: ")
_UNQUOTED = r"\1: "


@dataclass(frozen=True)
class OwnTable(Source):
    """How to read a custom CSV.

    A finding is a column of 0 and 1, titled by its name; or there is one column of labels, such as
    "Effusion|Mass" or "No Finding". Without a list of findings, those of NIH's 14 that the table
    has are read.

    Args:
        file: the CSV, as a path or by its name in the data set's folder; None for the only one
            there.
        columns: the title of each column, by the keys of `GUESSES`; None to guess it.
        uncertain: what -1 of a finding means, as in CheXpert: `negative`, `positive`, or `error`
            to refuse it.
        empty: what an empty cell of a finding means: `negative`, or `error` to refuse it.
        positive, negative: further texts that mean 1, or 0, in a finding's cells.
        option: format in which messages name an option, filled with its key and value.

    Raises:
        UserError: an option out of range.
    """

    dialect = "csv"
    split = "column"
    findings = None
    by_path = True

    file: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    uncertain: str = "error"
    empty: str = "error"
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    option: str = "data.{}={}"

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Mapping) or not self.columns.keys() <= GUESSES.keys():
            keys = ", ".join(GUESSES)
            raise UserError(f"data.columns={shown(str(self.columns))} has other keys than {keys}")
        for key, title in self.columns.items():
            if title is not None and not (isinstance(title, str) and title.strip()):
                raise UserError(
                    f"data.columns.{key}={shown(str(title))} must be the title of a column"
                )
        for key, value, known in (
            ("uncertain", self.uncertain, ("error", "negative", "positive")),
            ("empty", self.empty, ("error", "negative")),
        ):
            if value not in known:
                raise UserError(
                    f"data.{key}={shown(str(value))} is unknown; choose {', '.join(known)}"
                )

    def tables(self, root: Path) -> Sequence[Path]:
        return [self.find(root)]

    def find(self, root: Path) -> Path:
        """The table's file.

        Raises:
            UserError: it is not there, or there are several to choose from.
        """
        if self.file:
            for path in (Path(self.file), root / self.file):
                if path.is_file():
                    return path
            raise UserError(
                f"data.table={shown(str(self.file))} is no file, neither as a path nor in {root}; "
                "give the CSV"
            )
        tables = sorted(
            path for path in root.iterdir() if path.suffix.lower() == ".csv" and path.is_file()
        )
        if len(tables) != 1:
            first = ", ".join(path.name for path in tables[:5]) + ", ..." * (len(tables) > 5)
            found = f"{len(tables)} CSVs ({first})" if tables else "no CSV"
            raise UserError(f"{root} holds {found}; name the table of the images: data.table=FILE")
        return tables[0]

    def read(
        self,
        root: Path,
        faults: Faults,
        *,
        findings: tuple[str, ...] | None = None,
        further: tuple[str, ...] = (),
    ) -> Listing:
        """Read the table up to its first fault; by default the findings of NIH's 14 it has."""
        path, first = self.find(root), FirstFault()
        try:
            listing = self._read(path, findings, first, further)
        except UserError as error:
            faults.refuse(error)
            told = f"{_QUOTED.sub(_UNQUOTED, str(error))} (read to here only)"
            faults.tell("table_unreadable", {path.name: told})
            return Listing.empty()
        for reason, count in first.dropped.items():
            faults.tell(
                "changed_in_reading", [reason], count=count, text=reason, dropped={reason: count}
            )
        return listing

    def describe(self, root: Path, listing: Listing, faults: Faults) -> Release:
        told_by = f"{self.find(root).name} is neither NIH's table nor AI for Medicine's"
        return Release("a table of one's own", (told_by,), one_size=False)

    def check(self, listing: Listing, faults: Faults) -> None:
        check_sexes(listing.table, faults)

    def _read(
        self,
        path: Path,
        findings: tuple[str, ...] | None,
        faults: FirstFault,
        further: tuple[str, ...],
    ) -> Listing:
        header = Header(path, header_of(path), option=self.option)
        titles = header.titles(self.columns)
        by_column = header.findings(findings or FINDINGS)
        if "labels" in titles and (self.columns.get("labels") or not by_column):
            by_column = {}
        else:
            titles.pop("labels", None)
            header.refuse_lacking(findings, by_column)
            used = (*titles.values(), *by_column.values(), *further)
            if unused := [title for title in header.cells if title and title not in used]:
                log.info("columns that are not used: %s", shown(", ".join(unused), limit=400))
        wanted = {"patient_id" if key == "patient" else key: (t,) for key, t in titles.items()}
        wanted |= {name: (title,) for name, title in by_column.items()}
        required = tuple(wanted)
        cells = read_cells(path, wanted | {name: (name,) for name in further}, required=required)
        if by_column:
            chosen = tuple(by_column)
            labels = self._one_hot(cells, chosen, faults)
        else:
            chosen, labels = self._labels(cells, findings, faults)
        return _listing(cells, chosen, labels, faults, further)

    def _one_hot(
        self, cells: pd.DataFrame, findings: Sequence[str], faults: FirstFault
    ) -> npt.NDArray[np.uint8]:
        """Labels of columns of 0 and 1, shape (N, findings)."""
        _, columns = readable(cells, dict.fromkeys(findings, self.value), faults)
        values = np.array([columns[name] for name in findings]).T
        for code, text, taken_as in (
            (UNCERTAIN, "label -1", self.uncertain),
            (EMPTY, "empty label", self.empty),
        ):
            hit = values == code
            _changed(faults, f"{text} (taken as {taken_as})", int(np.count_nonzero(hit)))
            values[hit] = _TAKEN_AS.get(taken_as, NEGATIVE)
        return values.astype(np.uint8)

    def value(self, text: str) -> int:
        """What a cell of a finding says: `NEGATIVE`, `POSITIVE`, `UNCERTAIN` or `EMPTY`.

        Raises:
            CellFault: another text, or a value that the options refuse.
        """
        value = self._spelled.get(text.lower())
        if value is None:
            also = "".join(f", {one}" for one in (*self.positive, *self.negative))
            keys = " and ".join(self._said(key, "...") for key in ("uncertain", "empty"))
            raise _label_fault(f"a finding is 0 or 1{also} (or -1 or empty, see {keys})")
        if value == UNCERTAIN and self.uncertain == "error":
            option = self._said("uncertain", "negative")
            raise _label_fault(f"uncertain; say what it means: {option} or positive")
        if value == EMPTY and self.empty == "error":
            option = self._said("empty", "negative")
            raise _label_fault(f"empty; if it means that the finding is not there: {option}")
        return value

    @cached_property
    def _spelled(self) -> dict[str, int]:
        further = {text.lower(): NEGATIVE for text in self.negative}
        return _VALUES | further | {text.lower(): POSITIVE for text in self.positive}

    def _said(self, key: str, value: str) -> str:
        return self.option.format(key, value)

    def _labels(
        self, cells: pd.DataFrame, findings: tuple[str, ...] | None, faults: FirstFault
    ) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
        """Findings, and labels of a column such as "Effusion|Mass", shape (N, findings)."""
        known = {folded(alias): name for alias, name in ALIASES.items()}
        known |= {folded(name): name for name in findings or FINDINGS}

        def named(text: str) -> frozenset[str]:
            if not text and self.empty == "negative":
                return frozenset()
            try:
                return frozenset(known.get(folded(name), name) for name in names_in(text))
            except ValueError as error:
                raise _label_fault(str(error)) from error

        if self.empty == "negative":
            empty = int(np.count_nonzero(cells["labels"] == ""))
            _changed(faults, "empty label (taken as negative)", empty)
        rows = readable(cells, {"labels": named}, faults)[1]["labels"]
        images = Counter(name for row in rows for name in row)
        chosen = findings or tuple(name for name in FINDINGS if name in images)
        others = sorted((-images[name], name) for name in images.keys() - set(chosen))
        if others and findings is None:
            unknown = {name for _, name in others}
            first = next(place for place, row in enumerate(rows) if not unknown.isdisjoint(row))
            name = min(unknown & rows[first])
            fault = f"unknown label {shown(name)}; name those to learn, as in data.findings="
            raise fail_at(cells, first, f"{fault}[{FINDINGS[0]},{FINDINGS[1]}]")
        for count, name in others[:MOST_NAMED]:
            _changed(faults, f"label {shown(name)} (not among data.findings)", -count)
        rest = -sum(count for count, _ in others[MOST_NAMED:])
        _changed(faults, "other labels (not among data.findings)", rest)
        if not chosen:
            raise UserError(f"{cells['file'].iloc[0]}: no image has any of {', '.join(FINDINGS)}")
        return chosen, np.array([[name in row for name in chosen] for row in rows], dtype=np.uint8)


def _changed(faults: FirstFault, reason: str, count: int) -> None:
    faults.tell("changed_in_reading", [reason], dropped={reason: count})


_label_fault = partial(CellFault, "label_not_0_or_1")


@dataclass(frozen=True)
class Header:
    """The header of a custom CSV; `option` is as in `OwnTable`."""

    path: Path
    cells: list[str]
    option: str = "data.{}={}"

    def titles(
        self, chosen: Mapping[str, str | None], *, keys: Collection[str] = tuple(GUESSES)
    ) -> dict[str, str]:
        """The titles of the columns that the CSV has, by key of `GUESSES`, among these `keys`."""
        titles = {}
        for key, guesses in GUESSES.items():
            if key not in keys:
                continue
            title = chosen.get(key)
            wanted = {folded(one) for one in ((title,) if title else guesses)}
            found = [cell for cell in self.cells if folded(cell) in wanted]
            if title and title in self.cells:
                found = [title]
            if len(found) > 1:
                raise UserError(
                    f"{self.path}, line 1: {' and '.join(map(shown, found))} may each be the "
                    f"column {key}; choose one: {self.option.format(f'columns.{key}', 'TITLE')}"
                )
            if found:
                titles[key] = found[0]
            elif title or key in REQUIRED:
                raise UserError(
                    f"{self.path}, line 1: no column {shown(title or guesses[0])}; {self._found}; "
                    f"name the one to use: {self.option.format(f'columns.{key}', 'TITLE')}"
                )
        return titles

    def findings(self, names: Sequence[str]) -> dict[str, str]:
        """The title of each finding that has a column."""
        folds = {folded(title): title for title in reversed(self.cells)}
        titles = {}
        for name in names:
            spelled = [name, *(alias for alias, same in ALIASES.items() if same == name)]
            found = {folds[folded(one)] for one in spelled if folded(one) in folds}
            if len(found) > 1:
                both = " and ".join(map(shown, sorted(found)))
                raise UserError(f"{self.path}, line 1: {both} are both {name}; keep one")
            if found:
                titles[name] = found.pop()
        return titles

    def refuse_lacking(
        self, findings: tuple[str, ...] | None, by_column: Mapping[str, str]
    ) -> None:
        """Refuse a table that lacks a requested finding's column, or has no finding's at all."""
        lacking = [name for name in findings or () if name not in by_column]
        if lacking:
            asked = "data.findings" if self.option.startswith("data.") else "the map's findings"
            raise UserError(
                f"{self.path}, line 1: no column of {asked} {', '.join(lacking)}; {self._found}"
            )
        if not by_column:
            raise UserError(
                f"{self.path}, line 1: no column of a finding; {self._found}; name those to learn: "
                "data.findings=[A,B], or a column such as 'A|B': data.columns.labels=TITLE"
            )

    @property
    def _found(self) -> str:
        return f"found {shown(', '.join(self.cells), limit=400)}"


def _listing(
    cells: pd.DataFrame,
    findings: tuple[str, ...],
    labels: npt.NDArray[np.uint8],
    faults: FirstFault,
    further: tuple[str, ...],
) -> Listing:
    cells = cells.assign(image=readable(cells, {"image": _image_name}, faults)[1]["image"])
    lacking = [key for key in ("follow_up", "age", "sex", "view") if key not in cells]
    cells = cells.assign(**dict.fromkeys(lacking, ""))
    cells["sex"] = [SEXES.get(text.lower(), text) for text in cells["sex"].tolist()]
    cells, values = readable(cells, PERSON_CELLS, faults)
    table = pd.DataFrame(
        {
            **name_columns(cells, values, faults),
            **person_columns(cells, values, faults),
            **{name: labels[:, column] for column, name in enumerate(findings)},
            **{name: cells[name] for name in further if name in cells},
        }
    )
    if "split" in cells:
        table["split"] = cells["split"]
    table = one_row_an_image(table, faults)
    given: dict[str, tuple[str, ...]] = {}
    if "split" in cells:
        groups = table.groupby("split", sort=True)["image"]
        given = {str(text): tuple(images) for text, images in groups if text}
    return Listing(table, findings, given, rows=len(cells))


def _image_name(text: str) -> str:
    """A file's name or its path below the image folder, without empty parts and "."."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts:
        raise CellFault(
            "row_without_image",
            "an image is named by its path below data.images (or data.root), without '..'",
        )
    return "/".join(parts)
