"""Faults of data sets: their kinds, with what to do about each, and the two sinks for them.

Whoever reads a table tells each fault to a sink, and goes on. `xray data check` reads with
`Faults`, which keeps them all as remarks; training with `FirstFault`, which raises the first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xray_lightning.errors import UserError


@dataclass(frozen=True)
class Kind:
    """A kind of remark.

    Attributes:
        problem: whether training refuses it, or would give a wrong result of it. What is left is
            a note: reading copes with it, and says how.
        text: what there are so many of.
        advice: what to do about it.
    """

    problem: bool
    text: str
    advice: str


def _problem(text: str, advice: str) -> Kind:
    return Kind(True, text, advice)


def _note(text: str, advice: str = "") -> Kind:
    return Kind(False, text, advice)


FIX = "correct the table"
# In the order in which they are told.
KINDS: dict[str, Kind] = {
    # The tables.
    "table_unreadable": _problem("files that cannot be read as a table", "see what is said there"),
    "several_tables": _problem(
        "tables named Data_Entry*.csv beside the one that was checked",
        "keep the one to use and move the others",
    ),
    "short_row": _problem("rows that lack cells", f"{FIX}; a line may have been cut"),
    "row_without_image": _problem("rows without the name of an image", FIX),
    "row_without_patient": _problem(
        "rows without a patient", "give each its patient, so that a split can keep them apart"
    ),
    "unknown_label": _problem("rows with an unknown label", "correct the spelling, or leave out"),
    "contradictory_label": _problem(
        "rows with 'No Finding' together with a finding", "find out which of them is right"
    ),
    "no_label": _problem("rows without a label", "write No Finding where that is meant"),
    "label_not_0_or_1": _problem("rows with a label that is neither 0 nor 1", FIX),
    "age_unreadable": _problem(
        "rows with an age that is none", "write years such as 58, or 058Y; leave unknown ones empty"
    ),
    "follow_up_unreadable": _problem("rows with a follow-up number that is none", FIX),
    "conflicting_row": _problem(
        "rows that contradict an earlier row of the same image", "keep the right one"
    ),
    "patient_not_as_named": _problem(
        "rows whose patient is not the one in the file's name",
        "find out which is right: a wrong patient may end up on two sides of a split",
    ),
    "duplicate_row": _note("rows that repeat another, which are read once"),
    "age_over_100": _note("rows with an age over 100 years, which is taken as unknown"),
    "sex_unknown": _note("rows with a sex other than M or F, which is taken as unknown"),
    "view_unknown": _note("rows with a view other than PA or AP, which is taken as unknown"),
    "column_missing": _note("columns that the table lacks, whose values are taken as unknown"),
    "patient_unknown": _note(
        "rows of unknown patients, each taken as one of its own",
        "nobody can check whether a split keeps these patients apart",
    ),
    "patient_of_two_sexes": _note(
        "images of patients who are both M and F", "two patients may have one id"
    ),
    "changed_in_reading": _note("values that reading drops or changes"),
    # The files.
    "missing_file": _problem(
        "rows without an image file",
        "add the files, give their folder with --images, or train with data.missing=skip",
    ),
    "two_files": _problem(
        "images that several files have the name of",
        "remove all but one, or give the folder to use with --images",
    ),
    "file_of_two_rows": _problem("rows that name one file in several ways", "keep one row"),
    "folder_unreadable": _problem("folders that cannot be looked into", "change their permissions"),
    "unlisted_file": _note("image files that no row names, which were not looked into"),
    "odd_entry": _note("names of images that no file stands behind"),
    "folder_again": _note(
        "links to folders that are searched already", "each is searched once, so loops end"
    ),
    # The images.
    "truncated_image": _problem("image files that are cut off", "fetch them again"),
    "unreadable_image": _problem("image files that cannot be decoded", "fetch them again"),
    "blank_image": _problem("images of a single shade", "leave their rows out"),
    "other_size": _problem(
        "images whose size is not that of the others", "fetch them again: the set has one size"
    ),
    "duplicate_conflict": _problem(
        "images that show the same as another, and contradict it",
        "keep the right one; across the sides of a split it is a leak",
    ),
    "duplicate_image": _note("images that show the same as another of the same patient"),
    "sizes_differ": _note(
        "images whose size is not the most common one", "all are made square and of one size"
    ),
    "not_original_size": _note("images that are not NIH's 1024 x 1024: a resized copy"),
    "odd_mode": _note("images that are not 8-bit gray, which decoding makes of them"),
    # The splits.
    "image_on_two_sides": _problem("images on two sides of a split", "keep each on one side"),
    "patient_on_two_sides": _problem(
        "patients on two sides of a split",
        "keep each on one side, or run with data.allow_patient_overlap=true, which marks the "
        "result",
    ),
    "unknown_side": _problem("rows of a split on no known side", "write train, val or test"),
    "split_without_row": _problem("images of a split that no row of the table names", FIX),
    "side_empty": _problem("sides of a split without an image", "choose another split"),
    "list_missing": _note("lists that a split needs and that are not there"),
    "listed_without_row": _note("images of the lists that no row names, which are ignored"),
    "on_no_side": _note("rows on no side of a split, which it does not use"),
    # The boxes.
    "box_unreadable": _problem("boxes whose place is no four numbers", "correct the list"),
    "box_outside": _problem(
        "boxes that reach out of the image's 1024 x 1024 grid, or are empty", "correct the list"
    ),
    "box_of_unknown_finding": _problem("boxes of an unknown finding", "correct the list"),
    "box_without_label": _problem(
        "boxes of a finding that the image's row lacks", "find out which of them is right"
    ),
    "box_without_row": _note("boxes of images that no row names, which are ignored"),
    "box_repeated": _note("boxes that repeat another"),
}


@dataclass(frozen=True)
class Remark:
    """Something to say of a data set, with the keys that `xray data check --json` has for it.

    Attributes:
        kind: a key of `KINDS`.
        text: what there are so many of.
        count: of these; that of the names unless told otherwise.
        advice: what to do about it.
        names: what it is said of, sorted: images mostly; never a patient or a patient's values.
        details: more about some of these names.
    """

    kind: str
    text: str
    count: int
    advice: str
    names: tuple[str, ...]
    details: Mapping[str, str]

    @property
    def problem(self) -> bool:
        return KINDS[self.kind].problem


@dataclass
class Faults:
    """Sink of the faults of a data set: keeps every one, as `xray data check` tells them.

    A reader calls `refuse` with the first fault of its kind that training does not accept, and
    then `tell` with all that have it. What reading copes with, it only tells of.

    Attributes:
        remarks: what was told, in that order.
        dropped: rows dropped and values changed in reading, by reason.
    """

    remarks: list[Remark] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def refuse(self, error: UserError) -> None:
        """Leave the error to `tell`, and let the reader go on."""

    def tell(
        self,
        kind: str,
        names: Iterable[str] | Mapping[str, str],
        *,
        dropped: Mapping[str, int] | None = None,
        count: int | None = None,
        text: str = "",
    ) -> None:
        """Take what has a fault; nothing where there are no names.

        Args:
            kind: a key of `KINDS`; "" for what is only counted.
            names: images mostly, with details where they are a mapping.
            dropped: rows dropped and values changed in reading, by reason.
            count, text: as of `Remark`, where they are other than usual.
        """
        for reason, rows in (dropped or {}).items():
            if rows:
                self.dropped[reason] = self.dropped.get(reason, 0) + rows
        told = tuple(sorted(names))
        number = len(told) if count is None else count
        if kind and number:
            given = names if isinstance(names, Mapping) else {}
            details = {name: detail for name, detail in given.items() if detail}
            usual = KINDS[kind]
            remark = Remark(kind, text or usual.text, number, usual.advice, told, details)
            self.remarks.append(remark)

    def count(self, kind: str) -> int:
        """How often a kind was told of."""
        return sum(one.count for one in self.remarks if one.kind == kind)


class FirstFault(Faults):
    """Sink of training: raises the first fault that it does not accept."""

    def refuse(self, error: UserError) -> None:
        raise error


class CellFault(ValueError):
    """A cell that cannot be read as what it should be.

    Attributes:
        kind: a key of `KINDS`.
        detail: what the check shows of it; never a person's values.
        quoted: whether the message begins with the column and the cell.
    """

    def __init__(self, kind: str, message: str, *, detail: str = "", quoted: bool = True) -> None:
        super().__init__(message)
        self.kind, self.detail, self.quoted = kind, detail, quoted
