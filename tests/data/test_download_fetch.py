"""A file comes whole from a server that cuts, stalls, lies or asks for patience."""

import hashlib
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from file_server import FileServer, Handler, cut_after, serving, stall_after, status

from xray_lightning.data.download.http import Patience, check_base, fetch_verified
from xray_lightning.errors import RunFailedError, UserError

BODY = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Seen:
    """Notes what a watch is told, and how long a download would have waited."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int | None]] = []
        self.bytes = 0
        self.waits: list[float] = []
        self.patience = Patience(stall_seconds=5, tries=4, sleep=self.waits.append)

    def begin(self, done: int, total: int | None) -> None:
        self.begun.append((done, total))

    def advance(self, count: int) -> None:
        self.bytes += count


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer({"/file": BODY})) as state:
        yield state


@pytest.fixture
def seen() -> Seen:
    return Seen()


def get(
    server: FileServer, folder: Path, seen: Seen, *, most: int = 400_000, md5: str = MD5
) -> Path:
    part = folder / "file.part"
    fetch_verified(
        f"{server.url}file", part, md5=md5, most=most, watch=seen, patience=seen.patience
    )
    return part


def test_a_file_comes_whole_and_each_byte_is_told(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert (seen.begun, seen.bytes, seen.waits) == ([(0, len(BODY))], len(BODY), [])


def test_a_connection_cut_many_times_is_gone_on_with_by_ranges(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.faults = [cut_after(30_000) for _ in range(8)]  # twice as often as tries in vain
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == [
        None,
        *(f"bytes={30_000 * cuts}-" for cuts in range(1, 9)),
    ]
    assert seen.bytes == len(BODY)  # nothing came twice


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.faults = [cut_after(100_000), *[status(503)] * 4]
    with pytest.raises(RunFailedError, match=r"100,000 bytes are kept: run the same command again"):
        get(server, tmp_path, seen)
    assert get(server, tmp_path, Seen()).read_bytes() == BODY
    assert server.asked[-1] == ("/file", "bytes=100000-")


def test_a_stalled_connection_is_left_and_gone_on_with(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    seen.patience = Patience(stall_seconds=0.1, sleep=seen.waits.append)
    server.faults = [stall_after(50_000)]
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert server.asked[1] == ("/file", "bytes=50000-")


def test_a_server_that_ignores_ranges_sends_the_file_anew(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.ranges = False
    server.faults = [cut_after(200_000)]
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert seen.begun == [(0, len(BODY)), (0, len(BODY))]


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.ranges = False
    server.faults = [cut_after(1000)] * 50
    with pytest.raises(RunFailedError, match="4 tries in a row brought nothing new"):
        get(server, tmp_path, seen)


@pytest.mark.parametrize(
    ("etag", "size"),
    [('"2"', 300_000), (None, 290_000)],
    ids=["another ETag, the same size", "no ETag, another size"],
)
def test_a_file_that_changed_between_two_tries_is_not_joined_with_its_former_self(
    etag: str | None,
    size: int,
    server: FileServer,
    tmp_path: Path,
    seen: Seen,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.etag = etag and '"1"'
    server.files["/file"] = bytes(size)
    server.faults = [cut_after(100_000), *[status(500)] * 4]
    with pytest.raises(RunFailedError):
        get(server, tmp_path, seen)
    server.files["/file"], server.etag = BODY, etag
    assert get(server, tmp_path, Seen()).read_bytes() == BODY
    assert "md5" not in caplog.text  # it was seen at once, not when all of it was there


def test_more_bytes_than_the_file_has_now_are_started_over(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    part = tmp_path / "file.part"
    part.write_bytes(bytes(350_000))
    notes = tmp_path / "file.part.json"
    notes.write_text(json.dumps({"validator": None, "size": 390_000}))
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["bytes=350000-", None]


@pytest.mark.parametrize("notes", ["", "[]", '{"size": 5}', "\udce4"], ids=repr)
def test_a_part_without_notes_that_make_sense_is_started_over(
    notes: str, server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    (tmp_path / "file.part.json").write_bytes(notes.encode(errors="surrogateescape"))
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert server.asked == [("/file", None)]


def test_a_wrong_file_is_named_and_fetched_once_more(
    server: FileServer, tmp_path: Path, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    right, server.files["/file"] = BODY, b"another" + BODY[7:]

    def mend(handler: object) -> None:
        server.files["/file"] = right
        handler.send()  # type: ignore[attr-defined]

    server.faults = [lambda handler: handler.send(), mend]
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert f"{server.url}file: 300,000 bytes with md5" in caplog.text


def test_a_file_that_stays_wrong_is_refused_and_removed(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.files["/file"] = b"<html>sign in</html>"
    with pytest.raises(RunFailedError, match=rf"/file: 20 bytes with md5 \w+ where {MD5} belongs"):
        get(server, tmp_path, seen)
    assert len(server.asked) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_end_is_not_written_to_the_end(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    with pytest.raises(RunFailedError, match="at most 200,000"):
        get(server, tmp_path, seen, most=200_000)
    assert len(server.asked) == 1


def test_a_file_of_unknown_length_is_not_written_to_the_end_either(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(bytes(100_000))
            except OSError:
                return

    server.faults = [endless]
    with pytest.raises(RunFailedError, match="at most 400,000"):
        get(server, tmp_path, seen)
    assert (tmp_path / "file.part").stat().st_size <= 400_000


def test_a_file_of_unknown_length_comes_whole(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    def unknown(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.faults = [unknown]
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert seen.begun == [(0, None)]


def test_a_file_that_is_not_there_is_not_asked_for_again(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    del server.files["/file"]
    with pytest.raises(UserError, match=r"/file answers 404 Not Found"):
        get(server, tmp_path, seen)
    assert (len(server.asked), seen.waits) == (1, [])


def test_waits_grow_up_to_a_limit(server: FileServer, tmp_path: Path, seen: Seen) -> None:
    server.faults = [status(502)] * 8
    seen.patience = Patience(tries=9, longest_wait=20, sleep=seen.waits.append)
    get(server, tmp_path, seen)
    assert seen.waits == [1, 2, 4, 8, 16, 20, 20, 20]


def test_retry_after_is_honoured_in_both_forms_and_bounded(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.faults = [
        status(503, Retry_After="7"),
        status(429, Retry_After="999999"),
        status(503, Retry_After=soon),
    ]
    get(server, tmp_path, seen)
    assert seen.waits[:2] == [7, 900]
    assert 60 < seen.waits[2] <= 100
    server.faults = [status(503, Retry_After="later"), status(503, Retry_After="-1")]
    assert Seen().patience.wait(1, None) == 1


def test_a_server_that_is_not_there_is_told_in_one_line(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    with serving(FileServer()) as gone:
        pass
    with pytest.raises(RunFailedError, match=r"cannot be reached \(.*refused.*\); 4 tries"):
        get(gone, tmp_path, seen)


def test_a_disk_that_fails_is_not_taken_for_a_network_that_does(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(RunFailedError, match=r"file\.part cannot be written: No space left"):
        get(server, tmp_path, seen)
    assert len(server.asked) == 1


def test_a_redirect_is_followed_with_its_range_but_never_to_a_file(
    server: FileServer, tmp_path: Path, seen: Seen
) -> None:
    server.files["/other"] = BODY
    elsewhere = status(302, Location=f"{server.url}other")
    server.faults = [elsewhere, cut_after(100_000), elsewhere]
    assert get(server, tmp_path, seen).read_bytes() == BODY
    assert server.asked[-1] == ("/other", "bytes=100000-")
    (tmp_path / "file.part").unlink()
    server.faults = [status(302, Location="file:///etc/passwd")]
    with pytest.raises(UserError, match="302"):
        get(server, tmp_path, seen)


@pytest.mark.parametrize("url", ["file:///etc/", "ftp://a/", "http://", "http:// a/", "nih", ""])
def test_an_address_that_is_not_http_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--base-url"):
        check_base("--base-url", url)
