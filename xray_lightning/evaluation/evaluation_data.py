"""Data that a checkpoint is scored on: that of its run unless chosen otherwise."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.data.csv_table import header_of
from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.expert_labels import labels_among
from xray_lightning.data.label_map import LabelMap
from xray_lightning.data.manifest import check_folder, holds_known_table
from xray_lightning.data.sources.custom_csv import Header, OwnTable
from xray_lightning.data.sources.phantom.dataset import PhantomSpec
from xray_lightning.data.splits import WHOLE, Split, whole_split
from xray_lightning.errors import UserError, XrayError
from xray_lightning.evaluation.ensemble import Member
from xray_lightning.evaluation.grouping import further_columns
from xray_lightning.findings import FINDINGS, folded
from xray_lightning.progress import Display
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.run_folder import Provenance

log = logging.getLogger(__name__)

# Keys of a run's `data` configuration that say which images it used, and how they are kept.
KEPT = (
    *("name", "root", "images", "findings", "table", "columns", "uncertain", "empty"),
    *("split", "split_seed", "val_fraction", "test_fraction", "fold", "folds"),
    *("missing", "cache", "cache_dir", "batch_size"),
)


@dataclass(frozen=True)
class DataChoice:
    """Changes to the data options of the first checkpoint's run; None keeps the run's option."""

    root: Path | None = None
    images: Path | None = None
    split: str | None = None
    missing: str | None = None
    cache_dir: Path | None = None
    batch_size: int | None = None


def data_for(
    member: Member, trained: Provenance, choice: DataChoice, *, progress: Display
) -> XrayDataModule:
    """The data to score on: the run's unless changed by `choice`, at the model's image size.

    Raises:
        UserError: no data is named, or its options are out of range.
    """
    chosen = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(choice).items()
        if value is not None
    }
    given, phantom = _kept(trained), trained.data.get("phantom")
    if choice.root is not None:  # other files: most of the run's options do not apply
        given, phantom = _elsewhere(choice.root, given), None
    elif not given:
        raise UserError(
            f"{member.path} does not lie in a run folder whose {RESULTS} names its data; "
            "give --data DIR"
        )
    spec = None
    if isinstance(phantom, Mapping):
        spec = PhantomSpec(**{k: v for k, v in phantom.items() if not k.startswith("_")})
    findings = {"findings": member.described["findings"]}
    return XrayDataModule(
        **({"cache_dir": "data/cache"} | given | chosen | findings),
        image_size=member.described["image_size"],
        normalize=member.described["normalize"],
        allow_patient_overlap=True,  # `seen_before` reports overlap with training
        phantom=spec,
        # Other data need not have the further columns of the run's own.
        further_columns=further_columns(trained.subgroups or ()) if choice.root is None else (),
        progress=progress,
    )


class MappedData(XrayDataModule):
    """A data set whose labels have other names than the model's findings.

    Args:
        own: how its table is read; None where the data set is a known one.
        options: as of `XrayDataModule`; without a split every image is on the test side.
    """

    def __init__(self, *, own: OwnTable | None, **options: Any) -> None:
        super().__init__(**({"split": WHOLE} | options))
        self._own = self.own = own

    def split(self) -> Split:
        return whole_split(self.manifest) if self.split_name == WHOLE else super().split()


def mapped_data_for(
    member: Member,
    trained: Provenance,
    choice: DataChoice,
    label_map: LabelMap,
    *,
    progress: Display,
) -> MappedData:
    """The data of another site, at the model's image size and with labels read by a map.

    Raises:
        UserError: no folder is named, or it does not exist.
    """
    if choice.root is None:
        raise UserError("--map is of other data: give their folder, --data DIR")
    check_folder(choice.root, key="--data")
    own = label_map.table if label_map.table.columns else None
    if own is None and not holds_known_table(choice.root):
        own = label_map.table
    given = _kept(trained)
    kept = {key: given[key] for key in ("split_seed", "val_fraction", "cache_dir") if key in given}
    chosen = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(choice).items()
        if value is not None
    }
    return MappedData(
        **({"cache_dir": "data/cache"} | kept | chosen),
        own=own,
        name=choice.root.absolute().name,
        findings=list(label_map.findings),
        image_size=member.described["image_size"],
        normalize=member.described["normalize"],
        allow_patient_overlap=True,
        progress=progress,
    )


def labels_not_named(data: MappedData) -> list[str]:
    """The findings in a data set's table that its map does not name."""
    if data.own is None:
        return [name for name in FINDINGS if name not in data.findings]
    path = data.own.find(data.root)
    header = Header(path, header_of(path), option=data.own.option)
    used = {folded(title) for title in header.titles(data.own.columns).values()}
    used |= {folded(name) for name in data.findings} | {""}
    others = [title for title in header.cells if folded(title) not in used]
    return list(labels_among(others, path, data.own))


