"""An exported model answers as its checkpoint does, says what it is, and needs no torch."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import SIDE, checkpoint
from conftest import environment, tiny_classifier
from PIL import Image
from typer.testing import CliRunner, Result

from xray_lightning.cli.main import app
from xray_lightning.deploy import export as exporting
from xray_lightning.deploy.export import (
    DESCRIPTION,
    MOST_APART,
    PHANTOMS,
    Answering,
    TorchGraph,
    check_out,
    differences,
    export,
)
from xray_lightning.deploy.model import Model, load_model
from xray_lightning.deploy.onnx_backend import SCHEMA_VERSION, from_texts
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.checkpoint import read_checkpoint, restore

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

ARRAYS = np.random.default_rng(0).integers(0, 256, (5, 40, 50), dtype=np.uint8)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("ckpt") / "one.ckpt")


@pytest.fixture(scope="module")
def exported(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "one.onnx"
    export(ckpt, out, format="onnx")
    return out


def xray(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)


# -- the graph -------------------------------------------------------------------------------------


def test_an_exported_model_predicts_as_its_checkpoint(ckpt: Path, exported: Path) -> None:
    ours, theirs = load_model(ckpt, device="cpu"), load_model(exported, device="cpu")
    one, other = ours.predict(ARRAYS), theirs.predict(ARRAYS)
    assert theirs.findings == ours.findings
    assert theirs.operating_points == ours.operating_points
    np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-5)
    assert one.calibrated is not None
    assert other.calibrated is not None
    np.testing.assert_allclose(other.calibrated, one.calibrated, atol=1e-5)
    assert np.array_equal(other.decisions, one.decisions)  # type: ignore[arg-type]
    # Any number of images at once.
    for array, row in zip(ARRAYS, other.probabilities, strict=True):
        np.testing.assert_allclose(theirs.predict(array).probabilities[0], row, atol=1e-6)


def test_normalisation_and_a_hidden_layer_are_in_the_graph(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "model": {"arch": "resnet18", "hidden": [16], "dropout": 0.5},
        "normalize": "dataset",
        "image_size": SIDE,
    }
    built = tiny_classifier(recipe=recipe)
    torch.manual_seed(1)
    built.backbone = build_backbone(**recipe["model"])
    content: dict[str, Any] = {"state_dict": built.state_dict()}
    content["state_dict"]["normalize.mean"] = torch.tensor(0.31)
    content["state_dict"]["normalize.std"] = torch.tensor(0.17)
    built.on_save_checkpoint(content)
    path = tmp_path / "m.ckpt"
    torch.save(content, path)
    export(path, tmp_path / "m.pt2", format="torch-export")
    model = load_model(path, device="cpu")
    probabilities, _ = torch.export.load(tmp_path / "m.pt2").module()(pixels(model))
    expected = model.predict(ARRAYS).probabilities
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-5)


def test_the_file_says_what_it_is_and_names_nothing_of_this_machine(
    ckpt: Path, exported: Path
) -> None:
    proto = onnx.load(exported)
    onnx.checker.check_model(proto)
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    described = from_texts(texts)
    assert tuple(described["findings"]) == FINDINGS
    assert described["schema_version"] == SCHEMA_VERSION
    assert described["split_sha256"] == "ab" * 32
    assert described["thresholds"]["Mass"] == pytest.approx(0.3 + 0.03 * FINDINGS.index("Mass"))
    assert described["calibration"]["method"] == "platt"
    assert "Research software, not a medical device." in texts["notice"]
    assert f"uint8 (N, 1, {SIDE}, {SIDE})" in texts["preparation"]
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in shape] == ["N", 1, SIDE, SIDE]
    content = exported.read_bytes()
    for folder in (os.getcwd(), str(Path(torch.__file__).parent), str(ckpt.parent)):
        assert folder.encode() not in content


def pixels(model: Model) -> torch.Tensor:
    """The arrays as the model's graph takes them."""
    prepare = Preprocessing(model.image_size)
    return torch.from_numpy(np.stack([prepare.array(array).pixels for array in ARRAYS])[:, None])


