"""Prediction of files (`xray predict`): find the inputs, predict them, write row by row."""

import csv
import glob
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from xray_lightning.data.csv_table import read_text
from xray_lightning.data.image_files import find_files
from xray_lightning.deploy.model import EXPORTED, Model, Prediction, load_model
from xray_lightning.errors import UserError, printable
from xray_lightning.files import check_file, replacing, told_if_unwritable
from xray_lightning.progress import Display, unseen

Write = Callable[[Prediction], object]

CSV, PARQUET = (".csv",), (".parquet",)
JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (*CSV, *JSON_LINES, *PARQUET)
ROW_GROUP = 4096  # rows of a parquet file that are held until they are written

# First characters that make a spreadsheet read a cell as a formula.
FORMULA = ("=", "+", "-", "@")


def check_out(out: Path, arguments: Sequence[str]) -> None:
    """Refuse, before predicting, an --out FILE that could not be written or is an input.

    Raises:
        UserError: as `files.check_file`, an unknown ending, parquet without pyarrow, or an input.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: the ending must be one of {', '.join(ENDINGS)}")
    check_file(out, key="--out")
    if out.suffix.lower() in PARQUET:
        try:
            import_module("pyarrow")
        except ImportError as error:
            raise UserError(
                f"--out {out}: parquet needs pyarrow, which is not installed; install "
                "xray-lightning[parquet], or write .csv or .jsonl"
            ) from error
    for name in arguments:
        if os.path.isfile(name) and out.exists() and os.path.samefile(name, out):
            raise UserError(f"--out {out} is one of the inputs; give another file")


@contextmanager
def written(out: Path | None, model: Model) -> Iterator[Write]:
    """Yield a function that writes one row; the file is put in place atomically at the end.

    Args:
        out: a file that `check_out` has accepted; None for a CSV on stdout.

    Raises:
        OSError: it cannot be written.
    """
    if out is None:
        yield _csv(sys.stdout, model)
        sys.stdout.flush()
        return
    with replacing(out) as stream:
        if out.suffix.lower() in PARQUET:
            with _parquet(stream, model) as write:
                yield write
            return
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        try:
            if out.suffix.lower() in CSV:
                yield _csv(text, model)
            else:
                line = partial(json.dumps, allow_nan=False)
                yield lambda one: text.write(line(nested(one, model)) + "\n")
        finally:
            text.detach()  # flushes; the stream is closed by its owner


def flat(prediction: Prediction, model: Model) -> dict[str, Any]:
    """A prediction as one row of a table; None where there is no value."""
    path = printable(prediction.image)
    row: dict[str, Any] = {
        # A prefix "./" keeps spreadsheets from running the cell as a formula.
        "path": f"./{path}" if path.startswith(FORMULA) else path,
        "status": "ok" if prediction.reason is None else "unreadable",
        "reason": None if prediction.reason is None else printable(prediction.reason),
        "flags": ";".join(prediction.flags),
    }
    points = model.operating_points
    columns: dict[str, Any] = {"prob": prediction.probabilities}
    if model.calibrated:
        columns["calibrated"] = prediction.calibrated
    if points is not None:
        cuts = [points[finding] for finding in model.findings]
        columns |= {"threshold": None if prediction.reason else cuts}
        columns |= {"decision": prediction.decisions}
    for kind, values in columns.items():
        cells = [None] * len(model.findings) if values is None else np.asarray(values).tolist()
        row |= zip((f"{kind}_{finding}" for finding in model.findings), cells, strict=True)
    return row


def nested(prediction: Prediction, model: Model) -> dict[str, Any]:
    """A prediction as nested JSON: flags as a list, numbers grouped by finding."""
    row = flat(prediction, model)
    kinds = {"probability": "prob"} | {k: k for k in ("calibrated", "threshold", "decision")}
    return {
        **{key: row[key] for key in ("path", "status", "reason")},
        "flags": list(map(str, prediction.flags)),
        "findings": {
            finding: {
                name: row[f"{kind}_{finding}"]
                for name, kind in kinds.items()
                if f"{kind}_{finding}" in row
            }
            for finding in model.findings
            if prediction.reason is None
        },
    }


def _csv(stream: TextIO, model: Model) -> Write:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(flat(Prediction(""), model))
    return lambda one: writer.writerow(map(cell, flat(one, model).values()))


def cell(value: Any) -> str:
    """A CSV cell: empty for None, 1 or 0 for a decision; "'" before text like a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    # Nine digits tell float32 apart, as in a run's predictions.
    if isinstance(value, float):
        return f"{value:.9g}"
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


