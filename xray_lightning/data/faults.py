"""Faults of data sets: their kinds, with what to do about each, and the two sinks for them.

The reader of a table reports each fault to a sink, and goes on. `xray data check` reads with
`Faults`, which keeps them all as remarks; training with `FirstFault`, which raises the first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xray_lightning.errors import UserError

FIX = "correct the table"
# For each kind, what is counted and the advice, in the order in which remarks are shown.
Kinds = dict[str, tuple[str, str]]
# Faults that training refuses, or that would make its result wrong.
PROBLEMS: Kinds = {
    # The tables.
    "table_unreadable": ("files that cannot be read as a table", "see what is said there"),
    "several_tables": (
        "tables named Data_Entry*.csv beside the one that was checked",
        "keep the one to use and move the others",
    ),
    "short_row": ("rows that lack cells", f"{FIX}; a line may have been cut"),
    "row_without_image": ("rows without the name of an image", FIX),
    "row_without_patient": (
        "rows without a patient",
        "give each its patient, so that a split can keep them apart",
    ),
    "unknown_label": ("rows with an unknown label", "correct the spelling, or leave out"),
    "contradictory_label": (
        "rows with 'No Finding' together with a finding",
        "find out which of them is right",
    ),
    "no_label": ("rows without a label", "write No Finding where that is meant"),
    "label_not_0_or_1": ("rows with a label that is neither 0 nor 1", FIX),
    "age_unreadable": (
        "rows with an age that is none",
        "write years such as 58, or 058Y; leave unknown ones empty",
    ),
    "follow_up_unreadable": ("rows with a follow-up number that is none", FIX),
    "conflicting_row": (
        "rows that contradict an earlier row of the same image",
        "keep the right one",
    ),
    "patient_not_as_named": (
        "rows whose patient is not the one in the file's name",
        "find out which is right: a wrong patient may end up on two sides of a split",
    ),
    # The files.
    "missing_file": (
        "rows without an image file",
        "add the files, give their folder with --images, or train with data.missing=skip",
    ),
    "two_files": (
        "images that several files have the name of",
        "remove all but one, or give the folder to use with --images",
    ),
    "file_of_two_rows": ("rows that name one file in several ways", "keep one row"),
    "folder_unreadable": ("folders that cannot be looked into", "change their permissions"),
    # The images.
    "truncated_image": ("image files that are cut off", "fetch them again"),
    "unreadable_image": ("image files that cannot be decoded", "fetch them again"),
    "blank_image": ("images of a single shade", "leave their rows out"),
    "other_size": (
        "images whose size is not that of the others",
        "fetch them again: the set has one size",
    ),
    "duplicate_conflict": (
        "images that show the same as another, and contradict it",
        "keep the right one; across the sides of a split it is a leak",
    ),
    # The splits.
    "image_on_two_sides": ("images on two sides of a split", "keep each on one side"),
    "patient_on_two_sides": (
        "patients on two sides of a split",
        "keep each on one side, or run with data.allow_patient_overlap=true, which marks the "
        "result",
    ),
    "unknown_side": ("rows of a split on no known side", "write train, val or test"),
    "split_without_row": ("images of a split that no row of the table names", FIX),
    "side_empty": ("sides of a split without an image", "choose another split"),
    # The boxes.
    "box_unreadable": ("boxes whose place is no four numbers", "correct the list"),
    "box_outside": (
        "boxes that reach out of the image's 1024 x 1024 grid, or are empty",
        "correct the list",
    ),
    "box_of_unknown_finding": ("boxes of an unknown finding", "correct the list"),
    "box_without_label": (
        "boxes of a finding that the image's row lacks",
        "find out which of them is right",
    ),
}
# Faults that readers tolerate; the text says how.
NOTES: Kinds = {
    # The tables.
    "duplicate_row": ("rows that repeat another, which are read once", ""),
    "age_over_100": ("rows with an age over 100 years, which is taken as unknown", ""),
    "sex_unknown": ("rows with a sex other than M or F, which is taken as unknown", ""),
    "view_unknown": ("rows with a view other than PA or AP, which is taken as unknown", ""),
    "column_missing": ("columns that the table lacks, whose values are taken as unknown", ""),
    "patient_unknown": (
        "rows of unknown patients, each taken as one of its own",
        "nobody can check whether a split keeps these patients apart",
    ),
    "patient_of_two_sexes": (
        "images of patients who are both M and F",
        "two patients may have one id",
    ),
    "changed_in_reading": ("values that reading drops or changes", ""),
    "expert_labels": (
        "images with labels of experts beside the data",
        "score a model on them, too: xray evaluate CKPT --labels FILE --map nih_expert_labels",
    ),
    # The files.
    "unlisted_file": ("image files that no row names, which were not looked into", ""),
    "odd_entry": ("names of images that no file stands behind", ""),
    "folder_again": (
        "links to folders that are searched already",
        "each is searched once, so loops end",
    ),
    # The images.
    "duplicate_image": ("images that show the same as another of the same patient", ""),
    "sizes_differ": (
        "images whose size is not the most common one",
        "all are made square and of one size",
    ),
    "not_original_size": ("images that are not NIH's 1024 x 1024: a resized copy", ""),
    "odd_mode": ("images that are not 8-bit gray, which decoding makes of them", ""),
    # The splits.
    "list_missing": ("lists that a split needs and that are not there", ""),
    "listed_without_row": ("images of the lists that no row names, which are ignored", ""),
    "on_no_side": ("rows on no side of a split, which it does not use", ""),
    # The boxes.
    "box_without_row": ("boxes of images that no row names, which are ignored", ""),
    "box_repeated": ("boxes that repeat another", ""),
}
KINDS = PROBLEMS | NOTES


@dataclass(frozen=True)
class Remark:
    """Faults of one kind, told together; the attributes are keys in `xray data check --json`.

    Attributes:
        kind: a key of `KINDS`.
        text: what is counted, such as "rows without a label".
        count: how many there are; by default the number of names.
        advice: what to do about it.
        names: what has the fault, sorted: mostly images; never a patient or a patient's values.
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
        return self.kind in PROBLEMS


