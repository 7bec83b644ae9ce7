"""Single tables under spoiled text: cells of a CSV, predictions, and a map of labels.

python -m fuzz cells --minutes 10
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from fuzz.fuzzing import Fuzzer, pieced
from fuzz.manifest import HOSTILE, MUTATIONS, told
from xray_lightning.data.csv_table import header_of, read_cells
from xray_lightning.data.label_map import LabelMap
from xray_lightning.errors import UserError
from xray_lightning.runs.predictions import read_predictions

TITLES = {"image": ("Image Index", "File"), "age": ("Age",), "labels": ("Finding Labels",)}
TABLE = (
    b"Image Index,Finding Labels,Age\n"
    b'a.png,Mass,3\n"b,c.png","Mass|Nodule",""\nd.png,No Finding,58\n'
)
PREDICTIONS = (
    b"image,patient_id,split,prob_Mass,prob_Rib,label_Mass,label_Rib,age,sex,view,follow_up,site\n"
    b"a.png,1,test,0.5,1e-3,1,0,58,M,PA,0,x\nb.png,1,test,1,0,0,1,,F,AP,,y\n"
    b"c.png,2,val,0.25,0.75,0,0,3.5,,,2,\n"
)
MAPS = (
    b"columns: {image: Image Index}\npositive: [YES]\nnegative: [NO]\nuncertain: negative\n"
    b"findings: # theirs\n  Pneumothorax: [Pneumothorax]\n  'Nodule or mass': [Nodule, Mass]\n",
    b"findings:\n  A: &a [Mass]\n  B: *a\nempty: negative\npositive: 'y'\n",
)
YAML = (b"&a ", b"*a", b"!!python/object/apply:os.getcwd []", b"? ", b": ", b"- ", b"<<: ", b"|\n")
YAML += (b"{", b"[", b"'", b"%YAML 9\n", b"---\n", b"...\n", b"\t", b"&a [*a]", b"0x1", b"1:1")


def tables(whole: bytes, random: Random) -> Iterator[bytes]:
    while True:
        content = whole
        for _ in range(random.choice((0, 1, 1, 2, 3))):
            content = random.choice(MUTATIONS)(content, random)
        yield content


def maps(random: Random) -> Iterator[bytes]:
    return pieced(random, MAPS, (*YAML, *(text.encode() for text in HOSTILE)))


def judge_cells(path: Path) -> str:
    try:
        header_of(path)
        cells = read_cells(path, TITLES, required=("image",))
    except UserError as error:
        told(error)
        return "refused"
    assert len(cells)
    assert cells["line"].is_monotonic_increasing
    assert all(text == text.strip() for text in cells["image"])
    return "read"


def judge_predictions(path: Path) -> str:
    try:
        table = read_predictions(path)
    except UserError as error:
        told(error)
        return "refused"
    assert table["image"].is_unique
    for name in table.columns:
        if name.startswith("prob_"):
            assert table[name].between(0, 1).all()
        elif name.startswith("label_"):
            assert table[name].isin((0, 1)).all()
    return "read"


def judge_map(path: Path) -> str:
    try:
        read = LabelMap.read(path)
        read.in_terms_of(("Pneumothorax", "Mass", "Nodule"))
    except UserError as error:
        told(error)
        return "refused"
    assert read.findings
    return "read"


CELLS = Fuzzer(lambda random: tables(TABLE, random), judge_cells, file="table.csv")
PREDICTED = Fuzzer(lambda random: tables(PREDICTIONS, random), judge_predictions, file="p.csv")
LABEL_MAP = Fuzzer(maps, judge_map, file="map.yaml")
