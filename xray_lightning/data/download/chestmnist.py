"""ChestMNIST: NIH ChestX-ray14 made small by MedMNIST v2, turned into images, a table and a split.

Yang et al., "MedMNIST v2", Scientific Data 2023, CC BY 4.0; https://doi.org/10.5281/zenodo.10519652.
Its files hold no patient ids, so nobody can tell whether its sides share patients: the table says
`unknown`, which the manifest counts and takes for a patient of its own.
"""

from dataclasses import dataclass
from pathlib import Path

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
from xray_lightning.data.download.medmnist import IMAGES, SPLIT, TABLE, convert
from xray_lightning.data.download.shown import Transfers
from xray_lightning.data.download.transfer import Patience, forget
from xray_lightning.data.manifest import NIH_TABLES
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.progress import Display, unseen

BASE_URL = "https://zenodo.org/records/10519652/files/"
NOTE = "chestmnist.json"
BLOCK = 4096  # bytes that a small file takes on most file systems


@dataclass(frozen=True)
class Release:
    """One of the .npz files."""

    size: int  # side of the images in pixels
    file: str
    md5: str


# From `medmnist/info.py` of the package medmnist 3.0 (chestmnist: url, MD5, MD5_64, ...).
RELEASES = (
    Release(28, "chestmnist.npz", "02c8a6516a18b556561a56cbdd36c4a8"),
    Release(64, "chestmnist_64.npz", "9de6cd0b934ebb5b7426cfba5efbae16"),
    Release(128, "chestmnist_128.npz", "db107e5590b27930b62dbaf558aebee3"),
    Release(224, "chestmnist_224.npz", "45bd33e6f06c3e8cdb481c74a89152aa"),
)


def download_chestmnist(
    root: Path,
    *,
    size: int = 64,
    base_url: str = BASE_URL,
    releases: tuple[Release, ...] = RELEASES,
    transfers: Transfers | None = None,
    progress: Display = unseen,
    patience: Patience | None = None,
    free: Free = free_bytes,
) -> tuple[int, bool]:
    """Have ChestMNIST in `root`: images/, Data_Entry_chestmnist.csv and split.csv.

    The table comes last, so that a kill leaves no data set that is half there; what was fetched
    stays, and running again goes on.

    Args:
        root: made if missing; it may hold no other data set.
        size: side of the images in pixels: 28, 64, 128 or 224.
        base_url: the folder of a server that has the .npz files.
        releases: what there is to fetch.
        transfers: where fetching is shown.
        progress: display for the turning into images.
        patience: with the server.
        free: tells the bytes that are free in a folder.

    Returns:
        How many images, and whether they came now.

    Raises:
        UserError: an unknown size, another data set in `root`, too little room.
        RunFailedError: no server, a wrong file, a full disk.
    """
    release = next((release for release in releases if release.size == size), None)
    if release is None:
        sizes = ", ".join(str(release.size) for release in releases)
        raise UserError(f"--size {size}: ChestMNIST comes in {sizes} pixels")
    base_url = check_base("--base-url", base_url)
    transfers = transfers or Transfers(shown=False)
    with working_in(root) as state:
        if images := _finished(release, root, state):
            return images, False
        _refuse_what_is_not_ours(release, root, state)
        most = IMAGES * (size**2 + len(FINDINGS)) + 2**20  # as if nothing had been compressed
        files = IMAGES * (size**2 // BLOCK + 1) * BLOCK
        part = state / f"{release.file}.part"
        have = part.stat().st_size if part.exists() else 0
        check_room(root, max(most + files - have, 0), free=free)
        # Before the first file, so that a run that was killed finds its own.
        note(state / NOTE, {"md5": release.md5, "size": size})
        with transfers.live(), transfers.bar(release.file, total=None) as bar:
            fetch_verified(
                f"{base_url}{release.file}?download=1",
                part,
                md5=release.md5,
                most=most,
                watch=bar,
                patience=patience or Patience(),
            )
            bar.doing("done")
        images = convert(part, root, size=size, progress=progress)
        note(state / NOTE, {"md5": release.md5, "size": size, "images": images})
        forget(part)
    return images, True


def _finished(release: Release, root: Path, state: Path) -> int:
    content = noted(state / NOTE)
    images = content.get("images")
    if (content.get("md5"), content.get("size")) != (release.md5, release.size):
        return 0
    if not isinstance(images, int):
        return 0
    if not all((root / name).is_file() for name in (TABLE, SPLIT)):
        return 0
    return images if count_images(root / "images") >= images else 0


def _refuse_what_is_not_ours(release: Release, root: Path, state: Path) -> None:
    content = noted(state / NOTE)
    if content:
        if content.get("size") != release.size:
            raise UserError(
                f"{root} holds ChestMNIST of {content.get('size')} pixels; give another folder for "
                f"{release.size}"
            )
        return
    if any(root.glob(NIH_TABLES)) or count_images(root):
        raise UserError(f"{root} holds other images or tables already; give a new folder")
