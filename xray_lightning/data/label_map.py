"""Map from the findings of other labels to those of a model (`--map`), a small YAML file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xray_lightning.data.csv_table import header_of, read_text, shown
from xray_lightning.data.sources import recognised
from xray_lightning.data.sources.custom_csv import GUESSES, Header, OwnTable
from xray_lightning.errors import UserError, one_line
from xray_lightning.findings import check_findings, folded

# The map of published labels that comes with the project, by its name.
NIH_EXPERT_LABELS = "nih_expert_labels"
_SHIPPED = Path(__file__).with_name(f"{NIH_EXPERT_LABELS}.yaml")

_KEYS = ("columns", "positive", "negative", "uncertain", "empty", "findings")
_OPTION = "{}: {} in the map"  # how messages name a key of the map and its value
_YES, _NO = ("yes",), ("no",)


@dataclass(frozen=True)
class LabelMap:
    """How findings of other labels correspond to those of a model.

    Attributes:
        name: the file, for messages.
        table: how the CSV is read: titles of columns, spellings of yes and no.
        findings: for each finding of the other labels, those of the model that make it up.
    """

    name: str
    table: OwnTable
    findings: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> "LabelMap":
        """Read a map from a YAML file; the one that comes with the project is given by its name.

        Its keys: `columns` (titles, as data.columns), `positive` and `negative` (spellings beside
        1, 0, true and false; by default yes and no), `uncertain` and `empty` (as data.uncertain
        and data.empty), and `findings` (for each of the other labels, those of the model).

        Raises:
            UserError: no such file, or one that is no valid map.
        """
        name = f"--map {path}"  # for the shipped map its name, not its installed path
        if not path.is_file() and str(path) == NIH_EXPERT_LABELS:
            path = _SHIPPED
        if not path.is_file():
            raise UserError(
                f"{name} is no file; give a YAML file, or {NIH_EXPERT_LABELS}, the map of "
                "the labels of Majkowska et al. 2020"
            )
        try:
            # Every scalar as text: YAML itself takes YES for a truth value.
            content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(f"{name} is no YAML: {one_line(error)[:300]}") from error
        if not isinstance(content, Mapping) or not isinstance(content.get("findings"), Mapping):
            raise UserError(
                f"{name}: no findings; say which of theirs means which of the model's, as in "
                "findings: {Nodule or mass: [Nodule, Mass]}"
            )
        if unknown := sorted(set(content) - set(_KEYS)):
            raise UserError(
                f"{name}: {shown(str(unknown[0]))} is none of its keys: {', '.join(_KEYS)}"
            )
        check_findings(list(content["findings"]), what=f"{name}: findings")
        return cls(
            name,
            _own_table(content, name),
            {theirs: _texts(ours, theirs, name) for theirs, ours in content["findings"].items()},
        )

    @classmethod
    def of_same_names(cls, root: Path, known: Sequence[str]) -> "LabelMap":
        """The map of each of the model's findings to itself, for those that a folder's table has.

        Raises:
            UserError: the folder has no table, or none of the findings.
        """
        source, table = recognised(root), OwnTable(option=_OPTION)
        if source is not None and source.findings is not None:
            there: Collection[str] = source.findings
        else:
            path = table.find(root)
            header = Header(path, header_of(path))
            there = header.findings(known)
            if not there and "labels" in header.titles({}, keys=("labels",)):
                there = known
        findings = {name: (name,) for name in known if name in there}
        if not findings:
            raise UserError(
                f"{root} has no finding by the names that the model has ({', '.join(known)}); say "
                "which of its findings mean which of these: --map MAP"
            )
        return cls("the data set", table, findings)

    def in_terms_of(self, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """`findings`, with those of the model spelled as in `known`.

        Raises:
            UserError: a finding that the model does not have.
        """
        names = {folded(name): name for name in known}
        found = {}
        for theirs, ours in self.findings.items():
            for one in ours:
                if folded(one) not in names:
                    raise UserError(
                        f"{self.name}: {theirs}: {shown(one)} is no finding of the model, which "
                        f"has {', '.join(known)}"
                    )
            found[theirs] = tuple(dict.fromkeys(names[folded(one)] for one in ours))
        return found


def _own_table(content: Mapping[str, Any], name: str) -> OwnTable:
    columns = content.get("columns", {})
    titled = isinstance(columns, Mapping) and all(isinstance(t, str) for t in columns.values())
    if not titled or not columns.keys() <= GUESSES.keys():
        raise UserError(f"{name}: columns has other keys than {', '.join(GUESSES)}, or no titles")
    try:
        return OwnTable(
            columns={key: title for key, title in columns.items() if title},
            uncertain=str(content.get("uncertain", "error")),
            empty=str(content.get("empty", "error")),
            positive=_texts(content.get("positive", _YES), "positive", name),
            negative=_texts(content.get("negative", _NO), "negative", name),
            option=_OPTION,
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _texts(given: Any, key: str, name: str) -> tuple[str, ...]:
    """A text or a list of texts, as a tuple."""
    texts = (given,) if isinstance(given, str) else given
    listed = isinstance(texts, list | tuple) and texts
    if not listed or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{name}: {key} must be a list, such as [Nodule, Mass]")
    return tuple(texts)
