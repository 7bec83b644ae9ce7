"""What was found of a data set, as figures, remarks and JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.data.check.folder import Folder
from xray_lightning.data.check.pictures import Picture
from xray_lightning.data.check.remarks import Remark
from xray_lightning.data.check.sides import SplitFound
from xray_lightning.data.check.source import Source
from xray_lightning.data.dialects import UNKNOWN_PATIENT

SCHEMA_VERSION = 1
_UNKNOWN = UNKNOWN_PATIENT + ": "  # how the manifest begins a patient of its own


@dataclass(frozen=True)
class Health:
    """What was found; `as_json` says what each figure is.

    Attributes:
        root, images: the folders of the tables and of the images.
        source: the kind of the set, and its tables.
        folder: what lies below `images`.
        found: images of the table that have a file.
        pictures: what each of these was found to be, by name; None without decoding.
        boxes: rows of the list of boxes.
        splits: those that are there.
        remarks: problems, then notes.
    """

    root: Path
    images: Path
    source: Source
    folder: Folder
    found: int
    pictures: Mapping[str, Picture] | None
    boxes: int
    splits: tuple[SplitFound, ...]
    remarks: tuple[Remark, ...]

    @property
    def problems(self) -> tuple[Remark, ...]:
        return tuple(one for one in self.remarks if one.problem)

    @property
    def notes(self) -> tuple[Remark, ...]:
        return tuple(one for one in self.remarks if not one.problem)

    @property
    def counts(self) -> dict[str, int | None]:
        """Of rows, images, patients, files and boxes, as in `as_json`."""
        decoded = None
        if self.pictures is not None:
            decoded = sum(not one.fault for one in self.pictures.values())
        table = self.source.tables.table
        patients = {name for name in table["patient_id"] if not name.startswith(_UNKNOWN)}
        return {
            "rows": self.source.tables.rows,
            "images": len(table),
            "patients": len(patients) or None,
            "image_files": sum(map(len, self.folder.files.values())),
            "found": self.found,
            "decoded": decoded,
            "boxes": self.boxes,
        }

    @property
    def modes(self) -> dict[str, int]:
        """Images by format and mode, the most common first."""
        return _counted(one.mode for one in (self.pictures or {}).values() if one.mode)

    @property
    def sizes(self) -> dict[str, int]:
        """Images by width and height, the most common first."""
        readable = (one for one in (self.pictures or {}).values() if one.mode)
        return _counted(f"{one.size[0]}x{one.size[1]}" for one in readable)

    @property
    def positives(self) -> dict[str, int]:
        """Images of each finding."""
        tables = self.source.tables
        return {name: int(tables.table[name].sum()) for name in tables.findings}

    def as_json(self) -> dict[str, object]:
        """The content of --json; keys stay, new ones may come.

        schema_version; root, images: the folders; dialect (nih, ai4m, csv), release, told_by;
        sound: whether there is no problem; counts: rows read, images in them, patients (null where
        none is known), image_files below the folder, found (images that have one), decoded (null
        without decoding), boxes; positives by finding; modes and sizes: images by each;
        splits: by name {sides: {side: {images, patients}}, overlaps: {"train-val": {patients,
        images}}}; problems and notes: each kind, text, count, advice, names (all of them: images
        mostly, lines or files; never patients) and details by name.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "root": str(self.root),
            "images": str(self.images),
            "dialect": self.source.dialect,
            "release": self.source.release,
            "told_by": list(self.source.told_by),
            "sound": not self.problems,
            "counts": self.counts,
            "positives": self.positives,
            "modes": self.modes,
            "sizes": self.sizes,
            "splits": {
                split.name: {
                    "sides": {
                        side: {"images": len(images), "patients": split.patients[side]}
                        for side, images in split.sides.items()
                    },
                    "overlaps": split.overlaps,
                }
                for split in self.splits
            },
            "problems": [_as_json(one) for one in self.problems],
            "notes": [_as_json(one) for one in self.notes],
        }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _as_json(one: Remark) -> dict[str, object]:
    return {
        "kind": one.kind,
        "text": one.text,
        "count": one.count,
        "advice": one.advice,
        "names": list(one.names),
        "details": {name: text for name, text in one.details.items() if text},
    }
