"""The manifest reader under spoiled tables: a manifest and splits, or a UserError of one line.

    python -m fuzz manifest --minutes 10

An input holds all files of a data set and how to read them.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.fuzzing import Fuzzer, spoiled
from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.sources.custom_csv import GUESSES, OwnTable
from xray_lightning.data.splits import NAMES, make_split, usable_split
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, check_findings

IMAGES = 30

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
HOSTILE = (
    *("", " ", ",", '"', '""', "|", "\r", "\n", "\r\n", "\0", "\t", ";", "\ufeff", "\u2028"),
    *("\x85", "-1", "0", "1", "1.0", "-0", "nan", "inf", "1e400", "0x1", "1_0", "٣"),
    *("9" * 400, "1" * 5000, "..", "../a.png", "/etc/passwd", "a/../../b", "./00000001_000.png"),
    *("p//x.png", ".", "~", "C:\\x", "No Finding", "Mass", "Mass|No Finding", "|||"),
    *("Infiltrate", "unknown", "train", "test", "58Y"),
    *("<script>alert(1)</script>", "=cmd()", "\u202etxt", "e\u0301", "İ", "ﬁ", "x" * 70000, "True"),
    *("image", "Patient ID", "Finding Labels", "split", "val", "M", "PA", "999M", "1" * 10 + "D"),
)
Edit = Callable[[bytes, Random], bytes]


@dataclass
class Case:
    """Files to read, and how they are to be read."""

    files: dict[str, bytes]
    splits: tuple[str, ...]
    findings: tuple[str, ...] | None = None
    own: dict[str, Any] | None = None
    odd: dict[str, str] = field(default_factory=dict)  # name -> folder, fifo, loop


def name_of(number: int) -> str:
    return f"{number // 3 + 1:08d}_{number % 3:03d}.png"


def table(header: str, row: Callable[[int], str]) -> bytes:
    return "\n".join([header, *(row(n) for n in range(IMAGES))]).encode() + b"\n"


def nih(random: Random, *, v2020: bool) -> Case:
    def row(n: int) -> str:
        age = 20 + n if v2020 else f"{20 + n:03d}Y"
        labels = "|".join(random.sample(FINDINGS, n % 4)) or "No Finding"
        return f"{name_of(n)},{labels},{n % 3},{n // 3 + 1},{age},{'MF'[n % 2]},PA,2,2,0.1,0.1"

    names = [name_of(n) for n in range(IMAGES)]
    files = {
        f"Data_Entry_2017{'_v2020' * v2020}.csv": table(
            NIH_HEADER.format("Sex" if v2020 else "Gender"), row
        ),
        "train_val_list.txt": "\n".join(names[:24]).encode(),
        "test_list.txt": "\n".join(names[24:]).encode(),
        "split.csv": table(
            "image,split", lambda n: f"{names[n]},{('train', 'val', 'test')[n % 3]}"
        ),
        "BBox_List_2017.csv": b"Image Index,Finding Label,Bbox [x,y,w,h]\n" + names[0].encode(),
    }
    chosen = (None, None, ("Mass", "Effusion"))[random.randrange(3)]
    return Case(files, ("official", "patient_random", "split.csv"), chosen)


def ai4m(random: Random) -> Case:
    def part(first: int) -> bytes:
        def row(n: int) -> str:
            cells = [str(int(random.random() < 0.3)) for _ in FINDINGS]
            return ",".join([name_of(first + n), *cells, str((first + n) // 3)])

        return table(",".join(["Image", *FINDINGS, "PatientId"]), row)

    names = ("train-small.csv", "valid-small.csv", "test.csv")
    return Case({name: part(n * IMAGES) for n, name in enumerate(names)}, ("ai4m",))


def own(random: Random, *, labels: bool) -> Case:
    findings = ("Effusion", "Rib Fracture", "Nodule/Mass", "Mass")

    def row(n: int) -> str:
        path = f"p{n // 3}/{name_of(n)}" if n % 2 else name_of(n)
        cells = [random.choice(("0", "1", "1.0", "-1", "", "true")) for _ in findings]
        text = "|".join(random.sample(findings, n % 3)) or "No Finding"
        side = ("train", "validation", "test", "")[n % 4]
        found = text if labels else ",".join(cells)
        return f'"{path}",P{n // 3},{found},{30 + n},{"Male" if n % 2 else "F"},AP,{n % 3},{side}'

    titles = ["labels"] if labels else findings
    header = ",".join(["File", "Patient ID", *titles, "Age", "Sex", "View", "Follow-up", "split"])
    options: dict[str, Any] = {
        "uncertain": random.choice(("error", "negative", "positive")),
        "empty": random.choice(("error", "negative")),
    }
    if random.random() < 0.3:
        key = random.choice(list(GUESSES))
        options["columns"] = {key: random.choice(("File", "file", "Effusion", "x", *HOSTILE))}
    chosen = (None, findings, findings[1:3], ("Mass",))[random.randrange(4)]
    return Case({"films.csv": table(header, row)}, ("column", "patient_random"), chosen, options)


# -- mutations -------------------------------------------------------------------------------------


def bytes_(data: bytes, random: Random) -> bytes:
    return spoiled(random, data, [data or b" "])


def insert(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    piece = random.choice(HOSTILE).encode() if random.random() < 0.8 else random.randbytes(4)
    return data[:place] + piece + data[place + random.choice((0, len(piece), 5)) :]


def lines(data: bytes, random: Random) -> bytes:
    """Rows repeated, dropped, swapped or brought to the front."""
    rows = data.split(b"\n")
    one, other = random.randrange(len(rows)), random.randrange(len(rows))
    kind = random.randrange(4)
    if kind == 0:
        rows.insert(other, rows[one])
    elif kind == 1:
        del rows[one]
    elif kind == 2:
        rows[one], rows[other] = rows[other], rows[one]
    else:
        rows[0], rows[one] = rows[one], rows[0]
    return b"\n".join(rows)


def cell(data: bytes, random: Random) -> bytes:
    """A cell made hostile, or another row's; in the header as often as elsewhere."""
    rows = [row.split(b",") for row in data.split(b"\n")]
    row = rows[0 if random.random() < 0.5 else random.randrange(len(rows))]
    from_row = random.choice(rows)
    other = random.choice(HOSTILE).encode() if random.random() < 0.7 else random.choice(from_row)
    row[random.randrange(len(row))] = other
    return b"\n".join(b",".join(row) for row in rows)


