"""Prediction of files (`xray predict`): inputs found, answered, and written row by row."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from xray_lightning.data.csv_table import read_text
from xray_lightning.data.image_files import find_files
from xray_lightning.deploy.model import EXPORTED, Model, Prediction, load_model
from xray_lightning.errors import UserError, printable
from xray_lightning.files import check_writable, replacing, told_if_unwritable
from xray_lightning.progress import Display, unseen

Write = Callable[[Prediction], None]

CSV, PARQUET = (".csv",), (".parquet",)
JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (*CSV, *JSON_LINES, *PARQUET)
ROW_GROUP = 4096  # rows of a parquet file that are held until they are written

# What makes a spreadsheet read a cell as a formula.
FORMULA = ("=", "+", "-", "@")


def check_out(out: Path) -> None:
    """Refuse, before the work, a --out FILE that could not be written.

    Raises:
        UserError: an unknown ending, a folder, a place that is not there or read-only, or parquet
            without pyarrow.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: the ending must be one of {', '.join(ENDINGS)}")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give a file")
    if not out.parent.exists():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out.parent, key="--out")
    if out.suffix.lower() in PARQUET:
        try:
            import_module("pyarrow")
        except ImportError as error:
            raise UserError(
                f"--out {out}: parquet needs pyarrow, which is not installed; install "
                "xray-lightning[parquet], or write .csv or .jsonl"
            ) from error


@contextmanager
def written(out: Path | None, model: Model) -> Iterator[Write]:
    """A function that writes one row, to a file that is whole at the end or not there at all.

    Args:
        out: as `check_out` has passed it; None for a CSV on stdout.
        model: whose predictions they will be.

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
            yield (_csv if out.suffix.lower() in CSV else _json_lines)(text, model)
        finally:
            text.detach()  # flushes; the stream is closed by its owner


def flat(prediction: Prediction, model: Model) -> dict[str, Any]:
    """A prediction as one row of a table; None where there is no value."""
    row: dict[str, Any] = {
        "path": safe_path(prediction.image),
        "status": "ok" if prediction.reason is None else "unreadable",
        "reason": None if prediction.reason is None else printable(prediction.reason),
        "flags": ";".join(prediction.flags),
    }
    columns: list[tuple[str, Sequence[Any] | None, bool]] = [
        ("prob", _values(prediction.probabilities), True),
        ("calibrated", _values(prediction.calibrated), model.calibrated),
        (
            "threshold",
            None if prediction.reason else _cuts(model),
            model.operating_points is not None,
        ),
        ("decision", _values(prediction.decisions), model.operating_points is not None),
    ]
    for kind, values, there in columns:
        if there:
            cells = values or [None] * len(model.findings)
            names = (f"{kind}_{finding}" for finding in model.findings)
            row |= dict(zip(names, cells, strict=True))
    return row


def nested(prediction: Prediction, model: Model) -> dict[str, Any]:
    """A prediction as JSON holds it: the flags a list, the numbers under their finding."""
    row = flat(prediction, model)
    plain: dict[str, Any] = {key: row[key] for key in ("path", "status", "reason")}
    plain["flags"] = list(map(str, prediction.flags))
    kinds = {"prob": "probability"} | {k: k for k in ("calibrated", "threshold", "decision")}
    plain["findings"] = {
        finding: {
            name: row[f"{kind}_{finding}"]
            for kind, name in kinds.items()
            if f"{kind}_{finding}" in row
        }
        for finding in model.findings
        if prediction.reason is None
    }
    return plain


def safe_path(path: str) -> str:
    """A path on one line, undecodable bytes spelled out, that no spreadsheet takes for a formula.

    `./=1+1.png` names the same file as `=1+1.png`.
    """
    text = printable(path)
    return f"./{text}" if text.startswith(FORMULA) else text


def safe_cell(text: str) -> str:
    """A text of a CSV that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _values(array: Any) -> list[Any] | None:
    return None if array is None else list(array.tolist())


def _cuts(model: Model) -> list[float] | None:
    points = model.operating_points
    return None if points is None else [points[finding] for finding in model.findings]


def _csv(stream: TextIO, model: Model) -> Write:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(flat(Prediction(""), model))

    def write(prediction: Prediction) -> None:
        writer.writerow(cell(value) for value in flat(prediction, model).values())

    return write


