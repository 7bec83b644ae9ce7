"""What TensorBoard is given beside the scalars."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_classifier
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_fit import data, trainer

from xray_lightning.data.loader import Batch
from xray_lightning.findings import FINDINGS
from xray_lightning.training.callbacks import (
    GRID_IMAGES,
    InputGrid,
    input_figure,
    log_hyperparameters,
    tensorboard,
)


def batch(images: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = torch.zeros(images, len(FINDINGS))
    targets[0, [2, 12]] = 1
    targets[-1] = 1
    return Batch(
        images=torch.randint(0, 256, (images, 1, 32, 32), generator=generator, dtype=torch.uint8),
        targets=targets,
        rows=torch.arange(images),
        draws=torch.arange(images),
        scale=1 / images,
    )


@pytest.mark.parametrize("images, axes", [(1, 1), (3, 3), (5, 8), (40, GRID_IMAGES)])
def test_the_grid_shows_the_first_images_under_their_findings(images: int, axes: int) -> None:
    figure = input_figure(batch(images))
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == axes
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == min(images, GRID_IMAGES)
    if images > 1:
        assert shown[0].get_title() == "Effusion\nPleural Thickening"
    if images in (3, 5):
        assert shown[1].get_title() == "No Finding"
        assert shown[-1].get_title() == "Atelectasis\nCardiomegaly\nand 12 more"
    drawn = shown[0].images[0].get_array()
    assert (torch.from_numpy(drawn.data.copy()) == batch(images).images[0, 0]).all()


def logger(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)


def test_the_board_holds_one_grid_and_the_hyper_parameters_with_their_metrics(
    phantoms: Path, tmp_path: Path
) -> None:
    fitted = trainer(tmp_path, InputGrid(), epochs=2, log_every_n_steps=1)
    fitted.loggers = [logger(tmp_path)]
    fitted.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    metrics = {"auroc_macro": 0.75, "label_accuracy": None}
    log_hyperparameters(fitted, config={"lr": 0.1, "model": "resnet18"}, metrics=metrics)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Images("inputs")) == 1
    assert [event.value for event in events.Scalars("test/auroc_macro")] == [0.75]
    assert "test/label_accuracy" not in events.Tags()["scalars"]
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_without_tensorboard_nothing_is_drawn(phantoms: Path, tmp_path: Path) -> None:
    fitted = trainer(tmp_path, InputGrid(), epochs=1)
    assert tensorboard(fitted) is None
    fitted.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    log_hyperparameters(fitted, config={}, metrics={})
