"""The same fuzzers guided by coverage, through atheris, which is to be installed for it:

    python -m fuzz.guided decoder --minutes 10 --seed 0 --keep fuzz_guided

with the folders tests/ and tests/data on PYTHONPATH. An input that fails, takes over 5 s or over
2 GB ends it, and is kept. An input of the manifest reader is a byte for the kind of the data set,
and its first table.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["xray_lightning.data", "pydicom"]):
    from fuzz import decoder, manifest

FIRST = 500  # inputs of the plain fuzzer that the corpus begins with


def judged_image(content: bytes, folder: Path) -> None:
    path = folder / decoder.NAME
    path.write_bytes(content)
    decoder.judge(path)


KINDS: tuple[Callable[[], manifest.Case], ...] = (
    lambda: manifest.nih(Random(0), v2020=True),
    lambda: manifest.nih(Random(0), v2020=False),
    lambda: manifest.ai4m(Random(0)),
    lambda: manifest.own(Random(0), labels=False),
    lambda: manifest.own(Random(0), labels=True),
)


def judged_table(content: bytes, folder: Path) -> None:
    case = KINDS[content[0] % len(KINDS) if content else 0]()
    case.files[next(iter(case.files))] = content[1:]
    plain = asdict(case)
    plain["files"] = {name: data.decode("latin-1") for name, data in plain["files"].items()}
    path = folder / manifest.NAME
    path.write_text(json.dumps(plain))
    manifest.judge(path)


def tables(random: Random) -> Iterator[bytes]:
    while True:
        for kind, made in enumerate(KINDS):
            table = next(iter(made().files.values()))
            yield bytes([kind]) + random.choice(manifest.MUTATIONS)(table, random)


TARGETS = {"decoder": (judged_image, decoder.inputs), "manifest": (judged_table, tables)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_guided"))
    given = parser.parse_args()
    judged, inputs = TARGETS[given.what]
    corpus = given.keep / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(islice(inputs(Random(given.seed)), FIRST)):
        (corpus / f"first_{number:03d}").write_bytes(content)
    folder = Path(tempfile.mkdtemp())
    options = [
        f"-max_total_time={60 * given.minutes:.0f}",
        f"-seed={given.seed + 1}",  # 0 would stand for the clock
        "-timeout=5",
        "-rss_limit_mb=2048",
        "-max_len=200000",
        f"-artifact_prefix={given.keep}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda content: judged(content, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
