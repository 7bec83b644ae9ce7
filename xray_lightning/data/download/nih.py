"""Downloader of NIH ChestX-ray14: its twelve archives, its table and its lists.

Credit is due to the NIH Clinical Center and to Wang et al., "ChestX-ray8", CVPR 2017."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from xray_lightning.data.csv_table import read_text
from xray_lightning.data.download.archive import unpack_images
from xray_lightning.data.download.http import Patience, check_base, fetch, fetch_verified, forget
from xray_lightning.data.faults import FirstFault
from xray_lightning.data.image_files import count_images
from xray_lightning.data.sources.nih import NIH_LISTS, NIH_TABLES, read_table
from xray_lightning.errors import UserError, check_whole
from xray_lightning.files import Free, check_room, free_bytes, note, noted, working_in
from xray_lightning.progress import Transfers
from xray_lightning.workers import all_of

log = logging.getLogger(__name__)

BASE_URL = "https://nihcc.box.com/shared/static/"
HOME = "https://nihcc.app.box.com/v/ChestXray-NIHCC"  # in a browser


@dataclass(frozen=True)
class Archive:
    """One of the official archives, images_001.tar.gz to images_012.tar.gz."""

    part: int
    id: str
    bytes: int
    md5: str

    @property
    def name(self) -> str:
        return f"images_{self.part:03d}"


# Ids as in NIH's own batch_download_zips.py, sizes as in the torrent of the data set, md5 as in
# PyHealth's ChestXray14 data set.
ARCHIVES = (
    Archive(1, "vfk49d74nhbxq3nqjg0900w5nvkorp5c", 2008470987, "fe8ed0a6961412fddcbb3603c11b3698"),
    Archive(2, "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1", 3952623504, "ab07a2d7cbe6f65ddd97b4ed7bde10bf"),
    Archive(3, "f1t00wrtdk94satdfb9olcolqx20z2jp", 3929234850, "2301d03bde4c246388bad3876965d574"),
    Archive(4, "0aowwzs5lhjrceb3qp67ahp0rd1l1etg", 3838903983, "9f1b7f5aae01b13f4bc8e2c44a4b8ef6"),
    Archive(5, "v5e3goj22zr6h8tzualxfsqlqaygfbsn", 3935496531, "1861f3cd0ef7734df8104f2b0309023b"),
    Archive(6, "asi7ikud9jwnkrnkj99jnpfkjdes7l6l", 3986301172, "456b53a8b351afd92a35bc41444c58c8"),
    Archive(7, "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n", 4016328426, "1075121ea20a137b87f290d6a4a5965e"),
    Archive(8, "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j", 4018347353, "b61f34cec3aa69f295fbb593cbd9d443"),
    Archive(9, "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj", 4111327929, "442a3caa61ae9b64e61c561294d1e183"),
    Archive(10, "l6nilvfa9cg3s28tqv1qc1olm3gnz54p", 4181556296, "09ec81c4c31e32858ad8cf965c494b74"),
    Archive(11, "hhq8fkdgvcari67vfhs7ppg2w6ni4jze", 4187084020, "499aefc67207a5a97692424cf5dbeed5"),
    Archive(12, "ioqwiy20ihqwyr8pf4c24eazhh281pbu", 2914187733, "dc9fda1757c2de0032b63347a7d2895c"),
)

TABLE = "Data_Entry_2017_v2020.csv"
METADATA = (TABLE, *NIH_LISTS.values())
# Rows and lines of the official files.
OFFICIAL_LINES = {TABLE: 112_120, "train_val_list.txt": 86_524, "test_list.txt": 25_596}
MAX_METADATA_BYTES = 64 * 2**20

# PNGs do not shrink: what an archive unpacks to is hardly more than the archive.
UNPACKED = 1.05
# The sizes come from another source than the md5s, so limits have a margin; the md5s decide.
SIZE_MARGIN = 1.1
BOMB = 4


def parse_parts(text: str) -> tuple[int, ...]:
    """The parts that `1,2` or `1-3,12` names, sorted; all twelve for an empty text.

    Raises:
        UserError: anything else.
    """
    known = {archive.part for archive in ARCHIVES}
    parts: set[int] = set()
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", piece, re.ASCII)
        if found is None:
            raise UserError(f"--parts {text!r}: give numbers from 1 to 12 such as 1,2 or 1-3")
        first, last = int(found[1]), int(found[2] or found[1])
        parts.update(range(first, last + 1) or (0,))
    if parts - known:
        raise UserError(f"--parts {text!r}: the archives are 1 to 12")
    return tuple(sorted(parts or known))


@dataclass(frozen=True)
class Fetched:
    """Numbers of images by part, new or kept, and the files of METADATA that are still missing."""

    new: dict[int, int] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def download_nih(
    root: Path,
    *,
    parts: Sequence[int] = (),
    jobs: int = 2,
    base_url: str = BASE_URL,
    metadata_url: str | None = None,
    archives: Sequence[Archive] = ARCHIVES,
    transfers: Transfers | None = None,
    patience: Patience | None = None,
    free: Free = free_bytes,
) -> Fetched:
    """Download and unpack the archives into `root`/images_001/images and so on.

    A finished archive is recorded and not fetched again; an interrupted download is resumed, also
    after a kill. An archive is checked against its md5, unpacked, and removed.

    Args:
        root: made if missing.
        parts: which archives; all when empty.
        jobs: how many at once.
        base_url: the folder of a server that has the archives as ID.gz.
        metadata_url: the folder of one that has the files of METADATA; those in `root` are kept.

    Raises:
        UserError: too little room, a folder in use, or files that the server does not have.
        RunFailedError: no server, wrong or hostile archives, a full disk.
    """
    check_whole("--jobs", jobs, least=1, most=len(ARCHIVES))
    base_url = check_base("--base-url", base_url)
    patience = patience or Patience()
    transfers = transfers or Transfers(shown=False)
    with working_in(root) as state:
        if metadata_url is not None:
            fetch_metadata(root, state, check_base("--metadata-url", metadata_url), patience)
        kept, wanted = {}, []
        for archive in archives:
            if not parts or archive.part in parts:
                if images := _finished(archive, root, state):
                    kept[archive.part] = images
                else:
                    wanted.append(archive)
        check_room(root, _needed(wanted, state, jobs=jobs), free=free)
        work: list[Callable[[], int]] = [
            partial(_fetch_archive, archive, root, state, base_url, transfers, patience)
            for archive in wanted
        ]
        with transfers.live():
            done = all_of(work, jobs=jobs, stop=transfers.stop)
    new = {archive.part: images for archive, images in zip(wanted, done, strict=True)}
    return Fetched(new, kept, missing_metadata(root))


def _finished(archive: Archive, root: Path, state: Path) -> int:
    """The number of images of an archive that was unpacked and is still complete, or 0."""
    content = noted(_note_of(archive, state))
    images = content.get("images")
    if content.get("md5") != archive.md5 or not isinstance(images, int):
        return 0
    there = count_images(root / archive.name)
    if there < images:
        log.warning("%s: %d of %d images are gone", root / archive.name, images - there, images)
        return 0
    return images


def _needed(wanted: Sequence[Archive], state: Path, *, jobs: int) -> int:
    """Most bytes that fetching takes: all images, and the archives on disk at the same time."""
    unpacked = sum(round(archive.bytes * UNPACKED) for archive in wanted)
    packed = sorted((archive.bytes for archive in wanted), reverse=True)[:jobs]
    parts = [_part_of(archive, state) for archive in wanted]
    have = sum(part.stat().st_size for part in parts if part.exists())
    return max(unpacked + sum(packed) - have, 0)


def _fetch_archive(
    archive: Archive,
    root: Path,
    state: Path,
    base_url: str,
    transfers: Transfers,
    patience: Patience,
) -> int:
    """Fetch, check and unpack one archive; returns its images."""
    part = _part_of(archive, state)
    most = round(archive.bytes * SIZE_MARGIN)
    with transfers.bar(archive.name, total=archive.bytes) as bar:
        fetch_verified(
            f"{base_url}{archive.id}.gz",
            part,
            md5=archive.md5,
            most=most,
            watch=bar,
            patience=patience,
        )
        bar.doing("unpacking")
        bar.begin(0, part.stat().st_size)
        unpacked = unpack_images(
            part, root / archive.name, most=BOMB * most + 2**20, advance=bar.advance
        )
    note(
        _note_of(archive, state),
        {"md5": archive.md5, "images": unpacked.images, "bytes": unpacked.bytes},
    )
    forget(part)
    return unpacked.images


def _part_of(archive: Archive, state: Path) -> Path:
    return state / f"{archive.name}.tar.gz.part"


def _note_of(archive: Archive, state: Path) -> Path:
    return state / f"{archive.name}.json"


def missing_metadata(root: Path) -> tuple[str, ...]:
    """The files of METADATA that are not there; any release of the table will do."""
    there = {name for name in METADATA if (root / name).is_file()}
    if any(root.glob(NIH_TABLES)):
        there.add(TABLE)
    return tuple(name for name in METADATA if name not in there)


def fetch_metadata(root: Path, state: Path, base_url: str, patience: Patience) -> None:
    """Fetch the table and the lists that the folder lacks, and check that they can be read.

    No md5 of them was published to check.
    """
    for name in missing_metadata(root):
        part, url = state / f"{name}.part", f"{base_url}{name}"
        with Transfers(shown=False).bar(name, total=None) as bar:
            fetch(url, part, most=MAX_METADATA_BYTES, watch=bar, patience=patience)
        try:
            lines = _lines(part, name)
        except UserError as error:
            forget(part)
            raise UserError(f"{url} is not NIH's {name}: {error}") from error
        if lines != OFFICIAL_LINES[name]:
            log.warning(
                "%s lists %d images, where NIH's lists %d", url, lines, OFFICIAL_LINES[name]
            )
        part.replace(root / name)
        forget(part)


def _lines(path: Path, name: str) -> int:
    """The number of images in a table or list of this name; raises UserError if it is none."""
    if name == TABLE:
        return len(read_table(path, FirstFault()).table)
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names or not all(line.lower().endswith(".png") for line in names):
        raise UserError(f"{path}: not a list of image files")
    return len(names)
