"""A fit whose steps are replayed, through Lightning's own loop, optimizer and precision."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_classifier
from recorded import Recorded, normalising_backbone
from test_fit import data, trainer

from xray_lightning.models import classifier as module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_with_a_graph_equals_one_without(
    precision: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "StepGraph", Recorded)
    states = []
    for graph in (False, True):
        model = tiny_classifier(backbone=normalising_backbone())
        model.cuda_graph = graph
        Recorded.records = 0
        fit = trainer(tmp_path / str(graph), epochs=2, precision=precision)
        fit.fit(model, datamodule=data(phantoms, tmp_path))
        assert Recorded.records == (2 if graph else 0)
        assert model._graph is None
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_cuda_a_captured_fit_follows_the_uncaptured_one(
    precision: str, phantoms: Path, tmp_path: Path
) -> None:
    states = []
    for graph in (False, True):
        model = tiny_classifier(backbone=normalising_backbone())
        model.cuda_graph = graph
        fit = trainer(tmp_path / str(graph), epochs=2, precision=precision, accelerator="gpu")
        fit.fit(model, datamodule=data(phantoms, tmp_path))
        states.append({key: value.cpu() for key, value in model.state_dict().items()})
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=1e-2)