def cell(value: Any) -> str:
    """A value as a CSV has it: nothing for None, 1 and 0 for a decision."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    # Nine digits tell float32 apart, as in a run's predictions.
    return f"{value:.9g}" if isinstance(value, float) else safe_cell(str(value))


def _json_lines(stream: TextIO, model: Model) -> Write:
    def write(prediction: Prediction) -> None:
        stream.write(json.dumps(nested(prediction, model), allow_nan=False) + "\n")

    return write


@contextmanager
def _parquet(stream: BinaryIO, model: Model) -> Iterator[Write]:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    kinds: Mapping[str, Any] = {
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
# By which a CSV names its images, the first one found: NIH's table, AI for Medicine's and our own.
TITLES = ("path", "image", "imageindex")


@dataclass(frozen=True)
class Inputs:
    """The files that arguments name.

    Attributes:
        paths: each once, as the caller spells it; some may not be there.
        repeated: how many were named again.
        found: how many are there.
    """

    paths: list[str]
    repeated: int
    found: int


def find_inputs(
    arguments: Sequence[str], *, images: Path | None = None, leave_out: Path | None = None
) -> Inputs:
    """List the files that arguments name, in their order.

    A folder stands for every regular file below it, sorted; a pattern (`*`, `?`, `[`, `**`) for
    what it matches, sorted; a .csv for the images in its column `path`, `image` or `Image Index`.
    What is not there stays in the list, so that it can be told of.

    Args:
        images: folder of a CSV's images; None for the CSV's own.
        leave_out: a file that is no input: the output of an earlier call.

    Raises:
        UserError: a folder or CSV that cannot be read, or nothing that is there.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder; give the folder of the CSV's images")
    if images is not None and not any(map(is_table, arguments)):
        raise UserError("--images is of a CSV's images; give a CSV, or leave it out")
    kept: dict[str, str] = {}
    named = 0
    out = None if leave_out is None else os.path.realpath(leave_out)
    for path in _all(arguments, images):
        whole = os.path.abspath(path)
        if out is not None and os.path.realpath(path) == out:
            continue
        named += 1
        kept.setdefault(whole, path)
    found = sum(map(os.path.exists, kept.values()))
    if not found:
        what = ", ".join(arguments[:5]) + (", ..." if len(arguments) > 5 else "")
        raise UserError(f"{what}: no file to predict; give images, folders, patterns or a CSV")
    return Inputs(list(kept.values()), named - len(kept), found)


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
            if "**" in argument:  # which has found what is in the folders, too
                matches = [match for match in matches if not os.path.isdir(match)]
            for match in matches or [argument]:
                yield from _below(match) if os.path.isdir(match) else [match]
        else:
            yield argument


def _below(folder: str) -> Iterator[str]:
    """Every regular file below a folder, or link to one or to nothing; each folder visited once."""
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
    """The paths of a CSV's images: in the folder of the images, or by their names below it."""
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
        header = [_plain(title) for title in next(rows, [])]
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


def _plain(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum())


MODELS = (".ckpt", EXPORTED)


@dataclass(frozen=True)
class Options:
    """How files are to be predicted.

    Attributes:
        out: a .csv, .jsonl or .parquet file; None for a CSV on stdout.
        images: folder of a CSV's images; None for the CSV's own.
        average, accelerator, precision, batch_size: as `load_model`; the device is `accelerator`.
    """

    out: Path | None = None
    images: Path | None = None
    average: str = "probabilities"
    accelerator: str = "auto"
    precision: str = "32-true"
    batch_size: int = 32


@dataclass(frozen=True)
class Predicted:
    """What was done: rows written, of which unreadable, of which flagged by each rule."""

    rows: int
    repeated: int
    unreadable: int
    flagged: dict[str, int]
    note: str | None

    def summary(self) -> str:
        """All counts in one line."""
        parts = [f"{self.rows:,} images", f"{self.unreadable:,} unreadable"]
        parts += [f"{count:,} flagged as {rule}" for rule, count in sorted(self.flagged.items())]
        if self.repeated:
            parts.append(f"{self.repeated:,} named again and left out")
        return ", ".join(parts)


def predict(arguments: Sequence[str], options: Options, *, progress: Display = unseen) -> Predicted:
    """Predict every file that the arguments name, with the models among them.

    Args:
        arguments: at least one name that ends in .ckpt or .onnx, and files, folders, patterns or
            CSVs; see `inputs.find_inputs`.

    Raises:
        UserError: nothing to predict, a model that cannot be read, or a place that cannot be
            written to.
        RunFailedError: an answer that is no number, or a full disk; no file is left.
    """
    checkpoints = [name for name in arguments if name.lower().endswith(MODELS)]
    named = [name for name in arguments if not name.lower().endswith(MODELS)]
    if not checkpoints:
        raise UserError("no checkpoint is given: the path of a model, which ends in .ckpt or .onnx")
    if not named:
        raise UserError("nothing to predict; give images, folders, patterns or a CSV")
    if options.out is not None:
        check_out(options.out)
        _refuse_inputs(options.out, arguments)
    inputs = find_inputs(named, images=options.images, leave_out=options.out)
    model = load_model(
        checkpoints,
        device=options.accelerator,
        precision=options.precision,
        average=options.average,
        batch_size=options.batch_size,
    )
    model.network.prepare()
    with told_if_unwritable(f"--out {options.out} cannot be written", advice="give another file"):
        return _predict(model, inputs, options.out, progress)


def _predict(model: Model, inputs: Inputs, out: Path | None, progress: Display) -> Predicted:
    unreadable, flagged = 0, dict[str, int]()
    with (
        progress("predicting images", len(inputs.paths)) as advance,
        written(out, model) as write,
    ):
        for prediction in model.predict_each(inputs.paths):
            write(prediction)
            unreadable += prediction.reason is not None
            for rule in prediction.flags:
                flagged[rule] = flagged.get(rule, 0) + 1
            advance(1)
    return Predicted(len(inputs.paths), inputs.repeated, unreadable, flagged, model.why_undecided)


def _refuse_inputs(out: Path, arguments: Sequence[str]) -> None:
    """Never write over what is read."""
    for name in arguments:
        if os.path.isfile(name) and out.exists() and os.path.samefile(name, out):
            raise UserError(f"--out {out} is one of the inputs; give another file")
