"""Several real processes, started by mpirun and torchrun, against one process."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Ended, Train, environment, tiny_classifier
from lightning.pytorch import seed_everything

from xray_lightning.data.loader import Batch, EpochOrder
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.gathered_outputs import Outputs
from xray_lightning.runs.results_json import flat

pytestmark = pytest.mark.filterwarnings("error")

# Plain SGD: a weight's change is its gradient times the rate, so equal weights are equal
# gradients. Adam would blow up rounding, since it divides a tiny gradient by its own size; so
# would a large rate: at 0.001 one process is 1 % from itself with another number of threads.
EXACT = (
    "optimizer=sgd",
    "optimizer.momentum=0",
    "optimizer.nesterov=false",
    "optimizer.weight_decay=0",
    "optimizer.lr=0.0001",
    "stages=[fit]",
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    return dict(checkpoint["state_dict"])


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of the trained parameters."""
    parameters = [name for name, _ in build_backbone(arch="resnet18").named_parameters()]
    squares = [
        (one[f"backbone.{name}"] - two[f"backbone.{name}"]).square().sum() for name in parameters
    ]
    return float(torch.stack(squares).sum().sqrt())


def untrained() -> dict[str, torch.Tensor]:
    seed_everything(0, verbose=False)
    fresh = build_backbone(arch="resnet18").state_dict()
    return {f"backbone.{name}": value for name, value in fresh.items()}


