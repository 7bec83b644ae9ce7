"""The recipe trained again on shuffled labels, and the run itself, which stays as it is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAIN_PY, Ended, Train, environment, tiny_classifier
from fitting import data, trainer
from lightning.pytorch import Callback
from predicted import arrays, frame, redrawn, table
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xray_lightning.errors import InterruptedRunError
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.runs.run_folder import read_run
from xray_lightning.training.interruption import Interruption
from xray_lightning.training.shuffled_labels import (
    EndAfter,
    fit_shuffled,
    shuffled_scores,
    with_shuffled_labels,
)
from xray_lightning.training.strategies import World

SHUFFLED = "evaluation.shuffled=true"


def test_whole_rows_of_labels_change_places_among_the_training_images_alone(
    phantoms: Path, tmp_path: Path
) -> None:
    true = data(phantoms, tmp_path)
    true.prepare_data()
    true.setup()
    before = true.labels("train").copy()
    shuffled, again = (with_shuffled_labels(true, seed=seed) for seed in (0, 0))
    found = shuffled.labels("train")
    assert (found == again.labels("train")).all()
    assert (found != with_shuffled_labels(true, seed=1).labels("train")).any()
    assert (found != before).any(axis=1).mean() > 0.5
    assert sorted(map(tuple, found)) == sorted(map(tuple, before))
    assert (true.labels("train") == before).all()
    assert (shuffled.table("train")["image"] == true.table("train")["image"]).all()
    for side in ("val", "test"):
        assert shuffled.table(side).equals(true.table(side))
    batch, other = (next(iter(one.train_dataloader())) for one in (true, shuffled))
    assert (batch.images == other.images).all()
    assert (batch.targets != other.targets).any()


def test_the_second_fit_ends_where_the_first_has_and_predicts_with_its_last_weights(
    phantoms: Path, tmp_path: Path
) -> None:
    true = data(phantoms, tmp_path)
    true.prepare_data()
    true.setup()
    fit = trainer(tmp_path, EndAfter(2), epochs=5)
    model = tiny_classifier()
    predictions = fit_shuffled(fit, model, true, seed=0)
    assert fit.current_epoch == 2
    model.eval()
    images = next(iter(true.test_dataloader()))
    probabilities = predictions.filter(like="prob_").to_numpy()[: len(images.rows)]
    expected = model(images.images).sigmoid().detach().numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_its_figures_are_those_of_the_resampled_rows() -> None:
    test, seen = table(images=120), table(images=120, seed=1)
    shuffled = frame(arrays(seen)[0], arrays(test)[1], test["patient_id"])
    found = shuffled_scores(shuffled, test, resamples=20, seed=3)

    def macro(rows: Any) -> float:
        scores, labels = arrays(rows)
        return float(roc_auc_score(labels, scores))

    assert found["auroc_macro"] == pytest.approx(macro(shuffled))
    assert found["gain"] == pytest.approx(macro(test) - macro(shuffled))
    pairs = zip(
        redrawn(shuffled, resamples=20, seed=3), redrawn(test, resamples=20, seed=3), strict=True
    )
    draws = np.array([(macro(one), macro(other)) for one, other in pairs])
    ends = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975])
    assert found["gain_ci95"] == pytest.approx(ends)
    assert found["auroc_macro_ci95"] == pytest.approx(np.quantile(draws[:, 0], [0.025, 0.975]))


def test_the_run_itself_is_the_same_and_holds_nothing_of_the_second_training(
    first: Ended, call: Train
) -> None:
    ended = call(SHUFFLED)
    assert ended.exit_code == 0, ended.stderr
    assert "shuffled labels: epoch 1/1" in ended.stdout
    (result,), (run,) = ended.results, ended.runs
    expected = first.results[0]
    found = result["metrics"]["test"].pop("shuffled_labels")
    assert found["epochs"] == 1
    assert found["auroc_macro_ci95"] is not None
    assert result["metrics"] == expected["metrics"]
    assert found["gain"] == pytest.approx(
        result["metrics"]["test"]["auroc_macro"] - found["auroc_macro"]
    )
    assert result["timing"]["shuffled"] > 0
    assert len(result["history"]) == 1
    files = [
        {path.name for path in (folder / "checkpoints").iterdir()}
        for folder in (run, first.runs[0])
    ]
    assert files[0] == files[1]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert len(events.Scalars("val/auroc_macro")) == 1
    test = read_run(run).test
    assert test is not None
    assert test.shuffled_labels is not None
    assert "on shuffled labels reaches" in (run / "model_card.md").read_text()
    # What is resumed is done, and is set beside shuffled labels once more, with the same figures.
    again = call(f"resume={run}")
    assert again.exit_code == 0, again.stderr
    assert again.results[0]["metrics"]["test"]["shuffled_labels"] == found


@pytest.mark.slow
def test_two_ranks_under_mpi_train_on_the_same_shuffled_labels(train: Train) -> None:
    ended = train(SHUFFLED, "strategy=mpi", "strategy.processes=2", "trainer.max_epochs=2")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr == ""
    (result,) = ended.results
    assert result["environment"]["world_size"] == 2
    assert result["training"]["warnings"] == []
    assert result["metrics"]["test"]["shuffled_labels"]["epochs"] == 2
    assert ended.stdout.count("shuffled labels: epoch 2/2") == 1


class Stop(Callback):
    """Sends this process SIGTERM in its second step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_second_training_saves_no_checkpoint(phantoms: Path, tmp_path: Path) -> None:
    true = data(phantoms, tmp_path)
    true.prepare_data()
    true.setup()
    interruption = Interruption(tmp_path, checkpoint=tmp_path / "run.ckpt", world=World("none"))
    interruption.checkpoint = None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        fit_shuffled(trainer(tmp_path, Stop(), interruption), tiny_classifier(), true, seed=0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "mpi"])
def test_a_signal_in_the_second_training_leaves_the_run_with_its_result(
    strategy: str, small: list[str], tmp_path: Path
) -> None:
    ranks = [] if strategy == "single" else ["strategy=mpi", "strategy.processes=2"]
    command = [sys.executable, TRAIN_PY, *small, SHUFFLED, "trainer.max_epochs=6", *ranks]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if "shuffled labels: epoch 1/" in line:
                job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=90) == 143
    (run,) = (path.parent for path in tmp_path.glob("runs/*/results.json"))
    result = json.loads((run / "results.json").read_text())
    assert result["status"] == "interrupted"
    assert result["metrics"]["test"]["auroc_macro"] is not None
    assert "shuffled_labels" not in result["metrics"]["test"]
    assert result["timing"]["fit"] > 0
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 5
    assert (run / "predictions_test.csv").is_file()
