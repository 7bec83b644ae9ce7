"""Export of a split's images into folders by side: each file is copied or linked atomically."""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xray_lightning.data.manifest import Manifest
from xray_lightning.data.sources.ai4m import AI4M_TABLES
from xray_lightning.data.splits import SIDES, Split
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import (
    DISK_FULL,
    Free,
    check_room,
    check_writable,
    free_bytes,
    noted,
    told_if_unwritable,
    working_in,
    write_atomically,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.progress import Display, unseen

MODES = ("copy", "hardlink", "symlink")
_NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


class Placing:
    """Copies or links files; each is made as `part`, on its target's file system, then renamed."""

    def __init__(self, mode: str, part: Path) -> None:
        self.new = 0  # how many were not there already
        self._mode = mode
        self._part = part
        self._copies: dict[Path, Path] = {}

    def place(self, source: Path, target: Path) -> None:
        """Copy or link `source`, an absolute path and no link; replaces a target that differs."""
        try:
            if not self._is_there(source, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._part.unlink(missing_ok=True)
                self._make(source)
                os.replace(self._part, target)
                # If both are hard links to one file, the rename does nothing, and `part` stays.
                self._part.unlink(missing_ok=True)
                self.new += 1
        except OSError as error:
            raise _told(error, source, target, self._mode) from error
        self._copies.setdefault(source, target)

    def _is_there(self, source: Path, target: Path) -> bool:
        if self._mode == "symlink":
            return target.is_symlink() and os.readlink(target) == str(source)
        if target.is_symlink() or not target.is_file():
            return False
        if self._mode == "hardlink":
            return target.samefile(source)
        if source in self._copies:
            return target.samefile(self._copies[source])
        return _same_copy(source, target)

    def _make(self, source: Path) -> None:
        if self._mode == "symlink":
            os.symlink(source, self._part)
        elif self._mode == "hardlink":
            os.link(source, self._part)
        elif source in self._copies:
            # An image on two sides stays one file: the search by name refuses two different ones.
            os.link(self._copies[source], self._part)
        else:
            shutil.copy2(source, self._part)


def remaining_bytes(files: Mapping[Path, Path]) -> int:
    """Bytes still to be copied, of `files`: target -> source; raises if a source is gone."""
    try:
        # A source that one target holds is linked, not copied, into its other sides.
        there = {s for target, s in files.items() if target.is_file() and _same_copy(s, target)}
        return sum(source.stat().st_size for source in {*files.values()} - there)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; it was there before") from error


def _same_copy(source: Path, target: Path) -> bool:
    """Whether the size and the modification time agree, which `shutil.copy2` keeps."""
    one, other = source.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _told(error: OSError, source: Path, target: Path, mode: str) -> UserError | RunFailedError:
    if error.errno in DISK_FULL:
        return RunFailedError(
            f"{target} cannot be written: {error.strerror}; what is finished is kept: make room, "
            "and start it again"
        )
    if mode == "hardlink" and error.errno in _NO_HARD_LINKS:
        return UserError(
            f"--mode hardlink: {source} cannot be linked as {target} ({error.strerror}); use "
            "--mode copy or --mode symlink"
        )
    return UserError(f"{target} cannot be made of {source}: {error.strerror or error}")


RECORD = "export.json"  # which split and tables, in which mode, and whether it is finished
OWN_TABLE = "images.csv"
_STATE = ".export"  # folder of the lock, and of the file that is being written
_GENERATOR = "xray-lightning export-folders"


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    images: dict[str, int]  # files of each side
    new: int  # files, over all sides, that were not there before
    dialect: str  # layout of its tables, `ai4m` or `csv`


def export_folders(
    manifest: Manifest,
    split: Split,
    out: Path,
    *,
    mode: str = "copy",
    progress: Display = unseen,
    free: Free = free_bytes,
) -> Exported:
    """Put each side's images into OUT/train, OUT/val and OUT/test, and their tables into OUT.

    Each file is written atomically, and the tables come last: an interrupted export is not yet
    readable as a data set, and running the same export again resumes it.

    Args:
        manifest: the data set to export from.
        split: the images of each side, which must all have a file.
        out: a new or empty folder, or one that this export has begun.
        mode: `copy`, `hardlink` or `symlink`. A copy of an image on two sides is one file with two
            names.
        progress: display for the images.
        free: how many bytes may still be written into a folder.

    Raises:
        UserError: OUT holds something else, is inside the source, or cannot be written, or the
            files cannot be linked.
        RunFailedError: the disk is full or fails.
    """
    if mode not in MODES:
        raise UserError(f"--mode {mode} is unknown; choose {', '.join(MODES)}")
    check_writable(out, key="OUT")
    _refuse_inside(out, manifest)
    tables = _tables(manifest, split)
    job = {  # what identifies this export
        "generator": _GENERATOR,
        "split": split.name,
        "split_sha256": split.sha256,
        "mode": mode,
        "tables_sha256": {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in tables.items()
        },
    }
    finished = _check_out(out, job)
    path_of = dict(zip(manifest.table["image"], manifest.table["path"], strict=True))
    files = {
        out / side / image: Path(path_of[image]).resolve()
        for side in SIDES
        for image in split.sides[side]
    }
    with working_in(out, state=_STATE, work="export") as state, ExitStack() as at_the_end:
        at_the_end.callback(shutil.rmtree, state)  # with the lock's file, while it is held
        _refuse_same_names(files, state)
        if mode == "copy":
            check_room(out, remaining_bytes(files), free=free)
        if not finished:
            _write(out / RECORD, json.dumps({**job, "finished": False}, indent=1) + "\n")
        placing = Placing(mode, state / "part")
        with progress(f"export ({mode})", len(files)) as advance:
            for target, source in files.items():
                placing.place(source, target)
                advance(1)
        for name, text in tables.items():
            if not (finished and (out / name).is_file()):
                _write(out / name, text)
        _write(out / RECORD, json.dumps({**job, "finished": True}, indent=1) + "\n")
    dialect = "csv" if OWN_TABLE in tables else "ai4m"
    return Exported({side: len(split.sides[side]) for side in SIDES}, placing.new, dialect)


def _tables(manifest: Manifest, split: Split) -> dict[str, str]:
    """The CSVs by their names."""
    rows = manifest.table.set_index("image", drop=False)
    parts = {side: rows.loc[list(split.sides[side])] for side in SIDES}
    findings = list(manifest.findings)
    if manifest.dialect != "csv" and set(findings) == set(FINDINGS):
        titles = {"image": "Image", "patient_id": "PatientId"}
        return {
            AI4M_TABLES[side]: _csv(part[[*titles, *findings]].rename(columns=titles))
            for side, part in parts.items()
        }
    for side, part in parts.items():
        parts[side] = part.assign(image=f"{side}/" + part["image"], split=side)
    titles = {"patient_id": "patient", "follow_up": "follow-up"}
    columns = ["image", "patient_id", "split", "follow_up", "age", "sex", "view", *findings]
    return {OWN_TABLE: _csv(pd.concat(parts.values())[columns].rename(columns=titles))}


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def _check_out(out: Path, job: Mapping[str, object]) -> bool:
    """Whether the export is finished already; refuses a folder that holds anything else."""
    there = noted(out / RECORD)
    if {key: there.get(key) for key in job} == job:
        return bool(there.get("finished"))
    if there.get("generator") == _GENERATOR:
        raise UserError(
            f"{out} holds another export (split {there.get('split')}, {there.get('mode')}, or "
            "other rows); give another folder, or remove this one"
        )
    if out.is_dir() and any(path.name != _STATE for path in out.iterdir()):
        raise UserError(f"{out} is not empty; give a new folder")
    return False


def _refuse_inside(out: Path, manifest: Manifest) -> None:
    """Refuse OUT inside the source, which second files of the same names would make unreadable."""
    for folder in (manifest.images or manifest.root, manifest.root):
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{out} is inside {folder}, which is read; give a folder outside of it")


def _refuse_same_names(files: Mapping[Path, Path], state: Path) -> None:
    """Refuse names that differ only in case, if the file system ignores case."""
    if not state.with_name(state.name.upper()).exists():
        return
    most, count = Counter(str(path).casefold() for path in files).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images are named {most} here, where case is no difference")


def _write(path: Path, text: str) -> None:
    with told_if_unwritable(f"{path} cannot be written", advice="give another folder"):
        write_atomically(path, text)
