"""Predictions as rows of a CSV, JSON-lines or parquet file, each written as it comes."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from xray_lightning.atomic import check_writable, replacing
from xray_lightning.deploy.model import Model
from xray_lightning.deploy.predictions import Prediction
from xray_lightning.errors import UserError, printable

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