def column(data: bytes, random: Random) -> bytes:
    """A column dropped, or there twice."""
    rows = [row.split(b",") for row in data.split(b"\n")]
    place, again = random.randrange(len(rows[0])), random.random() < 0.5
    for row in rows:
        row[place : place + 1] = row[place : place + 1] * (2 * again)
    return b"\n".join(b",".join(row) for row in rows)


def recode(data: bytes, random: Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return random.choice(
        (
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: text.encode("utf-16"),
            lambda: text.encode("latin-1", "replace") + b"\xe9",
            lambda: data.replace(b",", b";"),
            lambda: data.replace(b",", b'","'),
            lambda: b"",
            lambda: data + b"\xed\xa0\x80",
        )
    )()


def grow(data: bytes, random: Random) -> bytes:
    """A table of many rows, of many columns, or of one endless line."""
    rows = data.split(b"\n")
    kind = random.randrange(3)
    if kind == 0 and len(rows) > 1:
        count = random.choice((1000, 100_000))
        more = [b"%d%s" % (n, rows[1 + n % (len(rows) - 1)]) for n in range(count)]
        return b"\n".join([rows[0], *more])
    if kind == 1:
        return data + b"x" * random.choice((10**5, 2 * 2**20))
    return b"\n".join(row + b",0" * 3000 for row in rows)


MUTATIONS: tuple[Edit, ...] = (bytes_, insert, insert, lines, cell, cell, cell, column, recode)


def made(random: Random) -> Case:
    kinds: tuple[Callable[[], Case], ...] = (
        lambda: nih(random, v2020=True),
        lambda: nih(random, v2020=False),
        lambda: ai4m(random),
        lambda: own(random, labels=False),
        lambda: own(random, labels=False),
        lambda: own(random, labels=True),
    )
    case = kinds[random.randrange(len(kinds))]()
    names = list(case.files)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 6))):
        name = names[0] if random.random() < 0.6 else random.choice(names)
        case.files[name] = random.choice(MUTATIONS)(case.files[name], random)
    if random.random() < 0.01:
        case.files[names[0]] = grow(case.files[names[0]], random)
    if random.random() < 0.02:
        case.odd[random.choice(names)] = random.choice(("folder", "fifo", "loop"))
    return case


