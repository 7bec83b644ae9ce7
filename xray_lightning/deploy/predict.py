"""`xray predict`: every file that arguments name, and what a model answers to each, as rows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.atomic import told_if_unwritable
from xray_lightning.deploy.inputs import Inputs, find_inputs
from xray_lightning.deploy.model import EXPORTED, Model, load_model
from xray_lightning.deploy.rows import check_out, written
from xray_lightning.errors import UserError
from xray_lightning.progress import Display, unseen

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
