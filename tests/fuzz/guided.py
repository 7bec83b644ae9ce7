"""The same fuzzers guided by coverage, through atheris, which is to be installed for it:

    export PYTHONPATH=.:tests:tests/data
    python -m fuzz.guided results --minutes 10 --keep fuzz_guided

An input that fails, takes over 5 s or over 2 GB ends it, and is kept. An input of the manifest
reader is a byte for the kind of the data set, and its first table.
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

with atheris.instrument_imports(include=["xray_lightning", "pydicom"]):
    from fuzz import manifest
    from fuzz.fuzzers import FUZZERS
    from fuzz.fuzzing import Fuzzer

FIRST = 500  # inputs of the plain fuzzer that the corpus begins with

KINDS: tuple[Callable[[], manifest.Case], ...] = (
    lambda: manifest.nih(Random(0), v2020=True),
    lambda: manifest.nih(Random(0), v2020=False),
    lambda: manifest.ai4m(Random(0)),
    lambda: manifest.own(Random(0), labels=False),
    lambda: manifest.own(Random(0), labels=True),
)


def judged_table(path: Path) -> str:
    content = path.read_bytes()
    case = KINDS[content[0] % len(KINDS) if content else 0]()
    case.files[next(iter(case.files))] = content[1:]
    plain = asdict(case)
    plain["files"] = {name: data.decode("latin-1") for name, data in plain["files"].items()}
    path.write_text(json.dumps(plain))
    return manifest.judge(path)


def tables(random: Random) -> Iterator[bytes]:
    while True:
        for kind, made in enumerate(KINDS):
            table = next(iter(made().files.values()))
            yield bytes([kind]) + random.choice(manifest.MUTATIONS)(table, random)


GUIDED = FUZZERS | {"manifest": Fuzzer(tables, judged_table, file="case.json")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parser", choices=sorted(GUIDED))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_guided"))
    given = parser.parse_args()
    fuzzer = GUIDED[given.parser]
    corpus = given.keep / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(islice(fuzzer.inputs(Random(given.seed)), FIRST)):
        (corpus / f"first_{number:03d}").write_bytes(content)
    path = Path(tempfile.mkdtemp()) / fuzzer.file

    def judged(content: bytes) -> None:
        path.write_bytes(content)
        fuzzer.judge(path)

    options = [
        f"-max_total_time={60 * given.minutes:.0f}",
        f"-seed={given.seed + 1}",  # 0 would stand for the clock
        "-timeout=5",
        "-rss_limit_mb=2048",
        "-max_len=200000",
        f"-artifact_prefix={given.keep}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], judged)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