def test_torch_export_holds_the_same_model_and_its_description(ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.pt2"
    done = xray("export", ckpt, "--out", out, "--format", "torch-export")
    assert f"Compared with torch on {PHANTOMS} phantoms (give --images" in done.stdout
    extra = {DESCRIPTION: ""}
    program = torch.export.load(out, extra_files=extra)
    assert json.loads(extra[DESCRIPTION])["findings"] == list(FINDINGS)
    model = load_model(ckpt, device="cpu")
    with torch.inference_mode():
        probabilities, logits = program.module()(pixels(model))
    expected = model.predict(ARRAYS).probabilities
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(logits.sigmoid().numpy(), expected, atol=1e-5)
    assert os.getcwd().encode() not in out.read_bytes()


# -- parity ----------------------------------------------------------------------------------------


class Wrong(TorchGraph):
    """A graph one of whose answers is another."""

    apart = 2 * MOST_APART

    def answers(
        self, pixels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        probabilities, logits = super().answers(pixels)
        logits[-1, 3] += self.apart
        return probabilities, logits


def test_a_graph_that_answers_otherwise_is_refused_and_not_written(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TorchGraph", Wrong)
    with pytest.raises(RunFailedError, match="answers otherwise than torch"):
        export(ckpt, tmp_path / "m.pt2", format="torch-export")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_number_is_as_far_apart_as_can_be(ckpt: Path) -> None:
    model = Answering(restore(read_checkpoint(ckpt), source=ckpt, channels_last=False)).eval()
    graph = Wrong(model, {})
    one = np.zeros((1, 1, SIDE, SIDE), dtype=np.uint8)
    assert differences(model, graph, one)[1] == pytest.approx(2 * MOST_APART, rel=0.01)
    graph.apart = float("nan")
    assert differences(model, graph, one)[1] == float("inf")


def test_images_are_compared_where_they_can_be_read(ckpt: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for place, array in enumerate(ARRAYS):
        Image.fromarray(array).save(folder / f"{place}.png")
    (folder / "notes.txt").write_text("no image")
    options = ["--format", "torch-export", "--images", folder]
    done = xray("export", ckpt, "--out", tmp_path / "m.pt2", *options)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"^Compared with torch on 5 images: probabilities differ by at most \d\.\de-\d\d, logits "
        r"by \d\.\de-\d\d$",
        done.stdout,
        re.MULTILINE,
    )
    assert "Files that are no readable images, and left out: 1\n" in done.stdout
    assert f"Written: {tmp_path}/m.pt2" in done.stdout


# -- predicting from the file ----------------------------------------------------------------------

PREDICT = """
import sys
from xray_lightning.cli.main import app
try:
    app(["predict", *sys.argv[1:]])
except SystemExit as ended:
    heavy = {"torch", "torchvision", "lightning"} & sys.modules.keys()
    sys.exit(f"imported {heavy}" if heavy else ended.code)
"""


def test_predict_takes_the_file_without_importing_torch(
    ckpt: Path, exported: Path, tmp_path: Path
) -> None:
    for place, array in enumerate(ARRAYS):
        Image.fromarray(array).save(tmp_path / f"{place}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, exported, tmp_path, "--out", tmp_path / "found.csv"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "found.csv").read_text())))
    assert [row["status"] for row in rows].count("ok") == 5
    assert sum("neither PNG, JPEG nor DICOM" in row["reason"] for row in rows) == 1
    expected = load_model(ckpt, device="cpu").predict(tmp_path / "3.png")
    row = next(row for row in rows if row["path"].endswith("3.png"))
    for place, finding in enumerate(FINDINGS):
        given = float(row[f"prob_{finding}"])
        assert given == pytest.approx(float(expected.probabilities[0, place]), abs=1e-5)


def test_several_files_are_averaged_as_their_checkpoints_are(
    ckpt: Path, exported: Path, tmp_path: Path
) -> None:
    other = checkpoint(tmp_path / "other.ckpt", seed=5)
    export(other, tmp_path / "other.onnx", format="onnx")
    for average in ("probabilities", "logits"):
        ours = load_model([ckpt, other], device="cpu", average=average)
        theirs = load_model([exported, tmp_path / "other.onnx"], device="cpu", average=average)
        np.testing.assert_allclose(
            theirs.predict(ARRAYS).probabilities, ours.predict(ARRAYS).probabilities, atol=1e-5
        )
        assert theirs.operating_points is None


# -- what is refused -------------------------------------------------------------------------------


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as told:
        load_model(path, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_files_that_are_no_exported_model_are_refused_by_name(
    exported: Path, tmp_path: Path
) -> None:
    assert refused(tmp_path / "no.onnx").endswith(
        "no.onnx does not exist; give the path of an .onnx file"
    )
    (tmp_path / "empty.onnx").touch()
    assert "is no ONNX model that onnxruntime can run" in refused(tmp_path / "empty.onnx")
    content = exported.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    assert "is no ONNX model that onnxruntime can run" in refused(tmp_path / "cut.onnx")
    proto = onnx.load(exported)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    assert "it was not written by xray export" in refused(tmp_path / "bare.onnx")
    proto = onnx.load(exported)
    for entry in proto.metadata_props:
        if entry.key == "schema_version":
            entry.value = "7"
    onnx.save(proto, tmp_path / "newer.onnx")
    assert f"has schema_version 7, and this version reads {SCHEMA_VERSION}" in refused(
        tmp_path / "newer.onnx"
    )
    assert "precision=bf16-mixed is of checkpoints" in refused(exported, precision="bf16-mixed")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "this onnxruntime runs on CPUs alone" in refused(exported, device="cuda")


def test_checkpoints_and_exported_models_do_not_mix(ckpt: Path, exported: Path) -> None:
    with pytest.raises(UserError, match=r"give \.ckpt files alone, or \.onnx files alone"):
        load_model([ckpt, exported])


@pytest.mark.parametrize(
    "out, format, told",
    [
        ("m.onnx", "onnxx", "--format onnxx is unknown; choose one of onnx, torch-export"),
        ("m.pt", "onnx", "a file of --format onnx ends in .onnx"),
        ("m.onnx", "torch-export", "a file of --format torch-export ends in .pt2"),
        ("no/m.onnx", "onnx", "there is no folder"),
    ],
)
def test_a_place_or_format_that_cannot_be_is_refused_before_the_work(
    out: str, format: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        check_out(tmp_path / out, format=format)
    assert told in str(error.value)


def test_a_folder_without_images_is_refused_and_nothing_is_written(
    ckpt: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    options = ["--format", "torch-export", "--images", tmp_path / "notes.txt"]
    done = xray("export", ckpt, "--out", tmp_path / "m.pt2", *options)
    assert isinstance(done.exception, UserError)
    assert "none of 1 files could be read as an image" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
