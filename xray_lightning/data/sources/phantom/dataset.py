"""Chest X-ray phantoms: drawn by the project itself, in the file layout of NIH ChestX-ray14.

They make every command work without a download, and they give tests and benchmarks images whose
truth is known. They are drawings for software, never evidence about medicine. The prevalences are
chosen so that 2,000 images hold enough positives of every finding (about 6 to 9 % each, and 40 %
without any); they are not NIH's, where Hernia is 0.2 % and Infiltration 18 %.

An image depends only on (seed, patient, follow-up number, size) and its row of the table, so a data
set comes out byte for byte the same with any number of worker processes.
"""

import errno
import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from xray_lightning.data.sources.phantom.patients import Exam, plan_exams
from xray_lightning.data.sources.phantom.render import draw_exam
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import noted
from xray_lightning.findings import NO_FINDING

logger = logging.getLogger(__name__)

PHANTOM_VERSION = 1  # raise it whenever the drawing changes, so that old folders are redrawn

MARK = "phantom.json"
_GENERATOR = "xray-lightning phantoms"
_TABLE_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
_BOXES_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
_DETECTORS = ("2500,2048,0.168,0.168", "2048,2500,0.168,0.168", "2992,2991,0.143,0.143")
_CHUNK = 50  # images that a worker draws before it reports


@dataclass(frozen=True)
class PhantomSpec:
    """What to draw: so many images of `size` x `size` pixels, 1 to 6 of each patient."""

    images: int = 2000
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("size", 32), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"phantom {name}={getattr(self, name)}: give at least {least}")


def ensure_phantoms(
    root: Path,
    spec: PhantomSpec,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> bool:
    """Draw the data set of `spec` at `root` unless it is there; returns whether it was drawn.

    It is drawn in a temporary folder beside `root` and renamed, so that a kill leaves no partial
    data set. If two processes draw at once, the later one keeps the earlier one's. A data set of
    another spec or version is replaced.

    Raises:
        UserError: `root` holds files other than phantoms (nothing is touched), or its parent
            cannot be written to.
        RunFailedError: the disk failed while drawing.
    """
    root = root.resolve()
    if _is_drawn(root, spec):
        return False
    _refuse_what_is_not_ours(root)
    logger.info("drawing %d chest X-ray phantoms into %s", spec.images, root)
    drawing = root.with_name(f".{root.name}.{secrets.token_hex(4)}")
    try:
        drawing.mkdir(parents=True)
        write_phantoms(drawing, spec, progress=progress, workers=workers)
        return _take_place(drawing, root, spec)
    except OSError as error:
        message = f"{root}: the phantoms cannot be written: {error.strerror or error}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{message}; give a folder that can be written to") from error
        raise RunFailedError(message) from error
    finally:
        shutil.rmtree(drawing, ignore_errors=True)


def _is_drawn(root: Path, spec: PhantomSpec) -> bool:
    """Whether `root` holds the data set of `spec`, with all of its images."""
    if noted(root / MARK) != _mark(spec):
        return False
    return sum(1 for _ in (root / "images").glob("*.png")) >= spec.images


def _mark(spec: PhantomSpec) -> dict[str, object]:
    return {"generator": _GENERATOR, "version": PHANTOM_VERSION, **asdict(spec)}


def _refuse_what_is_not_ours(root: Path) -> None:
    if not root.exists() or noted(root / MARK).get("generator") == _GENERATOR:
        return
    if not root.is_dir() or any(root.iterdir()):
        raise UserError(
            f"{root}: holds files that are not phantoms (no {MARK}); give an empty or new folder"
        )


def _take_place(drawing: Path, root: Path, spec: PhantomSpec) -> bool:
    """Rename the finished drawing to `root`, unless another process was faster."""
    if _is_drawn(root, spec):
        return False
    _refuse_what_is_not_ours(root)
    former = drawing.with_name(drawing.name + ".former")
    try:
        if root.is_dir() and any(root.iterdir()):
            root.rename(former)
        drawing.rename(root)  # over nothing or an empty folder; never over a full one
    except OSError:
        if _is_drawn(root, spec):
            return False
        if former.exists() and not root.exists():
            former.rename(root)
        raise
    finally:
        shutil.rmtree(former, ignore_errors=True)
    return True


