"""NIH ChestX-ray14: its archives fetched, checked and unpacked; see `archives` for credit."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from xray_lightning.data.download.archives import ARCHIVES, BASE_URL, Archive
from xray_lightning.data.download.at_once import all_of
from xray_lightning.data.download.fetch import check_base, fetch_verified
from xray_lightning.data.download.folder import (
    Free,
    check_room,
    count_images,
    free_bytes,
    note,
    noted,
    working_in,
)
from xray_lightning.data.download.metadata import fetch_metadata, missing_metadata
from xray_lightning.data.download.shown import Transfers
from xray_lightning.data.download.transfer import Patience, forget
from xray_lightning.data.download.unpack import unpack_images
from xray_lightning.errors import check_whole

log = logging.getLogger(__name__)

# PNGs do not shrink: what an archive unpacks to is hardly more than the archive.
UNPACKED = 1.05
# The sizes come from another source than the md5s. They are for planning; md5 is what judges.
SIZE_MARGIN = 1.1
BOMB = 4


@dataclass(frozen=True)
class Fetched:
    """What a download has brought.

    Attributes:
        new: images by part that was fetched now.
        kept: images by part that was there already.
        missing: files of METADATA that the folder lacks; training needs them.
    """

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
    """Have the images of the archives in `root`/images_001/images and so on.

    What is finished is noted and not fetched again; what was cut goes on where it was, also after
    a kill. An archive is checked against its md5, unpacked, and removed.

    Args:
        root: made if missing.
        parts: which archives; all when empty.
        jobs: how many at once.
        base_url: the folder of a server that has the archives as ID.gz.
        metadata_url: that of one which has the files of METADATA; those in `root` are kept.
        archives: what there is to fetch.
        transfers: where it is shown.
        patience: with the server.
        free: tells the bytes that are free in a folder.

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
    """The images of an archive that was unpacked wholly and is still all there, or 0."""
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
    """Bytes that fetching takes at most: all images, and the archives that lie there at once."""
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