@contextmanager
def _parquet(stream: BinaryIO, model: Model) -> Iterator[Write]:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    kinds = {
        "prob": pyarrow.float32(),
        "calibrated": pyarrow.float64(),
        "threshold": pyarrow.float64(),
        "decision": pyarrow.bool_(),
    }
    names = list(flat(Prediction(""), model))
    schema = pyarrow.schema(
        [(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in names]
    )
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(stream, schema) as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(prediction: Prediction) -> None:
            rows.append(flat(prediction, model))
            if len(rows) == ROW_GROUP:
                flush()

        yield write
        if rows:
            flush()


TABLE = ".csv"
# Columns by which a CSV names its images, the first of these that it has: in tables of this
# project, of AI for Medicine, and of NIH.
TITLES = ("path", "image", "imageindex")


class Inputs(NamedTuple):
    """The files that arguments name, without duplicates, as the caller spells them."""

    paths: list[str]  # some may not exist
    repeated: int  # number of duplicates left out


def find_inputs(
    arguments: Sequence[str], *, images: Path | None = None, leave_out: Path | None = None
) -> Inputs:
    """List the files that arguments name, in their order.

    A folder stands for every regular file below it, sorted; a pattern (`*`, `?`, `[`, `**`) for
    what it matches, sorted; a .csv for the images in its column `path`, `image` or `Image Index`.
    Missing files stay in the list, so that they are reported.

    Args:
        images: folder of a CSV's images; None for the CSV's own.
        leave_out: a file to skip, such as the output of an earlier call.

    Raises:
        UserError: a folder or CSV that cannot be read, or none of the files exists.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder; give the folder of the CSV's images")
    if images is not None and not any(map(is_table, arguments)):
        raise UserError("--images is of a CSV's images; give a CSV, or leave it out")
    kept: dict[str, str] = {}
    named = 0
    out = None if leave_out is None else os.path.realpath(leave_out)
    for path in _all(arguments, images):
        if out is None or os.path.realpath(path) != out:
            named += 1
            kept.setdefault(os.path.abspath(path), path)
    if not any(map(os.path.exists, kept.values())):
        what = ", ".join(arguments[:5]) + (", ..." if len(arguments) > 5 else "")
        raise UserError(f"{what}: no file to predict; give images, folders, patterns or a CSV")
    return Inputs(list(kept.values()), named - len(kept))


def is_table(argument: str) -> bool:
    """Whether an argument is a CSV that names images."""
    return argument.lower().endswith(TABLE) and not os.path.isdir(argument)


def _all(arguments: Iterable[str], images: Path | None) -> Iterator[str]:
    for argument in arguments:
        if os.path.isdir(argument):
            yield from _below(argument)
        elif is_table(argument) and os.path.exists(argument):
            yield from _listed(Path(argument), images)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if "**" in argument:  # its matches already include the files in these folders
                matches = [match for match in matches if not os.path.isdir(match)]
            for match in matches or [argument]:
                yield from _below(match) if os.path.isdir(match) else [match]
        else:
            yield argument


def _below(folder: str) -> Iterator[str]:
    """Regular files below a folder, links to files, and broken links; visits each folder once."""
    visited: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in visited:
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders.sort()
        for path in (os.path.join(here, name) for name in sorted(names)):
            if os.path.isfile(path) or not os.path.exists(path):
                yield path


def _listed(table: Path, images: Path | None) -> list[str]:
    """Paths of a CSV's images: in the images' folder, or found by bare name in folders below it."""
    root = table.parent if images is None else images
    names = _names(table)
    paths = [os.path.join(root, name) for name in names]
    bare = frozenset(
        name
        for name, path in zip(names, paths, strict=True)
        if os.path.basename(name) == name and not os.path.exists(path)
    )
    below = find_files(root, bare)[0] if bare else {}
    return [below.get(name, path) for name, path in zip(names, paths, strict=True)]


def _names(table: Path) -> list[str]:
    rows = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    try:
        header = ["".join(filter(str.isalnum, title.lower())) for title in next(rows, [])]
        titles = [title for title in TITLES if title in header]
        if not titles:
            raise UserError(
                f"{table}, line 1: no column that names images; expected path, image or Image Index"
            )
        column = header.index(titles[0])
        names = []
        for cells in rows:
            if not any(cells):
                continue
            name = cells[column].strip() if column < len(cells) else ""
            if not name:
                raise UserError(f"{table}, line {rows.line_num}: no image is named")
            names.append(name)
    except csv.Error as error:
        raise UserError(f"{table}, line {rows.line_num}: not readable as CSV: {error}") from error
    if not names:
        raise UserError(f"{table} has a header but no rows; give a CSV with images")
    return names


MODELS = (".ckpt", ".safetensors", EXPORTED)


def predict(
    arguments: Sequence[str],
    *,
    out: Path | None = None,
    images: Path | None = None,
    progress: Display = unseen,
    **options: Any,
) -> tuple[str, str | None]:
    """Predict every file that the arguments name, with the models among them.

    Args:
        arguments: at least one name that ends as one of MODELS, and files, folders, patterns or
            CSVs; see `find_inputs`.
        out: a .csv, .jsonl or .parquet file; None for a CSV on stdout.
        images: folder of a CSV's images; None for the CSV's own.
        options: of `load_model`.

    Returns:
        All counts in one line, and why there are no decisions; None where there are.

    Raises:
        UserError: nothing to predict, a model that cannot be read, or a place that cannot be
            written to.
        RunFailedError: NaN or infinite logits, or a full disk; no file is left.
    """
    checkpoints = [name for name in arguments if name.lower().endswith(MODELS)]
    named = [name for name in arguments if not name.lower().endswith(MODELS)]
    if not checkpoints:
        endings = " or ".join(MODELS)
        raise UserError(f"no checkpoint is given: the path of a model, which ends in {endings}")
    if not named:
        raise UserError("nothing to predict; give images, folders, patterns or a CSV")
    if out is not None:
        check_out(out, arguments)
    paths, repeated = find_inputs(named, images=images, leave_out=out)
    model = load_model(checkpoints, **options)
    model.network.prepare()
    unreadable, flagged = 0, Counter[str]()
    with (
        told_if_unwritable(f"--out {out} cannot be written", advice="give another file"),
        progress("predicting images", len(paths)) as advance,
        written(out, model) as write,
    ):
        for prediction in model.predict_each(paths):
            write(prediction)
            unreadable += prediction.reason is not None
            flagged.update(prediction.flags)
            advance(1)
    parts = [f"{len(paths):,} images", f"{unreadable:,} unreadable"]
    parts += [f"{count:,} flagged as {rule}" for rule, count in sorted(flagged.items())]
    if repeated:
        parts.append(f"{repeated:,} named again and left out")
    return ", ".join(parts), model.why_undecided