def write_phantoms(
    root: Path,
    spec: PhantomSpec,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> None:
    """Draw the data set into `root`: images/, table, split lists, boxes and phantom.json.

    `progress` is called with the number of images drawn since its last call. `workers` processes
    draw (None: one per core, at most 8; a small set is drawn in this process); the files do not
    depend on it. This writes in place and is not atomic; `ensure_phantoms` is.
    """
    exams = plan_exams(spec.images, seed=spec.seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    boxes: list[str] = []
    with closing(_draw_all(root / "images", exams, spec, workers=workers)) as drawn:
        for rows in drawn:
            boxes += rows
            if progress is not None:
                progress(len(rows))
    table = [_table_row(place, exam) for place, exam in enumerate(exams)]
    _write(root / "Data_Entry_2017_v2020.csv", [_TABLE_HEADER, *table])
    _write(root / "BBox_List_2017.csv", [_BOXES_HEADER, *boxes])
    _write(root / "train_val_list.txt", [f"{e.name}\n" for e in exams if not e.in_test])
    _write(root / "test_list.txt", [f"{e.name}\n" for e in exams if e.in_test])
    _write(root / MARK, [json.dumps(_mark(spec), indent=2), "\n"])


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _table_row(place: int, exam: Exam) -> str:
    """The exam's row of the table, with NIH's odd ages at a few fixed places."""
    age = str(exam.age)
    if place % 250 == 11:
        age = f"{exam.age:03d}Y"
    elif place % 500 == 23:
        age = "411"  # the greatest age in NIH's own table is 414
    labels = "|".join(exam.findings) or NO_FINDING
    width, height, *spacing = _DETECTORS[exam.patient % len(_DETECTORS)].split(",")
    cells = [exam.name, labels, exam.follow_up, exam.patient, age, exam.sex, exam.view]
    return ",".join(map(str, [*cells, width, height, *spacing])) + "\n"


def _draw_all(
    folder: Path, exams: Sequence[Exam], spec: PhantomSpec, *, workers: int | None
) -> Generator[list[str], None, None]:
    """Draw all exams, a chunk at a time and in order; yields each image's rows of the box list."""
    placed = list(enumerate(exams))
    chunks = [placed[start : start + _CHUNK] for start in range(0, len(placed), _CHUNK)]
    draw = partial(_draw_chunk, folder, spec)
    if workers is None:
        workers = 1 if len(chunks) < 4 else min(8, _cores())
    if workers == 1:
        yield from map(draw, chunks)
        return
    # spawn: the fork of a process in which torch has started threads may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield from pool.map(draw, chunks)
    except BrokenProcessPool as error:
        raise RunFailedError(f"{folder}: a drawing process died; is there memory left?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """The cores that this process may use; all of the machine's where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Freeing one large block raises glibc's dynamic thresholds (mallopt(3), M_MMAP_THRESHOLD), so
    # that it keeps the heap between images; page faults would cost a quarter of the time.
    np.empty(24 << 20, dtype=np.uint8)


def _draw_chunk(folder: Path, spec: PhantomSpec, exams: Sequence[tuple[int, Exam]]) -> list[str]:
    """Draw some exams to PNG files; returns each one's rows of the box list."""
    rows = []
    for place, exam in exams:
        pixels, boxes = draw_exam(exam, seed=spec.seed, size=spec.size)
        image = Image.fromarray(pixels)
        if place % 200 == 7:  # NIH has a few hundred of these
            image = image.convert("RGBA")
        image.save(folder / exam.name, compress_level=1)
        rows.append("".join(f"{exam.name},{box.row()}\n" for box in boxes))
    return rows
