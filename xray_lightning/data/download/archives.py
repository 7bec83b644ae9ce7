"""The twelve archives of NIH ChestX-ray14, and how to name some of them.

Credit is due to the NIH Clinical Center and to Wang et al., "ChestX-ray8", CVPR 2017.
"""

import re
from dataclasses import dataclass

from xray_lightning.errors import UserError

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
