"""Known data sets, and the interface that the module of each implements.

A module here holds one `SOURCE`: an object that recognises the data set in a folder, reads its
table, and knows the split that its files give. That is all a new data set needs: `known_sources`
finds the module. Faults are reported to a sink (`data.faults`), so that training, which stops at
the first, and `xray data check`, which lists them all, share one reader.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pandas as pd

from xray_lightning.data.faults import Faults
from xray_lightning.findings import FINDINGS

Given = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Listing:
    """What the table of a data set says.

    Attributes:
        table: one row an image: `file`, `line`, `image`, `patient_id`, `follow_up` (Int64), `age`
            (years, NaN unknown), `sex` ("M", "F", ""), `view` ("PA", "AP", ""), and the findings
            as uint8, 1 where present; then, as text, the further columns that were asked for and
            are there.
        findings: names of its columns of findings, in their order.
        given: images by split, if the table itself states one.
        rows: number of complete rows read, including repeated and faulty ones.
        named: images that any row names, readable or not.
        ages: the distinct texts in the column of ages.
    """

    table: pd.DataFrame
    findings: tuple[str, ...] = FINDINGS
    given: Given = field(default_factory=dict)
    rows: int = 0
    named: frozenset[str] = frozenset()
    ages: frozenset[str] = frozenset()

    @classmethod
    def empty(cls) -> "Listing":
        """The listing of a table that cannot be read."""
        columns = ("file", "line", "image", "patient_id", "follow_up", "age", "sex", "view")
        table = pd.DataFrame({key: [] for key in columns}, dtype=object)
        return cls(table.assign(**{name: pd.Series(dtype="uint8") for name in FINDINGS}))


@dataclass(frozen=True)
class Release:
    """The release of a data set, in words, and the evidence that it is this one."""

    name: str
    told_by: tuple[str, ...]
    original: bool = False  # its images are NIH's own, whose size is known
    one_size: bool = True  # all its images must have one size


class Source(ABC):
    """A data set: how to recognise it, and how to read it.

    Attributes:
        dialect: what the manifest calls the layout of its table.
        findings: the findings of its table; None if the caller chooses them.
        split: the name of the split that its files give; "" where they give none.
        looked_for: names of its tables, for the message that a folder has none; "" for no mention.
        rank: if a folder could be several data sets, the one of lowest rank is read.
        by_path: whether an image may be named by its path below the folder of the images.
    """

    dialect: str
    findings: tuple[str, ...] | None = FINDINGS
    split: str = ""
    looked_for: str = ""
    rank: int = 5
    by_path: bool = False

    @abstractmethod
    def tables(self, root: Path) -> Sequence[Path]:
        """The tables of this data set in a folder; empty if the folder holds another one."""

    @abstractmethod
    def read(
        self,
        root: Path,
        faults: Faults,
        *,
        findings: tuple[str, ...] | None = None,
        further: tuple[str, ...] = (),
    ) -> Listing:
        """Read the tables of a folder.

        Args:
            findings: findings to read, where the source has no fixed ones.
            further: titles of further columns to keep as text, if the table has them.
        """

    def given_split(self, root: Path, listing: Listing, faults: Faults) -> Given:
        """The images of each split that the files themselves state; empty where none do."""
        return listing.given

    def describe(self, root: Path, listing: Listing, faults: Faults) -> Release:
        """The release, from what `read` found."""
        return Release(self.dialect, tuple(path.name for path in self.tables(root)), one_size=False)

    def check(self, listing: Listing, faults: Faults) -> None:  # noqa: B027
        """Report what only `xray data check` looks for, such as a patient not as in the name."""


@cache
def known_sources() -> tuple[Source, ...]:
    """The `SOURCE` of each module of this package, by rank."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    sources = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    return tuple(sorted(sources, key=lambda source: source.rank))


def recognised(root: Path) -> Source | None:
    """The known data set that a folder holds, or None."""
    return next((source for source in known_sources() if source.tables(root)), None)