def inputs(random: Random) -> Iterator[bytes]:
    """Spoiled data sets without end."""
    while True:
        plain = asdict(made(random))
        plain["files"] = {name: data.decode("latin-1") for name, data in plain["files"].items()}
        yield json.dumps(plain).encode()


# -- judging ---------------------------------------------------------------------------------------


def judge(path: Path) -> str:
    """Read the data set of an input; returns what came of it in a few words.

    Raises:
        AssertionError: a manifest, split or error that breaks its promise.
    """
    plain = json.loads(path.read_bytes())
    plain["files"] = {name: text.encode("latin-1") for name, text in plain["files"].items()}
    case = Case(**plain)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        root.mkdir()
        lay_out(case, root)
        return read(case, root)


def lay_out(case: Case, root: Path) -> None:
    for n in range(0, IMAGES, 2):
        (root / name_of(n)).touch()
    (root / "p0").mkdir()
    (root / "p0" / name_of(1)).touch()
    for name, data in case.files.items():
        path, odd = root / name, case.odd.get(name)
        if odd == "folder":
            path.mkdir()
        elif odd == "fifo":
            os.mkfifo(path)
        elif odd == "loop":
            path.symlink_to(name)
        else:
            path.write_bytes(data)


def read(case: Case, root: Path) -> str:
    try:
        chosen = None if case.findings is None else check_findings(list(case.findings), what="f")
        table = None if case.own is None else OwnTable(**case.own)
        manifest = read_manifest(root, findings=chosen, own=table)
    except UserError as error:
        told(error)
        return "refused"
    check(manifest, root)
    done = "read"
    for name in case.splits:
        try:
            split = make_split(manifest, name if name in NAMES else str(root / name))
            used = usable_split(manifest, split, missing="skip", allow_patient_overlap=True)
        except UserError as error:
            told(error)
            continue
        every = [image for images in used.split.sides.values() for image in images]
        assert set(every) <= set(manifest.table["image"]), "images that have no row"
        done = "read and split"
    return done


def told(error: Exception) -> None:
    text = str(error)
    assert text
    assert len(text.splitlines()) == 1, f"not one line: {text!r}"
    assert len(text) < 4000, f"{len(text)} characters of error"


def check(manifest: Manifest, root: Path) -> None:
    rows = manifest.table
    assert len(rows)
    assert rows["image"].is_unique, "an image twice"
    assert all(rows["image"]), "a row without image"
    assert all(rows["patient_id"]), "a row without patient"
    assert rows[list(manifest.findings)].isin((0, 1)).all(axis=None), "labels beside 0 and 1"
    assert manifest.findings == check_findings(list(manifest.findings), what="its findings")
    assert all(count > 0 for count in manifest.dropped.values()), "a count of nothing"
    paths = [path for path in rows["path"] if path]
    assert len(paths) == len(set(paths)), "one file for two rows"
    inside = root.resolve()
    assert all(Path(path).resolve().is_relative_to(inside) for path in paths), "a file outside"


MANIFEST = Fuzzer(inputs, judge, file="case.json")
