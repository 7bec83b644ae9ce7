"""model_card.md: a model as people and model hubs read it, with nothing that no run recorded."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

from xray_lightning.atomic import write_atomically
from xray_lightning.deploy.about.facts import (
    Facts,
    model_facts,
    name_of,
    split_of,
    training_facts,
    version_facts,
)
from xray_lightning.deploy.about.front_matter import front_matter
from xray_lightning.deploy.about.known import Known, of_run
from xray_lightning.deploy.about.paths import without_folders
from xray_lightning.deploy.about.tables import (
    findings_table,
    fitted_table,
    headline_table,
    positives_table,
    sides_table,
    subgroups_table,
)
from xray_lightning.deploy.about.use import (
    INTENDED,
    OUT_OF_SCOPE,
    data_set,
    limits,
)
from xray_lightning.errors import printable
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.markdown import bullets, escaped, pipe_table
from xray_lightning.evaluation.report.page import words
from xray_lightning.evaluation.report.table import Table
from xray_lightning.models.checkpoint import BEST
from xray_lightning.page.frame import NOTICE

FILE_NAME = "model_card.md"
_LICENCE = "not recorded for the weights; the code of xray-lightning is under Apache-2.0"


def write_card(folder: Path) -> Path:
    """Write the card of a run into its folder, whole or not at all.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
        OSError: the card cannot be written.
    """
    path = folder / FILE_NAME
    write_atomically(path, card(of_run(folder)))
    return path


def card(known: Known) -> str:
    """The whole text of the card."""
    run = known.run
    parts = [
        front_matter(known),
        f"# {escaped(name_of(known)) or 'Model'}",
        f"**{NOTICE}**",
        *([] if run is None else [escaped(words.summary(_public(run)))]),
        "## Model details",
        _facts([*model_facts(known), ("Licence", _LICENCE)]),
        "## Intended use",
        escaped(INTENDED),
        "## Out of scope",
        bullets(OUT_OF_SCOPE),
        "## Training data",
        *_training_data(known),
        "## Evaluation",
        *_evaluation(known),
        *_operating_points(known),
        "## Limits and biases",
        bullets(limits(known, of_data=False)) or "None is known.",
        "## How to use",
        _usage(known),
        "## Reproduce",
        *_reproduce(known),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _public(run: Run) -> Run:
    """The run with no folder of the machine in its name of the split."""
    return replace(run, split=split_of(run))


def _facts(facts: Facts) -> str:
    return "\n".join(f"- **{term}:** {escaped(value)}" for term, value in facts)


def _table(table: Table, *, level: int = 3) -> list[str]:
    return [f"{'#' * level} {table.title}", pipe_table(table), bullets(table.notes)]


def _training_data(known: Known) -> list[str]:
    run = known.run
    parts = [_facts(training_facts(known))]
    if run is None:
        return parts
    about = data_set(run)
    parts.append(escaped(about.told))
    if run.sides:
        parts += _table(sides_table(run))
        if any(side.positives for side in run.sides):
            parts += _table(positives_table(run))
    if about.credit is not None:
        parts.append(f"Images and labels: {escaped(about.credit)}")
    return parts


def _evaluation(known: Known) -> list[str]:
    test = known.test
    if test is None:
        return [escaped(known.untested or "")]
    headline = headline_table(test)
    parts = [pipe_table(headline), bullets(headline.notes)]
    parts += _table(findings_table(test, wide=True))
    if test.subgroups:
        parts += _table(subgroups_table(test.subgroups))
    return parts


def _operating_points(known: Known) -> list[str]:
    facts, test = known.checkpoint, known.test
    said = [] if test is None else [words.operating_point(test)]
    table = None if facts is None else fitted_table(facts)
    if table is not None and facts is not None and facts.calibration is not None:
        images = words.counted(facts.calibration.images, "validation image")
        said.append(
            f"Calibrated, a probability p is sigmoid(slope x logit(p) + intercept), fitted by "
            f"{facts.calibration.method} on {images}. All figures above are of the raw p."
        )
    if not said and table is None:
        said = ["The checkpoint has neither operating points nor a calibration."]
    tables = [] if table is None else [pipe_table(table), bullets(table.notes)]
    return ["## Operating points and calibration", " ".join(map(escaped, said)), *tables]


def _usage(known: Known) -> str:
    path = f"checkpoints/{BEST}" if known.checkpoint is None else _near(known.checkpoint.path)
    return "\n".join(
        [
            "```python",
            "from xray_lightning import load_model",
            "",
            f"model = load_model({json.dumps(path)})",
            'found = model.predict(["a.png", "b.png"])  # or uint8 arrays (H, W)',
            "print(model.findings, found.probabilities, found.decisions)",
            "```",
            "",
            "```bash",
            f"xray predict {shlex.quote(printable(path))} images/ --out predictions.csv",
            "```",
        ]
    )


def _near(path: Path) -> str:
    """A checkpoint as it is called from its run folder, or beside it where it is in none."""
    return f"checkpoints/{path.name}" if path.parent.name == "checkpoints" else path.name


def _reproduce(known: Known) -> list[str]:
    run = known.run
    command = without_folders(run.command) if run is not None else ""
    shown = ["No command is known."]
    if command:
        shown = [
            f"    {printable(command)}",
            "Folders of the machine that it ran on are left out as `...`.",
        ]
    return [*shown, _facts(version_facts(known)), escaped(known.link)]
