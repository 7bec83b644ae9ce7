"""Decoders of radiographs side by side: a file to 224 x 224 gray, in one thread and in two.

    python -m benchmarks.decoders --data data/nih/images --repeats 7 --json benchmarks/decoders.json

The arms take turns. `pillow` is Pillow with its own check of the checksums, `ours` is `read_gray`;
the others decode as fast as they can, mostly without that check, and are resized by Pillow
(`opencv_area`: by OpenCV). Those that are not installed are left out: opencv-python-headless,
imagecodecs and kornia-rs are not among the project's dependencies. Each arm's pixels are compared
with Pillow's, at full size and at 224.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.results import PACKAGES, installed, record, spread, take_turns
from xray_lightning.data.decode_resize import Gray, decode_gray, read_gray, resize_gray
from xray_lightning.files import write_atomically

SIZE = 224
THREADS = (1, 2)
NEEDS = {"opencv": "cv2", "opencv_area": "cv2", "imagecodecs": "imagecodecs", "kornia": "kornia_rs"}
PEERS = ("isal", "opencv-python-headless", "imagecodecs", "kornia-rs")

Decoder = Callable[[Path], Gray]


def main() -> None:
    options = arguments()
    paths = sorted(options.data.rglob("*.png"))
    if not paths:
        sys.exit(f"{options.data} holds no PNG")
    arms = {
        name: decoder
        for name, decoder in ARMS.items()
        if name not in NEEDS or importlib.util.find_spec(NEEDS[name])
    }
    result = report(
        measure(arms, paths, options.repeats),
        pixels={name: difference(name, arms[name], paths) for name in arms},
        held={name: holds_the_lock(arms[name], options.large) for name in arms},
        images=len(paths),
    )
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        write_atomically(options.json, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of PNGs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--large", type=int, default=5000, help="side that shows who holds the GIL")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


# -- the arms: each decodes to gray, uint8 (H, W) --------------------------------------------------


def pillow(path: Path) -> Gray:
    data = path.read_bytes()
    PngImagePlugin.PngImageFile(BytesIO(data)).verify()
    return np.asarray(PngImagePlugin.PngImageFile(BytesIO(data)).convert("L"))


def opencv(path: Path) -> Gray:
    import cv2

    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def torchvision(path: Path) -> Gray:
    from torchvision.io import ImageReadMode, decode_png, read_file

    return decode_png(read_file(str(path)), ImageReadMode.GRAY)[0].numpy()


def imagecodecs(path: Path) -> Gray:
    from imagecodecs import png_decode

    return first_band(png_decode(path.read_bytes()))


def kornia(path: Path) -> Gray:
    from kornia_rs.image import Image as KorniaImage

    return first_band(KorniaImage.load(str(path)).numpy())


def first_band(pixels: Gray) -> Gray:
    """The first channel of an image; NIH's RGBA files hold the same gray in each colour."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])


ARMS: dict[str, Decoder] = {
    "pillow": pillow,
    "ours": decode_gray,
    "opencv": opencv,
    "opencv_area": opencv,
    "torchvision": torchvision,
    "imagecodecs": imagecodecs,
    "kornia": kornia,
}


def small(name: str, decoder: Decoder, path: Path) -> Gray:
    """The file at 224 x 224 as this arm makes it."""
    if name == "ours":
        return read_gray(path, SIZE)
    if name == "opencv_area":
        import cv2

        return cv2.resize(decoder(path), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return resize_gray(decoder(path), SIZE)


# -- what is measured ------------------------------------------------------------------------------


def measure(
    arms: dict[str, Decoder], paths: list[Path], repeats: int
) -> dict[int, list[dict[str, float]]]:
    """Milliseconds per image of each arm in each turn, by threads."""
    turns = {}
    for threads in THREADS:
        with ThreadPoolExecutor(threads) as pool:
            timed = {
                name: partial(milliseconds, partial(small, name, decoder), paths, pool)
                for name, decoder in arms.items()
            }
            turns[threads] = take_turns(timed, repeats, title=f"{threads} threads", unit="ms")
    return turns


def milliseconds(read: Callable[[Path], object], paths: list[Path], pool: Executor) -> float:
    """Mean milliseconds per image over all paths."""
    start = perf_counter()
    for _ in pool.map(read, paths):
        pass
    return (perf_counter() - start) / len(paths) * 1000


def difference(name: str, decoder: Decoder, paths: list[Path]) -> dict[str, float]:
    """Largest and mean absolute difference to Pillow, of whole images and of those at 224."""
    whole, reduced = [], []
    for path in paths:
        theirs = pillow(path)
        whole.append(np.abs(decoder(path).astype(int) - theirs))
        reduced.append(np.abs(small(name, decoder, path).astype(int) - resize_gray(theirs, SIZE)))
    return {
        "whole_max": max(int(values.max()) for values in whole),
        "whole_mean": round(float(np.mean([values.mean() for values in whole])), 4),
        "reduced_max": max(int(values.max()) for values in reduced),
        "reduced_mean": round(float(np.mean([values.mean() for values in reduced])), 4),
    }


def holds_the_lock(decoder: Decoder, side: int) -> float:
    """Longest pause of another thread while a large image is decoded, as a share of that time."""
    from tempfile import TemporaryDirectory

    noise = np.random.default_rng(0).integers(0, 4, (side, side), dtype=np.uint8)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        Image.fromarray(noise).save(path, compress_level=1)
        work = Thread(target=decoder, args=(path,))
        start = last = perf_counter()
        work.start()
        longest = 0.0
        while work.is_alive():
            sleep(0.0005)
            now = perf_counter()
            longest, last = max(longest, now - last), now
        return round(longest / (last - start), 2)


def report(
    turns: dict[int, list[dict[str, float]]],
    *,
    pixels: dict[str, dict[str, float]],
    held: dict[str, float],
    images: int,
) -> dict[str, Any]:
    """The record of the measurement, with its table."""

    arms = {
        name: {
            "milliseconds": {n: spread([turn[name] for turn in turns[n]]) for n in THREADS},
            "times_pillow": {
                n: spread([turn["pillow"] / turn[name] for turn in turns[n]]) for n in THREADS
            },
            "difference_to_pillow": pixels[name],
            "lock_held": held[name],
        }
        for name in pixels
    }
    rows: list[list[Any]] = []
    for name, found in arms.items():
        time, ratio, off = (
            found["milliseconds"],
            found["times_pillow"],
            found["difference_to_pillow"],
        )
        rows.append([name, time[1]["median"], time[2]["median"]])
        rows[-1] += [f"{ratio[n]['median']} ({ratio[n]['min']}-{ratio[n]['max']})" for n in THREADS]
        rows[-1] += [off["whole_max"], off["reduced_max"], off["reduced_mean"], found["lock_held"]]
    table = {
        "title": f"Decoding {images} PNGs to {SIZE} x {SIZE}",
        "columns": [
            "decoder",
            "ms/image, 1 thread",
            "2 threads",
            "times Pillow, 1 thread",
            "2 threads",
            "difference to Pillow, most",
            f"at {SIZE}, most",
            f"at {SIZE}, mean",
            "share of the time that it holds the GIL",
        ],
        "rows": rows,
        "notes": [
            f"{len(turns[1])} turns of each arm, in alternating order; the ratio is within a turn.",
        ],
    }
    content = record("decoders", table=table) | {
        "images": images,
        "image_size": SIZE,
        "repeats": len(turns[1]),
        "arms": arms,
    }
    content["machine"]["packages"] |= {
        name: number for name in PEERS if name not in PACKAGES and (number := installed(name))
    }
    return content


if __name__ == "__main__":
    main()
