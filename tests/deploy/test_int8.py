"""A model in int8: smaller, close to float32, and honest about what it costs."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkpoints import checkpoint
from conftest import Xray
from PIL import Image

from xray_lightning.deploy.export import export
from xray_lightning.deploy.int8 import CALIBRATION_IMAGES
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.onnx_backend import OnnxMember
from xray_lightning.evaluation.metrics import Evaluator

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")


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
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("ckpt") / "one.ckpt")


def test_int8_is_smaller_close_and_says_what_it_costs(
    ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    arguments = ("export", ckpt, "--images", phantoms)
    assert xray(*arguments, "--out", "whole.onnx")[0] == 0
    code, out, err = xray(*arguments, "--out", "int8.onnx", "--int8", phantoms)
    assert code == 0, err
    whole, small = tmp_path / "whole.onnx", tmp_path / "int8.onnx"
    assert small.stat().st_size < 0.3 * whole.stat().st_size
    stored = {item.data_type for item in onnx.load(small).graph.initializer if item.dims}
    assert onnx.TensorProto.INT8 in stored

    described = OnnxMember.read(small).described
    assert described["precision"] == "int8"
    said = described["int8"]
    assert said["auroc_macro"] == pytest.approx(auroc(small, phantoms), abs=1e-6)
    assert said["auroc_macro_float32"] == pytest.approx(auroc(whole, phantoms), abs=1e-6)
    change = said["auroc_macro"] - said["auroc_macro_float32"]
    assert said["auroc_macro_change"]["value"] == pytest.approx(change)
    assert 0 < said["calibration_images"] < CALIBRATION_IMAGES
    assert f"{said['auroc_macro']:.4f}, in float32 {said['auroc_macro_float32']:.4f}" in out
    assert "95 % interval" in out
    # Nothing else is told or kept differently.
    other = OnnxMember.read(whole).described
    same = other.keys() - {"precision"}
    assert {key: described[key] for key in same} == {key: other[key] for key in same}

    paths = sorted((phantoms / "images").iterdir())[:20]
    one, two = (load_model(path, device="cpu").predict(paths) for path in (whole, small))
    apart = np.abs(one.probabilities - two.probabilities)
    assert 0 < apart.max() < 0.1


def test_any_number_of_images_goes_through_int8(ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.onnx"
    export(ckpt, out, format="onnx", int8=phantoms)
    pixels = np.stack(
        [
            np.asarray(Image.open(path).convert("L"))
            for path in sorted((phantoms / "images").iterdir())[:5]
        ]
    )
    model = load_model(out, device="cpu")
    together = model.predict(pixels).probabilities
    alone = np.concatenate([model.predict(one).probabilities for one in pixels])
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
    arguments: tuple[str, ...], message: str, ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
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
    ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    export(ckpt, tmp_path / "whole.onnx", format="onnx")
    export(ckpt, tmp_path / "small.onnx", format="onnx", int8=phantoms)
    code, out, err = xray("info", "whole.onnx", "--json")
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

    said = OnnxMember.read(tmp_path / "small.onnx").described["int8"]
    assert json.loads(xray("info", "small.onnx", "--json")[1])["exported"]["int8"] == said
    for arguments in (("info", "small.onnx"), ("info", "small.onnx", "--card")):
        code, out, err = xray(*arguments)
        assert (code, err) == (0, "")
        flowed = " ".join(out.split())
        assert f"int8: macro AUROC {said['auroc_macro']:.4f} on {said['images']} test" in flowed
        assert sha256 in flowed


@pytest.mark.parametrize("int8", ["none", {}, {"auroc_macro_change": {"value": "x", "ci95": [1]}}])
def test_a_damaged_account_of_int8_is_one_line(
    int8: object, ckpt: Path, xray: Xray, tmp_path: Path
) -> None:
    export(ckpt, tmp_path / "one.onnx", format="onnx")
    model = onnx.load(tmp_path / "one.onnx")
    model.metadata_props.add(key="int8", value=json.dumps(int8))
    onnx.save(model, tmp_path / "one.onnx")
    code, out, err = xray("info", "one.onnx")
    assert (code, out) == (2, "")
    assert "one.onnx: its metadata are damaged (int8)" in err
