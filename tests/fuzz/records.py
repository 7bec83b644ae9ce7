"""What a run or a cache says of itself under spoiled JSON and YAML: its record, heads, overrides.

python -m fuzz results --minutes 10
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import numpy as np
from conftest import REPOSITORY
from PIL import Image

import train
from fuzz.fuzzing import Fuzzer, altered, pieced, text_spoiled
from fuzz.manifest import told
from xray_lightning.data.cache import CHUNK, CacheManifest, ImageSet, condition, key_of
from xray_lightning.data.cache_build import CacheBeside, ensure_cache
from xray_lightning.data.decode_resize import DECODER_VERSION
from xray_lightning.errors import UserError
from xray_lightning.runs.run_folder import DamagedResultsError, Provenance, read_run

# -- results.json ----------------------------------------------------------------------------------


def pruned(value: Any, most: int = 2) -> Any:
    """The same with the first few of all that is listed or kept by finding."""
    if isinstance(value, list):
        return [pruned(item) for item in value[:most]]
    if isinstance(value, dict):
        few = list(value.items())
        few = few[:most] if "Mass" in value else few
        return {key: pruned(item) for key, item in few}
    return value


def results(random: Random) -> Iterator[bytes]:
    """Spoiled records of a tested run."""
    sample = json.loads((REPOSITORY / "tests" / "results_sample.json").read_text(encoding="utf-8"))
    whole = pruned(sample)
    text = json.dumps(whole).encode()
    while True:
        if random.random() < 0.3:
            yield text_spoiled(random, text, [text])
            continue
        spoilt = whole
        for _ in range(random.choice((1, 1, 2, 5))):
            spoilt = altered(random, spoilt)
        yield as_json(spoilt)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def judge_results(path: Path) -> str:
    provenance = Provenance.of_folder(path.parent)
    for name in ("config", "data", "subgroups", "tested_only", "prevalences", "metadata_model"):
        getattr(provenance, name)
    for name in ("combined_model", "thresholds", "findings"):
        getattr(provenance, name)
    try:
        provenance.bootstrap(None, None)
    except UserError as error:
        told(error)
    try:
        run = read_run(path.parent)
    except DamagedResultsError as error:
        told(error)
        return "refused"
    assert run.best_epoch is None or run.best_epoch >= 1
    assert all(count >= 0 for count in run.images.values())
    assert isinstance(run.findings, tuple)
    return "read"


# -- cache -----------------------------------------------------------------------------------------

SIDE = 8
BREAK = b"\0"  # between the two files of an input


@cache
def cached() -> tuple[Path, ImageSet, np.ndarray[Any, np.dtype[np.uint8]]]:
    """The folder of a whole cache of a few images, the images, and their pixels."""
    folder = Path(mkdtemp())
    paths = [str(folder / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((SIDE, SIDE), 40 * number, np.uint8)).save(path)
    images = ImageSet(paths)
    built = ensure_cache(images, image_size=SIDE, cache_dir=folder / "cache")
    return built.folder, images, np.load(built.folder / "pixels.npy")


def caches(random: Random) -> Iterator[bytes]:
    """Spoiled manifests and lists of sources; those of the manifest's digest as often as not."""
    folder, _, _ = cached()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    sources = json.loads((folder / "sources.json").read_bytes())
    texts = [as_json(manifest), as_json(sources)]
    while True:
        one, other = texts
        what = random.random()
        if what < 0.2:
            one = text_spoiled(random, one, texts)
        elif what < 0.6:
            one = as_json(altered(random, manifest))
        else:
            spoilt = altered(random, sources)
            other = text_spoiled(random, other, texts) if what < 0.7 else as_json(spoilt)
            one = as_json(manifest | digests(other, manifest))
        yield one + BREAK + other


def digests(sources: bytes, manifest: Mapping[str, Any]) -> dict[str, str]:
    digest = hashlib.sha256(sources).hexdigest()
    key = key_of(digest, manifest["image_size"], DECODER_VERSION)
    return {"sources_sha256": digest, "key": key}


def judge_cache(path: Path) -> str:
    whole, images, pixels = cached()
    folder = path.parent
    manifest, _, sources = path.read_bytes().partition(BREAK)
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "sources.json").write_bytes(sources)
    if not (folder / "pixels.npy").exists():
        shutil.copy(whole / "pixels.npy", folder)
    found = condition(folder, whole.name)
    if found.fault is None:
        assert CacheManifest.read(folder).finished == [0]
        assert CacheManifest.read(folder).images == len(pixels)
    try:
        read = CacheManifest.read(folder)
        assert len(read.crc32) == -(-read.images // CHUNK)
        beside = CacheBeside(folder, read, images)
        beside.holds(0)
        lends = "lends"
    except (OSError, ValueError):  # as the builder takes them
        lends = "lends nothing"
    return f"{'refused' if found.fault else 'whole'}, {lends}"


# -- overrides of a run ----------------------------------------------------------------------------

OVERRIDES = (
    b"- strategy=single\n- trainer.max_epochs=2\n- data.root=/a b/c\n- 'name=x'\n",
    b'- +callbacks.x={_target_: a.b, c: [1, 2]}\n- ~logger\n- data.columns.image="File"\n',
    b"- model=resnet50\n- seed=1\n",
)
PIECES = (
    *(b"hydra.run.dir=x", b"- hydra/launcher=x\n", b"--multirun", b"-m", b"a=${oc.env:HOME}"),
    *(b"choice(1,2)", b"a=[1,{b:c}]", b"range(1,9)", b"glob(*)", b"a@b:c=d", b"+a=", b"++", b"~"),
    *(
        b"!!python/object/apply:os.getcwd []",
        b"&a [*a]",
        b"\\",
        b"'",
        b'"',
        b"{",
        b"]",
        b",",
        b"\n",
    ),
    *(b"- ", b"? ", b": ", b"\t", b"\0", b"\xe2\x80\xae", b"\xff", b"1: 2\n", b"- [a]\n", b"- 1\n"),
)


def overrides(random: Random) -> Iterator[bytes]:
    """Spoiled lists of overrides."""
    return pieced(random, OVERRIDES, PIECES)


def judge_overrides(path: Path) -> str:
    hydra = path.parent / ".hydra"
    hydra.mkdir(exist_ok=True)
    path.replace(hydra / "overrides.yaml")
    shutil.copy(hydra / "overrides.yaml", hydra / "hydra.yaml")
    assert isinstance(train.changed_groups(path.parent, ["model=resnet50"]), tuple)
    try:
        texts = train.earlier_overrides(path.parent)
    except UserError as error:
        told(error)
        return "refused"
    assert all(isinstance(text, str) and not text.startswith("-") for text in texts)
    assert not any(train.key_of(text).split(".")[0] == "hydra" for text in texts)
    return "read"


RESULTS = Fuzzer(results, judge_results, file="results.json")
CACHE = Fuzzer(caches, judge_cache)
OVERRIDDEN = Fuzzer(overrides, judge_overrides, file="overrides.yaml")
