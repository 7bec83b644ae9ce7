"""Downloads over HTTP: resumed from the bytes on disk, retried with patience, never hanging."""

import hashlib
import http.client
import json
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from xray_lightning.errors import RunFailedError, UserError, one_line, printable
from xray_lightning.files import write_atomically

log = logging.getLogger(__name__)

CHUNK = 2**18  # bytes at once
# Status codes of temporary faults (RFC 9110, section 15; 425 is RFC 8470, 429 RFC 6585).
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
AGENT = "xray-lightning"


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to come back.

    Attributes:
        stall_seconds: a connection that brings less than `stall_bytes` in this time is given up.
        stall_bytes: see `stall_seconds`; at a lower rate, files of gigabytes would never end.
        tries: the download fails after this many tries in a row without new bytes.
        first_wait: seconds before the second try; doubled each time, up to `longest_wait`.
        longest_retry_after: most seconds to wait because a server's Retry-After says so.
        sleep: how to wait.
    """

    stall_seconds: float = 30.0
    stall_bytes: int = 2**14
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_retry_after: float = 900.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, retry_after: float | None) -> float:
        """Seconds before the next try, after this many failures in a row."""
        if retry_after is not None:
            return min(max(retry_after, 0.0), self.longest_retry_after)
        return float(min(self.first_wait * 2 ** max(failures - 1, 0), self.longest_wait))


class Watch(Protocol):
    """Observer of a transfer; an exception that it raises ends the transfer, which can resume."""

    def begin(self, done: int, total: int | None) -> None:
        """`done` bytes are there, of `total` if that is known; called again at each resumption."""

    def advance(self, count: int) -> None:
        """`count` more bytes have been received."""


class PassingFaultError(Exception):
    """A temporary fault, worth a retry, and how many seconds the server asks to wait, if any."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def check_base(option: str, url: str) -> str:
    """The address of a folder with its closing slash; raises UserError unless it is HTTP."""
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
        raise UserError(f"{option}={url}: not an address such as https://example.org/folder/")
    return url if url.endswith("/") else f"{url}/"


def fetch_verified(
    url: str, part: Path, *, md5: str, most: int, watch: Watch, patience: Patience
) -> None:
    """Download the whole file to `part` and check its md5; a wrong file is fetched once more.

    Args:
        part: file that the bytes are appended to; `forget` removes it with its notes.
        md5: as 32 hexadecimal digits.
        most: most bytes that the right file can have.

    Raises:
        UserError: the server does not have the file.
        RunFailedError: it cannot be reached, or sends something else; or the disk fails.
    """
    fault = ""
    for last in (False, True):
        fetch(url, part, most=most, watch=watch, patience=patience)
        found, size = _md5_of(part), part.stat().st_size
        if found == md5:
            return
        forget(part)
        fault = f"{url}: {size:,} bytes with md5 {found} where {md5} belongs"
        if not last:
            log.warning("%s; removed, and fetched once more", fault)
    raise RunFailedError(f"{fault}, twice; removed: the file there is not the official one")


def fetch(url: str, part: Path, *, most: int, watch: Watch, patience: Patience) -> None:
    """Download the whole file to `part`, resuming from its bytes; raises as `fetch_verified`."""
    failures, best = 0, _size_of(part)
    while True:
        try:
            _transfer(url, part, most=most, watch=watch, patience=patience)
            return
        except PassingFaultError as fault:
            have = _size_of(part)
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


@dataclass(frozen=True)
class _Origin:
    """Identity of the remote file that a .part file belongs to: only the same one is resumed."""

    validator: str | None = None  # a strong ETag, or Last-Modified (RFC 9110, section 13.1.5)
    size: int | None = None


