"""One file over HTTP: it goes on after a cut, is tried again with patience, and never hangs."""

import hashlib
import logging
import re
from pathlib import Path

from xray_lightning.data.download.transfer import (
    PassingFaultError,
    Patience,
    Watch,
    forget,
    size_of,
    transfer,
)
from xray_lightning.errors import RunFailedError, UserError

log = logging.getLogger(__name__)


def check_base(option: str, url: str) -> str:
    """The address of a folder with its closing slash; raises UserError unless it is HTTP."""
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
        raise UserError(f"{option}={url}: not an address such as https://example.org/folder/")
    return url if url.endswith("/") else f"{url}/"


def fetch_verified(
    url: str, part: Path, *, md5: str, most: int, watch: Watch, patience: Patience
) -> None:
    """Have the whole file in `part`, with this md5; a wrong one is fetched once more.

    Args:
        url: http or https.
        part: where it grows; `forget` removes it with its notes.
        md5: as 32 hexadecimal digits.
        most: bytes past which the file cannot be the right one.
        watch: told of each byte.
        patience: with the server.

    Raises:
        UserError: the server does not have the file.
        RunFailedError: it cannot be reached, or sends something else; or the disk fails.
    """
    fault = ""
    for last in (False, True):
        fetch(url, part, most=most, watch=watch, patience=patience)
        found, size = md5_of(part), part.stat().st_size
        if found == md5:
            return
        forget(part)
        fault = f"{url}: {size:,} bytes with md5 {found} where {md5} belongs"
        if not last:
            log.warning("%s; removed, and fetched once more", fault)
    raise RunFailedError(f"{fault}, twice; removed: the file there is not the official one")


def fetch(url: str, part: Path, *, most: int, watch: Watch, patience: Patience) -> None:
    """Have the whole file in `part`, going on from what is there; raises as `fetch_verified`."""
    failures, best = 0, size_of(part)
    while True:
        try:
            transfer(url, part, most=most, watch=watch, patience=patience)
            return
        except PassingFaultError as fault:
            have = size_of(part)
            failures = 0 if have > best else failures + 1
            best = max(best, have)
            if failures >= patience.tries:
                raise RunFailedError(
                    f"{url}: {fault}; {failures} tries in a row brought nothing new; "
                    f"{have:,} bytes are kept: run the same command again to go on"
                ) from fault
            wait = patience.wait(failures, fault.retry_after)
            log.warning("%s: %s; %s bytes kept, again in %.0f s", url, fault, f"{have:,}", wait)
            patience.sleep(wait)


def md5_of(path: Path) -> str:
    """The file's md5 as 32 hexadecimal digits."""
    with path.open("rb") as stream:
        # Against damage, not against forgers: md5 is what the files were published with.
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
