"""An exported model answers as its checkpoint does, says what it is, and needs no torch."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from checkpoints import SIDE, checkpoint
from conftest import Xray, environment
from PIL import Image
from typer.testing import CliRunner

from xray_lightning.cli.main import app
from xray_lightning.deploy import export as exporting
from xray_lightning.deploy.export import (
    DESCRIPTION,
    MOST_APART,
    PHANTOMS,
    Answering,
    Answers,
    Graph,
    check_out,
    differences,
    export,
)
from xray_lightning.deploy.int8 import CALIBRATION_IMAGES
from xray_lightning.deploy.model import Model, load_model
from xray_lightning.deploy.onnx_backend import SCHEMA_VERSION, OnnxMember, from_texts
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint, restore

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

ARRAYS = np.random.default_rng(0).integers(0, 256, (5, 40, 50), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "one.onnx"
    export(ckpt, out, format="onnx")
    return out


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
    path = checkpoint(
        tmp_path / "m.ckpt",
        seed=1,
        model={"arch": "resnet18", "hidden": [16], "dropout": 0.5},
        normalize="dataset",
        state={"normalize.mean": torch.tensor(0.31), "normalize.std": torch.tensor(0.17)},
    )
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
    said = from_texts(texts)
    assert tuple(said["findings"]) == FINDINGS
    assert said["schema_version"] == SCHEMA_VERSION
    assert said["split_sha256"] == "ab" * 32
    assert said["thresholds"]["Mass"] == pytest.approx(0.3 + 0.03 * FINDINGS.index("Mass"))
    assert said["calibration"]["method"] == "platt"
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


def test_torch_export_holds_the_same_model_and_its_description(
    ckpt: Path, tmp_path: Path, xray: Xray
) -> None:
    out = tmp_path / "one.pt2"
    _, told, _ = xray("export", ckpt, "--out", out, "--format", "torch-export")
    said = (
        rf"^Compared with torch on {PHANTOMS} phantoms \(give --images to compare on real ones\): "
    )
    small = r"\d\.\de-\d\d"
    assert re.match(f"{said}probabilities differ by at most {small}, logits by {small}\n", told)
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


def graph(model: Answering, described: Any, apart: float = 0.0) -> Graph:
    """What answers as torch does, but for one logit."""

    def answers(pixels: npt.NDArray[np.uint8]) -> Answers:
        with torch.inference_mode():
            probabilities, logits = model(torch.from_numpy(pixels))
            logits[-1, 3] += apart
        return probabilities.numpy(), logits.numpy()

    return Graph(b"graph", answers)


def test_a_graph_that_answers_otherwise_is_refused_and_not_written(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "torch_graph", partial(graph, apart=2 * MOST_APART))
    with pytest.raises(RunFailedError, match="answers otherwise than torch"):
        export(ckpt, tmp_path / "m.pt2", format="torch-export")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_number_is_as_far_apart_as_can_be(ckpt: Path) -> None:
    model = Answering(restore(read_checkpoint(ckpt), source=ckpt, channels_last=False)).eval()
    one = np.zeros((1, 1, SIDE, SIDE), dtype=np.uint8)
    for apart, told in ((2 * MOST_APART, 2 * MOST_APART), (float("nan"), float("inf"))):
        _, logits = differences(model, graph(model, {}, apart), one)
        assert logits == pytest.approx(told, rel=0.01)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of the arrays as files, and one that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for place, array in enumerate(ARRAYS):
        Image.fromarray(array).save(folder / f"{place}.png")
    (folder / "notes.png").write_text("no image")
    return folder


def test_images_are_compared_where_they_can_be_read(
    ckpt: Path, images: Path, tmp_path: Path, xray: Xray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "torch_graph", graph)
    options = ["--format", "torch-export", "--images", images]
    code, out, err = xray("export", ckpt, "--out", tmp_path / "m.pt2", *options)
    assert code == 0, err
    compared = "on 5 images: probabilities differ by at most 0.0e+00, logits by 0.0e+00\n"
    assert f"Compared with torch {compared}" in out
    assert "Files that are no readable images, and left out: 1\n" in out
    assert f"Written: {tmp_path}/m.pt2" in out


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
    exported: Path, images: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, exported, images, "--out", tmp_path / "found.csv"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "found.csv").read_text())))
    assert [row["status"] for row in rows].count("ok") == 5
    assert sum("neither PNG, JPEG nor DICOM" in row["reason"] for row in rows) == 1


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


def described(exported: Path, to: Path, **texts: str) -> Path:
    """A copy of an exported model with other metadata; without any where none are given."""
    proto = onnx.load(exported)
    kept = {entry.key: entry.value for entry in proto.metadata_props} | texts if texts else {}
    del proto.metadata_props[:]
    for key, value in kept.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, to)
    return to


def test_files_that_are_no_exported_model_are_refused_by_name(
    exported: Path, tmp_path: Path
) -> None:
    told = refused(tmp_path / "no.onnx")
    assert told.endswith("no.onnx does not exist; give the path of an .onnx file")
    content = exported.read_bytes()
    for damaged in (b"", content[: len(content) // 2]):
        (tmp_path / "cut.onnx").write_bytes(damaged)
        assert "is no ONNX model that onnxruntime can run" in refused(tmp_path / "cut.onnx")
    bare = described(exported, tmp_path / "bare.onnx")
    assert "it was not written by xray export" in refused(bare)
    for texts in ({"precision": "kept"}, {"image_size": '"\\n"'}):
        odd = described(exported, tmp_path / "odd.onnx", **texts)
        odd.write_bytes(odd.read_bytes().replace(b"kept", b"\xff\xfe\xff\xfe"))
        assert "export it again" in refused(odd)
    model = onnx.load_from_string(content)
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[-1].name = "further"
    model.graph.node.add(op_type="Identity", input=["logits"], output=["further"])
    unnamed = tmp_path / "unnamed.onnx"
    unnamed.write_bytes(model.SerializeToString().replace(b"further", b"\xff\xffrther"))
    assert "its inputs and outputs are not those of xray export" in refused(unnamed)
    newer = described(exported, tmp_path / "newer.onnx", schema_version="7")
    assert f"has schema_version 7, and this version reads {SCHEMA_VERSION}" in refused(newer)
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
    ckpt: Path, tmp_path: Path, xray: Xray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "torch_graph", graph)
    (tmp_path / "notes.txt").write_text("no image")
    options = ["--format", "torch-export", "--images", tmp_path / "notes.txt"]
    code, _, err = xray("export", ckpt, "--out", tmp_path / "m.pt2", *options)
    assert code == 2
    assert "none of 1 files could be read as an image" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# -- int8 ------------------------------------------------------------------------------------------


def auroc(model: Path, phantoms: Path) -> float:
    """Macro AUROC on the official test images, by `load_model` and `Evaluator`."""
    table = pd.read_csv(phantoms / "Data_Entry_2017_v2020.csv", index_col=False)
    names = (phantoms / "test_list.txt").read_text().split()
    rows = table.set_index("Image Index").loc[names]
    loaded = load_model(model, device="cpu")
    found = loaded.predict([phantoms / "images" / name for name in names])
    predictions = pd.DataFrame(
        {"image": names, "patient_id": rows["Patient ID"].astype(str).to_numpy()}
    )
    for place, finding in enumerate(loaded.findings):
        labels = [finding in text.split("|") for text in rows["Finding Labels"]]
        predictions[f"prob_{finding}"] = found.probabilities[:, place]
        predictions[f"label_{finding}"] = np.array(labels, dtype=int)
    return float(Evaluator(resamples=0, seed=0)(predictions)["auroc_macro"])


@pytest.fixture(scope="module")
def quantized(
    ckpt: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """That checkpoint in int8, and what the command has told."""
    out = tmp_path_factory.mktemp("quantized") / "small.onnx"
    arguments = ("export", ckpt, "--images", phantoms, "--out", out, "--int8", phantoms)
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return out, done.stdout


def test_int8_is_smaller_close_and_says_what_it_costs(
    exported: Path, quantized: tuple[Path, str], phantoms: Path
) -> None:
    small, told = quantized
    assert small.stat().st_size < 0.3 * exported.stat().st_size
    stored = {item.data_type for item in onnx.load(small).graph.initializer if item.dims}
    assert onnx.TensorProto.INT8 in stored

    own = OnnxMember.read(small).described
    assert own["precision"] == "int8"
    said = own["int8"]
    assert said["auroc_macro"] == pytest.approx(auroc(small, phantoms), abs=1e-6)
    assert said["auroc_macro_float32"] == pytest.approx(auroc(exported, phantoms), abs=1e-6)
    change = said["auroc_macro"] - said["auroc_macro_float32"]
    assert said["auroc_macro_change"]["value"] == pytest.approx(change)
    assert 0 < said["calibration_images"] < CALIBRATION_IMAGES
    assert f"{said['auroc_macro']:.4f}, in float32 {said['auroc_macro_float32']:.4f}" in told
    assert "95 % interval" in told
    # Nothing else is told or kept differently.
    other = OnnxMember.read(exported).described
    same = other.keys() - {"precision"}
    assert {key: own[key] for key in same} == {key: other[key] for key in same}

    paths = sorted((phantoms / "images").iterdir())[:20]
    one, two = (load_model(path, device="cpu").predict(paths) for path in (exported, small))
    apart = np.abs(one.probabilities - two.probabilities)
    assert 0 < apart.max() < 0.1


def test_any_number_of_images_goes_through_int8(quantized: tuple[Path, str]) -> None:
    model = load_model(quantized[0], device="cpu")
    together = model.predict(ARRAYS).probabilities
    alone = np.concatenate([model.predict(one).probabilities for one in ARRAYS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--out", "a.pt2", "--format", "torch-export", "--int8", "P"), "--int8 is of --format"),
        (("--out", "a.onnx", "--int8", "absent"), "absent"),
        (("--out", "a.onnx", "--int8", "empty"), "empty"),
    ],
)
def test_what_cannot_be_quantized_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...],
    message: str,
    ckpt: Path,
    phantoms: Path,
    xray: Xray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "onnx_graph", graph)
    (tmp_path / "empty").mkdir()
    given = [str(phantoms) if word == "P" else word for word in arguments]
    code, _, err = xray("export", ckpt, *given)
    assert code == 2
    assert err.startswith("xray: error: ")
    assert err.count("\n") == 1
    assert message in err
    shutil.rmtree(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".onnx", ".pt2")] == []


def test_xray_info_says_what_an_exported_model_is_and_what_int8_has_cost(
    ckpt: Path, exported: Path, quantized: tuple[Path, str], xray: Xray
) -> None:
    small, _ = quantized
    code, out, err = xray("info", exported, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    sha256 = hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert told["exported"] == {
        "checkpoint_sha256": sha256,
        "precision": "float32",
        "int8": None,
    }
    of_checkpoint = json.loads(xray("info", ckpt, "--json")[1])
    for key in ("operating_points", "calibration"):
        assert told[key] == of_checkpoint[key]
    assert told["model"]["findings"] == of_checkpoint["model"]["findings"]
    assert told["training"]["split_sha256"] == of_checkpoint["training"]["split_sha256"]
    assert told["metrics"] is None
    assert "ask its checkpoint" in told["metrics_unknown"]

    said = OnnxMember.read(small).described["int8"]
    assert json.loads(xray("info", small, "--json")[1])["exported"]["int8"] == said
    for arguments in (("info", small), ("info", small, "--card")):
        code, out, err = xray(*arguments)
        assert (code, err) == (0, "")
        flowed = " ".join(out.split())
        assert f"int8: macro AUROC {said['auroc_macro']:.4f} on {said['images']} test" in flowed
        assert sha256 in flowed


@pytest.mark.parametrize("int8", ["none", {}, {"auroc_macro_change": {"value": "x", "ci95": [1]}}])
def test_a_damaged_account_of_int8_is_one_line(
    int8: object, exported: Path, xray: Xray, tmp_path: Path
) -> None:
    one = described(exported, tmp_path / "one.onnx", int8=json.dumps(int8))
    code, out, err = xray("info", one)
    assert (code, out) == (2, "")
    assert "one.onnx: its metadata are damaged (int8)" in err


# -- weights alone ---------------------------------------------------------------------------------


def test_images_are_refused_where_no_outputs_are_compared(
    ckpt: Path, tmp_path: Path, xray: Xray
) -> None:
    out = tmp_path / "one.safetensors"
    options = ("--format", "safetensors", "--images", tmp_path)
    code, _, error = xray("export", ckpt, "--out", out, *options)
    assert (code, out.exists()) == (2, False)
    assert "--images: --format safetensors compares no graph's outputs; leave it out" in error


def test_weights_without_pickle_take_the_checkpoints_place_in_every_command(
    ckpt: Path, tmp_path: Path, xray: Xray
) -> None:
    out = tmp_path / "one.safetensors"
    code, told, _ = xray("export", ckpt, "--out", out, "--format", "safetensors")
    assert code == 0
    assert told.startswith(f"Written: {out}, ")
    expected = load_model(ckpt, device="cpu").predict(ARRAYS)
    found = load_model(out, device="cpu").predict(ARRAYS)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    code, told, _ = xray("info", out, "--json")
    _, told_of_ckpt, _ = xray("info", ckpt, "--json")
    same, other = json.loads(told), json.loads(told_of_ckpt)
    for key in ("model", "operating_points", "calibration", "split_sha256"):
        assert same.get(key) == other.get(key)
    code, _, error = xray("export", out, "--out", tmp_path / "two.onnx")
    assert code == 0, error
    Image.fromarray(ARRAYS[0]).save(tmp_path / "one.png")
    for model in (ckpt, out):
        table = tmp_path / f"{model.suffix[1:]}.csv"
        code, _, error = xray("predict", model, tmp_path / "one.png", "--out", table)
        assert code == 0, error
    assert table.read_bytes() == (tmp_path / "ckpt.csv").read_bytes()
