"""onnxruntime beside torch: the same models, how far their answers lie apart, and how fast.

    python -m benchmarks.onnx_speed --data data/nih/images --json benchmarks/onnx_speed.json \
        runs/resnet18/checkpoints/best.ckpt runs/densenet121/checkpoints/best.ckpt

Each checkpoint is exported as `xray export` does it and compared with torch on up to 200 images.
With --int8 DIR it is exported in 8 bits, too, with ranges from the validation images of that data
set. Then all models run on the same batches, in turns, through the network of `xray predict`. Only
forward passes are timed; images are decoded beforehand. onnxruntime runs on the CPU, torch there or
on --accelerator.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.results import installed, record, spread, take_turns
from xray_lightning.data.decode_resize import read_gray
from xray_lightning.deploy.export import export
from xray_lightning.deploy.model import Model, load_model
from xray_lightning.deploy.predict import find_inputs
from xray_lightning.files import write_atomically

TORCH, FLOAT32, INT8 = "torch", "onnxruntime", "onnxruntime int8"


def main() -> None:
    options = arguments()
    paths = find_inputs([str(options.data)]).paths[: options.images]
    measured = [measure(checkpoint, paths, options) for checkpoint in options.checkpoints]
    text = json.dumps(result(measured, options), indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        write_atomically(options.json, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "cuda"), help="of torch")
    parser.add_argument("--int8", type=Path, metavar="DIR", help="a data set")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(checkpoint: Path, paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Parity and speed of one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        parity = export(checkpoint, out, format="onnx", images=paths)
        models = {
            TORCH: load_model(checkpoint, device=options.accelerator),
            FLOAT32: load_model(out, device="cpu"),
        }
        megabytes = {FLOAT32: parity.size / 1e6}
        if options.int8:
            made = export(checkpoint, out, format="onnx", images=paths, int8=options.int8)
            models[INT8] = load_model(out, device="cpu")
            megabytes[INT8] = made.size / 1e6
    described = models[TORCH].network.members[0].described
    size = described["image_size"]
    pixels = np.stack([read_gray(path, size) for path in paths])[:, None]
    models[TORCH].network.prepare()
    name = described["model"]["arch"] + ("_mlp" if described["model"].get("hidden") else "")
    arms = {arm: partial(rate, model, pixels, options.batch) for arm, model in models.items()}
    turns = take_turns(arms, options.repeats, title=name, unit="images/s")
    against = {FLOAT32: TORCH, INT8: FLOAT32}
    return {
        "model": name,
        "image_size": size,
        "images": parity.images,
        "largest_difference": {
            "probabilities": parity.probabilities,
            "logits": parity.logits,
        },
        "megabytes": megabytes,
        "images_per_second": {arm: spread([turn[arm] for turn in turns]) for arm in models},
        "ratios": {
            f"{arm} to {other}": spread([turn[arm] / turn[other] for turn in turns])
            for arm, other in against.items()
            if arm in models
        },
        "turns": turns,
    }


def rate(model: Model, pixels: npt.NDArray[np.uint8], batch: int) -> float:
    """Images a second."""
    start = perf_counter()
    for first in range(0, len(pixels), batch):
        model.network.probabilities(pixels[first : first + batch])
    return len(pixels) / (perf_counter() - start)


def result(measured: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    arms, ratios = (list(measured[0][key]) for key in ("images_per_second", "ratios"))
    rows = [
        [
            one["model"],
            f"{one['largest_difference']['probabilities']:.1e}",
            f"{one['largest_difference']['logits']:.1e}",
            *(f"{one['images_per_second'][arm]['median']:.1f}" for arm in arms),
            *(
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**one["ratios"][ratio])
                for ratio in ratios
            ),
            " / ".join(f"{size:.1f}" for size in one["megabytes"].values()),
        ]
        for one in measured
    ]
    size = measured[0]["image_size"]
    title = f"onnxruntime and torch on a CPU: {size} px, batch {options.batch}"
    if options.accelerator == "cuda":
        title = f"onnxruntime on a CPU, torch on CUDA: {size} px, batch {options.batch}"
    table = {
        "title": title,
        "columns": [
            "model",
            "probabilities apart",
            "logits apart",
            *(f"{arm}, images/s" for arm in arms),
            *ratios,
            " / ".join(f"{arm}, MB" for arm in arms if arm != TORCH),
        ],
        "rows": rows,
        "notes": [
            f"Largest differences in float32 on {measured[0]['images']} images; {options.repeats} "
            "turns of each arm in alternating order, ratios within a turn.",
            f"onnxruntime {installed('onnxruntime')}, onnx {installed('onnx')}; torch with "
            "channels-last convolutions, as xray predict runs it.",
        ],
    }
    return record("onnx_speed", table=table, accelerator=options.accelerator) | {"models": measured}


if __name__ == "__main__":
    main()