@dataclass
class Faults:
    """Sink that keeps every fault of a data set, for `xray data check`.

    For a kind that training does not accept, a reader calls `refuse` with its first fault, and
    then `tell` with all of them. For a kind that readers tolerate, it calls `tell` alone.

    Attributes:
        remarks: one for each call of `tell` that named something, in order.
        dropped: rows dropped and values changed in reading, by reason.
    """

    remarks: list[Remark] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def refuse(self, error: UserError) -> None:
        """Ignore the error: the reader goes on, and reports the fault by `tell`."""

    def tell(
        self,
        kind: str,
        names: Iterable[str] | Mapping[str, str],
        *,
        dropped: Mapping[str, int] | None = None,
        count: int | None = None,
        text: str = "",
    ) -> None:
        """Add a remark on what has a fault; none if the count is 0.

        Args:
            kind: a key of `KINDS`; "" to add only to `dropped`.
            names: mostly images; a mapping gives their details, too.
            dropped: rows dropped and values changed in reading, by reason.
            count, text: of the `Remark`; by default the number of names, and the text of the kind.
        """
        for reason, rows in (dropped or {}).items():
            if rows:
                self.dropped[reason] = self.dropped.get(reason, 0) + rows
        told = tuple(sorted(names))
        number = len(told) if count is None else count
        if kind and number:
            given = names if isinstance(names, Mapping) else {}
            details = {name: detail for name, detail in given.items() if detail}
            usual, advice = KINDS[kind]
            self.remarks.append(Remark(kind, text or usual, number, advice, told, details))

    def count(self, kind: str) -> int:
        """The sum of the counts of all remarks of a kind."""
        return sum(one.count for one in self.remarks if one.kind == kind)


class FirstFault(Faults):
    """Sink for training, which raises the first fault that is refused."""

    def refuse(self, error: UserError) -> None:
        raise error


class CellFault(ValueError):
    """A cell that cannot be read as what it should be.

    Attributes:
        kind: a key of `KINDS`.
        detail: what the check shows of it; never a person's values.
        quoted: whether an error made of it quotes the column and the cell before the message.
    """

    def __init__(self, kind: str, message: str, *, detail: str = "", quoted: bool = True) -> None:
        super().__init__(message)
        self.kind, self.detail, self.quoted = kind, detail, quoted