def _elsewhere(root: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Data options for a folder other than the run's, from the run's options `given`."""
    kept = {key: given[key] for key in ("split_seed", "val_fraction") if key in given}
    kept["name"] = root.absolute().name
    if not holds_known_table(root):  # a custom table; read like the run's, if that was one
        kept |= {"columns": {}, "split": "patient_random"}
        kept |= {key: given[key] for key in ("columns", "uncertain", "empty") if key in given}
    return kept


def seen_before(
    member: Member, trained: Provenance, data: XrayDataModule, *, side: str
) -> str | None:
    """One line on training patients in this side; None if the split is its own and has none."""
    split, own = data.usable.split.sha256, member.described.get("split_sha256")
    if side == "train" and split == own:
        return "these are the images that it was trained on: the scores say nothing of new ones"
    if split == own:
        return _shared(data, data, side)
    hashes = f"split {data.split_name} {split[:7]} is not the checkpoint's {str(own)[:7]}"
    before = _data_before(trained, own)
    if before is None:
        return f"{hashes}: whether it was trained on some of these patients cannot be told"
    if before.root.resolve() != data.root.resolve():
        return f"{hashes}: {_elsewhere_shared(before, data, side)}"
    shared = _shared(before, data, side)
    return f"{hashes}: {shared or 'it was trained on none of these patients'}"


def _shared(before: XrayDataModule, data: XrayDataModule, side: str) -> str | None:
    trained = set(before.table("train")["patient_id"])
    scored = set(data.table(side)["patient_id"])
    if not (both := trained & scored):
        return None
    return (
        f"{len(both)} of the {len(scored)} patients scored were trained on, so that the scores "
        "are too good"
    )


def _elsewhere_shared(before: XrayDataModule, data: XrayDataModule, side: str) -> str:
    """Whether images of another folder are named as images that were trained on."""
    names = [
        {str(name).rpartition("/")[2] for name in one.table(of)["image"]}
        for one, of in ((before, "train"), (data, side))
    ]
    if not (both := len(names[0] & names[1])):
        return f"it was trained on other data, {before.root}"
    return (
        f"{both} of the {len(names[1])} images scored are named as images of {before.root} that "
        "it was trained on: if they are the same, the scores are too good"
    )


def _data_before(trained: Provenance, split_sha256: str | None) -> XrayDataModule | None:
    """The data that a checkpoint was trained on, if it is still there and unchanged."""
    given = _kept(trained)
    if not given:
        return None
    try:
        data = XrayDataModule(**given, allow_patient_overlap=True)
        return data if data.usable.split.sha256 == split_sha256 else None
    except (XrayError, TypeError) as error:
        log.debug("the training data cannot be read: %s", error)
        return None


def _kept(trained: Provenance) -> dict[str, Any]:
    """The run's data options that `KEPT` names; empty if its name or root is not recorded."""
    given = {key: value for key, value in trained.data.items() if key in KEPT}
    return given if {"name", "root"} <= given.keys() else {}