def _transfer(url: str, part: Path, *, most: int, watch: Watch, patience: Patience) -> None:
    """Try once to download the whole file to `part`, resuming from the bytes there.

    Raises:
        PassingFaultError: a temporary fault; received bytes are kept unless the file has changed.
        UserError: the server does not have the file.
        RunFailedError: it sends something else, or the disk fails.
    """
    origin, have = _known(part)
    if have and have == origin.size:
        watch.begin(have, have)
        return
    try:
        response = _open(url, have, origin, timeout=patience.stall_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, part, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error
    with response:
        if response.status == 206:
            _check_continues(part, response, have, origin)
        elif response.status == 200:  # the whole: new, changed, or no ranges supported
            have, origin = 0, _Origin(_validator(response), _length(response))
            _check_size(url, origin.size or 0, most)
            _start(part, origin)
        else:
            raise RunFailedError(f"{url} answers {response.status} where a file was expected")
        watch.begin(have, origin.size)
        _receive(url, part, response, most=most, watch=watch, patience=patience)
    if origin.size is not None and _size_of(part) < origin.size:
        raise PassingFaultError("the connection was cut")


def _open(url: str, have: int, origin: _Origin, *, timeout: float) -> Any:
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    # No handler for ftp: or file:, so that no redirect can lead there.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)


def _refusal(url: str, part: Path, error: urllib.error.HTTPError) -> Exception:
    """The exception to raise for an HTTP status that is no success."""
    answer = f"answers {error.code} {printable(str(error.reason))}".strip()
    if error.code == 416:  # no bytes follow ours, so they are another file's
        forget(part)
        return PassingFaultError(f"{answer}; starting over")
    if error.code in PASSING:
        return PassingFaultError(answer, retry_after=_retry_after(error))
    return UserError(f"{url} {answer}; is it the right address?")


def _unreachable(url: str, error: Exception) -> Exception:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(f"{url}: its certificate cannot be trusted: {reason.verify_message}")
    if isinstance(reason, TimeoutError):
        return PassingFaultError("no answer in time")
    return PassingFaultError(f"cannot be reached ({printable(one_line(reason))})")


def _check_continues(part: Path, response: Any, have: int, origin: _Origin) -> None:
    """Refuse a 206 that does not start where our bytes end, or is of a file of another size."""
    found = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""), re.ASCII
    )
    if found is None or int(found[1]) != have or found[2] not in ("*", str(origin.size)):
        forget(part)
        raise PassingFaultError("the file there has changed; starting over")


def _receive(
    url: str, part: Path, response: Any, *, most: int, watch: Watch, patience: Patience
) -> None:
    """Append the body to the file as it comes."""
    have = _size_of(part)
    fresh, since = 0, time.monotonic()
    with _writing(part), part.open("ab", buffering=0) as stream:
        while True:
            try:
                chunk = response.read1(CHUNK)
            except TimeoutError as error:
                raise PassingFaultError("the connection stalled") from error
            except (OSError, http.client.HTTPException) as error:
                raise PassingFaultError(
                    f"the connection was cut ({printable(one_line(error))})"
                ) from error
            if not chunk:
                return
            have += len(chunk)
            _check_size(url, have, most)
            view = memoryview(chunk)
            while view:  # unbuffered: after a kill the file still holds a prefix of the right bytes
                view = view[stream.write(view) :]
            watch.advance(len(chunk))
            fresh += len(chunk)
            if fresh >= patience.stall_bytes:
                fresh, since = 0, time.monotonic()
            elif time.monotonic() - since > patience.stall_seconds:
                raise PassingFaultError("the connection has all but stalled")


def _check_size(url: str, size: int, most: int) -> None:
    if size > most:
        raise RunFailedError(
            f"{url}: {size:,} bytes or more, where the file has at most {most:,}; not the right one"
        )


def _known(part: Path) -> tuple[_Origin, int]:
    """The origin of the bytes in `part`, and how many of them can be resumed from."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        origin = _Origin(notes["validator"], notes["size"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Origin(), 0
    have = _size_of(part)
    if origin.size is not None and have > origin.size:
        return _Origin(), 0
    return origin, have


def _start(part: Path, origin: _Origin) -> None:
    """Empty the file, then note its origin: a kill in between leaves no bytes of another file."""
    with _writing(part):
        part.write_bytes(b"")
        write_atomically(_notes(part), json.dumps(asdict(origin)) + "\n")


def forget(part: Path) -> None:
    """Remove what was fetched and the notes about it."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size_of(part: Path) -> int:
    with suppress(OSError):
        return part.stat().st_size
    return 0


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"{part} cannot be written: {error.strerror or error}") from error


def _md5_of(path: Path) -> str:
    """The file's md5 as 32 hexadecimal digits."""
    with path.open("rb") as stream:
        # Against damage, not against forgers: md5 is what the files were published with.
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _validator(response: Any) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    return response.headers.get("Last-Modified") or None


def _length(response: Any) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3)."""
    value = error.headers.get("Retry-After", "")
    if re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()
