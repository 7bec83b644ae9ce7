"""The table and the lists of NIH ChestX-ray14, which have no lasting address of their own."""

import logging
from pathlib import Path

from xray_lightning.data.cells import read_text
from xray_lightning.data.dialects import nih_rows
from xray_lightning.data.download.fetch import fetch
from xray_lightning.data.download.shown import Transfers
from xray_lightning.data.download.transfer import Patience, forget
from xray_lightning.data.manifest import NIH_LISTS, NIH_TABLES
from xray_lightning.errors import UserError

log = logging.getLogger(__name__)

TABLE = "Data_Entry_2017_v2020.csv"
METADATA = (TABLE, *NIH_LISTS.values())
# Rows and lines of the official files.
OFFICIAL_LINES = {TABLE: 112_120, "train_val_list.txt": 86_524, "test_list.txt": 25_596}
MAX_METADATA_BYTES = 64 * 2**20


def missing_metadata(root: Path) -> tuple[str, ...]:
    """The files of METADATA that are not there; any release of the table will do."""
    there = {name for name in METADATA if (root / name).is_file()}
    if any(root.glob(NIH_TABLES)):
        there.add(TABLE)
    return tuple(name for name in METADATA if name not in there)


def fetch_metadata(root: Path, state: Path, base_url: str, patience: Patience) -> None:
    """Fetch the table and the lists that the folder lacks, and look that they are such.

    No md5 of them was published, so what is checked is that they can be read.
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
    """The images that a table or list of this name has; raises UserError if it is none."""
    if name == TABLE:
        return len(nih_rows(path, {}))
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names or not all(line.lower().endswith(".png") for line in names):
        raise UserError(f"{path}: not a list of image files")
    return len(names)