@pytest.mark.slow
def test_two_mpi_ranks_reach_the_weights_of_one_process_with_the_same_global_batch(
    train: Train,
) -> None:
    options = (*EXACT, "data.batch_size=15")  # equal shares would be easier: these are 8 and 7
    fitted = train(*options, "strategy=single", "name=alone")
    assert fitted.exit_code == 0, fitted.stderr
    # Ranks that a multirun starts, which leaves the folder of its only job.
    ended = train("-m", *options, "strategy=mpi", "strategy.sync_batchnorm=true", "name=ranks")
    assert ended.exit_code == 0, ended.stderr
    assert [result["environment"]["world_size"] for result in ended.results] == [1, 2]
    assert [result["training"]["warnings"] for result in ended.results] == [[], []]
    alone, ranks = (weights(run) for run in sorted(ended.runs, key=lambda run: run.name[-5:]))
    path = distance(alone, untrained())
    assert path > 1e-3
    assert distance(alone, ranks) < 1e-2 * path
    losses = [result["history"][-1]["train_loss"] for result in ended.results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow  # 20 s
def test_two_ranks_average_their_weights_as_one_process_does(train: Train) -> None:
    options = (*EXACT, "callbacks=ema", "callbacks.ema.decay=0.9", "data.batch_size=16")
    fitted = train(*options, "strategy=single", "name=alone")
    assert fitted.exit_code == 0, fitted.stderr
    ended = train(*options, "strategy=mpi", "strategy.sync_batchnorm=true", "name=ranks")
    assert ended.exit_code == 0, ended.stderr
    runs = sorted(ended.runs, key=lambda run: run.name[-5:])
    alone, ranks = (weights(run) for run in runs)
    latest = read_checkpoint(runs[0] / "checkpoints" / "last.ckpt")["current_model_state"]
    path = distance(alone, untrained())
    assert distance(alone, latest) > 0.05 * path  # the average lags behind
    assert distance(alone, ranks) < 1e-2 * path
    statistics = [key for key in alone if key.endswith(("running_mean", "running_var"))]
    assert statistics
    for key in statistics:
        torch.testing.assert_close(alone[key], ranks[key], rtol=1e-4, atol=1e-5)
    bests = [read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"] for run in runs]
    assert distance(*bests) < 1e-2 * path


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("probe", ["null", "true"])
def test_two_ranks_train_the_head_of_a_frozen_backbone_as_one_process_does(
    probe: str, train: Train
) -> None:
    tuning = "fine_tuning.freeze_epochs=1", f"fine_tuning.probe={probe}"
    options = (*EXACT, "data.batch_size=16", *tuning, "trainer.max_epochs=1")
    fitted = train(*options, "strategy=single", "name=alone")
    assert fitted.exit_code == 0, fitted.stderr
    ended = train(*options, "strategy=mpi", "strategy.sync_batchnorm=true", "name=ranks")
    assert ended.exit_code == 0, ended.stderr
    alone, ranks = (weights(run) for run in sorted(ended.runs, key=lambda run: run.name[-5:]))
    start = untrained()
    names = [f"backbone.{name}" for name, _ in build_backbone(arch="resnet18").named_parameters()]
    for state in (alone, ranks):
        moved = [name for name in names if not torch.equal(state[name], start[name])]
        assert moved == ["backbone.fc.weight", "backbone.fc.bias"]
    path = distance(alone, start)
    assert path > 1e-5
    assert distance(alone, ranks) < 1e-2 * path


# Loaded by every process, and so the last to be called: what still runs where Python ends.
LAST_THREADS = """
import atexit, os
from pathlib import Path

def write():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(os.environ["THREADS"], str(os.getpid())).write_text(" ".join(names))

if "OMPI_COMM_WORLD_RANK" in os.environ:
    atexit.register(write)
"""


@pytest.mark.slow
def test_fault_57_one_two_and_three_ranks_test_a_checkpoint_to_the_same_predictions_and_metrics(
    first: Ended, train: Train, tmp_path: Path
) -> None:
    threads = tmp_path / "threads"
    threads.mkdir()
    (threads / "sitecustomize.py").write_text(LAST_THREADS)
    watched = {"PYTHONPATH": str(threads), "THREADS": str(threads)}
    one = first.runs[0]
    test = ("stages=[test]", f"ckpt_path={one}/checkpoints/best.ckpt", "data.batch_size=7")
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "--no-python")
    mpirun = ("mpirun", "-n", "3")
    # Ranks that the user has started: they share one run folder, and rank 0 alone speaks.
    for ended in (
        train(*test, "name=test2", "strategy=ddp", before=torchrun),
        train(*test, "name=test3", "strategy=mpi", before=mpirun, env=watched),
    ):
        assert ended.exit_code == 0, ended.stderr
        assert ended.stdout.count("macro over") == 1
    # One of Gloo's that asks Python for something at its end aborts a run that is done.
    last = [path.read_text() for path in threads.iterdir() if path.name.isdecimal()]
    assert len(last) == 3
    assert not any("gloo" in names for names in last)
    two, three = sorted(ended.runs, key=lambda run: run.name[-1])
    expected, figures = predictions(one), flat(metrics(one))
    assert figures["per_finding.Effusion.auroc"] is not None
    for run, size in ((two, 2), (three, 3)):
        assert (run / ".hydra" / "overrides.yaml").is_file()
        assert json.loads((run / "results.json").read_text())["environment"]["world_size"] == size
        found = predictions(run)
        assert (found["image"] == expected["image"]).all()
        probabilities = found.filter(like="prob_") - expected.filter(like="prob_")
        assert probabilities.abs().to_numpy().max() < 1e-5
        assert flat(metrics(run)) == pytest.approx(figures, abs=1e-6)
    assert "MPI" in json.loads((three / "results.json").read_text())["environment"]["mpi"]


def predictions(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "predictions_test.csv")


def metrics(run: Path) -> dict[str, Any]:
    """What the run has computed of its test; lists by their places."""
    content: dict[str, Any] = json.loads((run / "results.json").read_text())["metrics"]["test"]
    return numbered(content)


def numbered(value: Any) -> Any:
    if isinstance(value, list):
        return {str(place): numbered(item) for place, item in enumerate(value)}
    if isinstance(value, dict):
        return {key: numbered(item) for key, item in value.items()}
    return value


@pytest.mark.slow
def test_ranks_that_train_say_nothing_but_what_the_run_has_to_say(
    train: Train, tmp_path: Path
) -> None:
    srun = tmp_path / "bin" / "srun"  # Lightning hints at it wherever it is
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    path = f"{srun.parent}{os.pathsep}{environment()['PATH']}"
    ended = train("strategy=ddp", "strategy.processes=2", env={"PATH": path})
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr == ""
    assert "" not in ended.stdout.splitlines()
    assert "arning" not in ended.stdout
    (result,) = ended.results
    assert result["training"]["warnings"] == []


@pytest.mark.slow
def test_fault_23_a_run_resumed_by_two_ranks_and_then_by_one_trains_as_one_process(
    train: Train,
) -> None:
    options = (*EXACT, "data.batch_size=15")

    def fitted(*overrides: str, defaults: bool = True) -> Path:
        ended = train(*overrides, defaults=defaults)
        assert ended.exit_code == 0, ended.stderr
        return ended.runs[-1]

    alone = fitted(*options, "trainer.max_epochs=3", "name=alone")
    moved = fitted(*options, "name=moved")
    two = ("strategy=mpi", "strategy.processes=2", "strategy.sync_batchnorm=true")
    for epochs, strategy in ((2, two), (3, ("strategy=single",))):
        fitted(f"resume={moved}", f"trainer.max_epochs={epochs}", *strategy, defaults=False)
    record = json.loads((moved / "results.json").read_text())
    assert [row["epoch"] for row in record["history"]] == [0, 1, 2]
    path = distance(weights(alone), untrained())
    assert path > 1e-3
    # Ranks add up in another order, which three epochs of steps amplify: measured 2 %.
    assert distance(weights(alone), weights(moved)) < 5e-2 * path


MOST_IMAGES, BATCH = 64, 6


def outputs_of(images: int, *, rank: int, ranks: int) -> Outputs:
    """What the classifier collects of an evaluation of so many images, on one of the ranks."""
    model = tiny_classifier()
    model.trainer = SimpleNamespace(world_size=ranks)
    draw = torch.Generator().manual_seed(images)
    shape = (images, 1, 32, 32)
    pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    targets = torch.randint(0, 2, (images, 14), generator=draw).float()
    order = EpochOrder(images, BATCH, shuffle=False, rank=rank, ranks=ranks)
    for rows, whole in order.share(0):
        places = np.where(rows < 0, ~rows, rows)
        batch = Batch(pixels[places], targets[places], torch.from_numpy(rows), rows, ranks / whole)
        with torch.no_grad():
            model.validation_step(batch, 0)
    return model._collect()


def evaluate_all(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=ranks
    )
    try:
        found = [tuple(outputs_of(n, rank=rank, ranks=ranks)) for n in range(1, MOST_IMAGES + 1)]
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_fault_57_an_evaluation_of_1_to_64_images_is_that_of_one_process(
    ranks: int, tmp_path: Path
) -> None:
    mp.spawn(evaluate_all, args=(ranks, tmp_path), nprocs=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt")
        for images, outputs in enumerate(found, start=1):
            alone = outputs_of(images, rank=0, ranks=1)
            assert alone.rows.tolist() == list(range(images))
            for part, expected in zip(outputs, alone, strict=True):
                torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-6)
            assert torch.equal(outputs[0], alone.rows)
