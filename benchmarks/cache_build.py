"""Speed of building a cache relative to decoding alone, with the same decoder and threads.

    python -m benchmarks.cache_build --data data/nih/images --repeats 7 --json cache_build.json

The arms take turns: `build` (decode, check, write, fsync and record), `decode` (the same images in
the same kind of pool, the results thrown away), and `decode_processes` (the same in processes, to
choose between threads and processes). Goal: build / decode of at least 0.9.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.results import record, spread, take_turns
from xray_lightning.data.cache import ImageSet
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.decode_resize import read_gray
from xray_lightning.data.image_files import IMAGE_SUFFIXES
from xray_lightning.files import write_atomically
from xray_lightning.workers import threads

SIZE = 224


def main() -> None:
    options = arguments()
    files = (path for path in options.data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    images = ImageSet(map(str, files))
    if not images:
        sys.exit(f"{options.data} holds no image")
    with (
        ThreadPoolExecutor(threads()) as in_threads,
        ProcessPoolExecutor(threads()) as in_processes,
        tempfile.TemporaryDirectory(dir=options.cache_dir) as folder,
    ):
        arms: dict[str, Callable[[], float]] = {
            "build": lambda: build(images, Path(tempfile.mkdtemp(dir=folder))),
            "decode": lambda: decode(images, in_threads),
            "decode_processes": lambda: decode(images, in_processes),
        }
        turns = take_turns(arms, options.repeats, title="cache", unit="images/s")
    result = summary(turns, images=len(images))
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        write_atomically(options.json, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cache-dir", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def build(images: ImageSet, folder: Path) -> float:
    """Images a second of building a cache of them."""
    start = perf_counter()
    ensure_cache(images, image_size=SIZE, cache_dir=folder)
    return len(images) / (perf_counter() - start)


def read(path: str) -> None:
    read_gray(path, SIZE)


def decode(images: ImageSet, pool: Executor) -> float:
    """Images a second of decoding them and keeping nothing."""
    start = perf_counter()
    for _ in pool.map(read, images.paths, chunksize=4):
        pass
    return len(images) / (perf_counter() - start)


def summary(turns: list[dict[str, float]], *, images: int) -> dict[str, Any]:
    """Median and spread of the rates, and of their ratios within a turn."""

    rates = {arm: spread([turn[arm] for turn in turns]) for arm in turns[0]}
    ratios = {
        "build_to_decode": spread([turn["build"] / turn["decode"] for turn in turns]),
        "threads_to_processes": spread(
            [turn["decode"] / turn["decode_processes"] for turn in turns]
        ),
    }
    rows = [[name, *found.values()] for name, found in (rates | ratios).items()]
    table = {
        "title": f"Building a cache of {images} images at {SIZE} px",
        "columns": ["images/s; ratio within a turn", "median", "lowest", "highest"],
        "rows": rows,
        "notes": [f"{len(turns)} turns of each arm, in alternating order."],
    }
    return record("cache_build", table=table) | {
        "images": images,
        "image_size": SIZE,
        "repeats": len(turns),
        "turns": turns,
        "images_per_second": rates,
        "ratios": ratios,
    }


if __name__ == "__main__":
    main()
