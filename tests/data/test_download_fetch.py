"""A file comes whole from a server that cuts, stalls, lies or asks for patience."""

import hashlib
import json
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from file_server import FileServer, Handler, cut_after, serving, stall_after, status

from xray_lightning.data.download.http import Patience, check_base, fetch_verified
from xray_lightning.errors import RunFailedError, UserError

BODY = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Fetching:
    """A download from a server: what its watch is told, and how long it would have waited."""

    def __init__(self, server: FileServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.part = folder / "file.part"
        self.again()

    def again(self) -> "Fetching":
        """Forget what was seen, as another run would."""
        self.begun: list[tuple[int, int | None]] = []
        self.bytes = 0
        self.waits: list[float] = []
        self.patience = Patience(stall_seconds=5, tries=4, sleep=self.waits.append)
        return self

    def begin(self, done: int, total: int | None) -> None:
        self.begun.append((done, total))

    def advance(self, count: int) -> None:
        self.bytes += count

    def get(self, *, most: int = 400_000) -> bytes:
        url = f"{self.server.url}file"
        fetch_verified(url, self.part, md5=MD5, most=most, watch=self, patience=self.patience)
        return self.part.read_bytes()


@pytest.fixture
def fetch(tmp_path: Path) -> Iterator[Fetching]:
    with serving(FileServer({"/file": BODY})) as server:
        yield Fetching(server, tmp_path)


def test_a_file_comes_whole_and_each_byte_is_told(fetch: Fetching) -> None:
    assert fetch.get() == BODY
    assert (fetch.begun, fetch.bytes, fetch.waits) == ([(0, len(BODY))], len(BODY), [])


def test_fault_49_a_connection_cut_many_times_is_gone_on_with_by_ranges(fetch: Fetching) -> None:
    fetch.server.faults = [cut_after(30_000) for _ in range(8)]  # twice as often as tries in vain
    assert fetch.get() == BODY
    assert [wanted for _, wanted in fetch.server.asked] == [
        None,
        *(f"bytes={30_000 * cuts}-" for cuts in range(1, 9)),
    ]
    assert fetch.bytes == len(BODY)  # nothing came twice


def test_fault_49_a_later_run_goes_on_where_an_earlier_one_gave_up(fetch: Fetching) -> None:
    fetch.server.faults = [cut_after(100_000), *[status(503)] * 4]
    with pytest.raises(RunFailedError, match=r"100,000 bytes are kept: run the same command again"):
        fetch.get()
    assert fetch.again().get() == BODY
    assert fetch.server.asked[-1] == ("/file", "bytes=100000-")


def test_fault_51_a_stalled_connection_is_left_and_gone_on_with(fetch: Fetching) -> None:
    fetch.patience = Patience(stall_seconds=0.1, sleep=fetch.waits.append)
    fetch.server.faults = [stall_after(50_000)]
    assert fetch.get() == BODY
    assert fetch.server.asked[1] == ("/file", "bytes=50000-")


def test_fault_51_a_server_that_never_answers_is_asked_again(
    fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    fetch.patience = Patience(stall_seconds=0.1, sleep=fetch.waits.append)
    fetch.server.faults = [lambda handler: handler.state.released.wait(30)]
    assert fetch.get() == BODY
    assert "/file: no answer in time; 0 bytes kept" in caplog.text


def test_fault_51_a_trickle_counts_as_a_stall(
    fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    def trickle(handler: Handler) -> None:
        handler.send(most=1000)
        with suppress(OSError):  # when the client has had enough
            for byte in BODY[1000:3000]:
                handler.wfile.write(bytes([byte]))
                handler.state.released.wait(0.01)

    fetch.patience = Patience(stall_seconds=0.3, stall_bytes=250_000, sleep=fetch.waits.append)
    fetch.server.faults = [trickle]
    assert fetch.get() == BODY
    assert "the connection has all but stalled" in caplog.text
    assert int(str(fetch.server.asked[1][1])[6:-1]) > 1000  # what came is kept


def test_fault_49_a_connection_that_is_reset_is_gone_on_with(
    fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    def reset(handler: Handler) -> None:
        handler.send(most=50_000)
        while fetch.bytes < 50_000 and not handler.state.released.wait(0.01):
            pass
        linger = struct.pack("ii", 1, 0)  # a close that throws away what is not sent
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()

    fetch.server.faults = [reset]
    assert fetch.get() == BODY
    assert "the connection was cut (" in caplog.text
    assert fetch.server.asked[1] == ("/file", "bytes=50000-")


def test_an_answer_that_is_no_file_is_told(fetch: Fetching) -> None:
    fetch.server.faults = [status(204)]
    with pytest.raises(RunFailedError, match="answers 204 where a file was expected"):
        fetch.get()


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(fetch: Fetching) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("self_signed.pem"))
    with serving(FileServer({"/file": BODY}), context) as fetch.server:
        fetch.server.url = fetch.server.url.replace("http:", "https:")
        with pytest.raises(
            UserError, match=r"/file: its certificate cannot be trusted: self.signed"
        ):
            fetch.get()


def test_fault_49_a_server_that_ignores_ranges_sends_the_file_anew(fetch: Fetching) -> None:
    fetch.server.ranges = False
    fetch.server.faults = [cut_after(200_000)]
    assert fetch.get() == BODY
    assert fetch.begun == [(0, len(BODY)), (0, len(BODY))]


def test_fault_49_a_server_that_ignores_ranges_and_always_cuts_is_given_up(fetch: Fetching) -> None:
    fetch.server.ranges = False
    fetch.server.faults = [cut_after(1000)] * 50
    with pytest.raises(RunFailedError, match="4 tries in a row brought nothing new"):
        fetch.get()


@pytest.mark.parametrize(
    ("etag", "size"),
    [('"2"', 300_000), (None, 290_000)],
    ids=["another ETag, the same size", "no ETag, another size"],
)
def test_a_file_that_changed_between_two_tries_is_not_joined_with_its_former_self(
    etag: str | None, size: int, fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    fetch.server.etag = etag and '"1"'
    fetch.server.files["/file"] = bytes(size)
    fetch.server.faults = [cut_after(100_000), *[status(500)] * 4]
    with pytest.raises(RunFailedError):
        fetch.get()
    fetch.server.files["/file"], fetch.server.etag = BODY, etag
    assert fetch.again().get() == BODY
    assert "md5" not in caplog.text  # it was seen at once, not when all of it was there


@pytest.mark.parametrize("noted, asked", [(390_000, ["bytes=350000-", None]), (340_000, [None])])
def test_more_bytes_than_the_file_has_are_started_over(
    noted: int, asked: list[str | None], fetch: Fetching
) -> None:
    fetch.part.write_bytes(bytes(350_000))
    (fetch.folder / "file.part.json").write_text(json.dumps({"validator": None, "size": noted}))
    assert fetch.get() == BODY
    assert [wanted for _, wanted in fetch.server.asked] == asked


@pytest.mark.parametrize("notes", ["", "[]", '{"size": 5}', "\udce4"], ids=repr)
def test_a_part_without_notes_that_make_sense_is_started_over(notes: str, fetch: Fetching) -> None:
    fetch.part.write_bytes(BODY[:1000])
    (fetch.folder / "file.part.json").write_bytes(notes.encode(errors="surrogateescape"))
    assert fetch.get() == BODY
    assert fetch.server.asked == [("/file", None)]


def test_fault_50_a_wrong_file_is_named_and_fetched_once_more(
    fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    right, fetch.server.files["/file"] = BODY, b"another" + BODY[7:]

    def mend(handler: object) -> None:
        fetch.server.files["/file"] = right
        handler.send()  # type: ignore[attr-defined]

    fetch.server.faults = [lambda handler: handler.send(), mend]
    assert fetch.get() == BODY
    assert f"{fetch.server.url}file: 300,000 bytes with md5" in caplog.text


def test_fault_50_a_file_that_stays_wrong_is_refused_and_removed(fetch: Fetching) -> None:
    fetch.server.files["/file"] = b"<html>sign in</html>"
    with pytest.raises(RunFailedError, match=rf"/file: 20 bytes with md5 \w+ where {MD5} belongs"):
        fetch.get()
    assert len(fetch.server.asked) == 2
    assert list(fetch.folder.iterdir()) == []


def test_a_file_without_end_is_not_written_to_the_end(fetch: Fetching) -> None:
    with pytest.raises(RunFailedError, match="at most 200,000"):
        fetch.get(most=200_000)
    assert len(fetch.server.asked) == 1


def test_a_file_of_unknown_length_is_not_written_to_the_end_either(fetch: Fetching) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(bytes(100_000))
            except OSError:
                return

    fetch.server.faults = [endless]
    with pytest.raises(RunFailedError, match="at most 400,000"):
        fetch.get()
    assert fetch.part.stat().st_size <= 400_000


def test_a_file_of_unknown_length_comes_whole(fetch: Fetching) -> None:
    def unknown(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    fetch.server.faults = [unknown]
    assert fetch.get() == BODY
    assert fetch.begun == [(0, None)]


def test_fault_51_a_file_that_is_not_there_is_not_asked_for_again(fetch: Fetching) -> None:
    del fetch.server.files["/file"]
    with pytest.raises(UserError, match=r"/file answers 404 Not Found"):
        fetch.get()
    assert (len(fetch.server.asked), fetch.waits) == (1, [])


def test_fault_51_waits_grow_up_to_a_limit(fetch: Fetching) -> None:
    fetch.server.faults = [status(502)] * 8
    fetch.patience = Patience(tries=9, longest_wait=20, sleep=fetch.waits.append)
    fetch.get()
    assert fetch.waits == [1, 2, 4, 8, 16, 20, 20, 20]


def test_retry_after_is_honoured_in_both_forms_and_bounded(fetch: Fetching) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    fetch.server.faults = [
        status(503, Retry_After="7"),
        status(429, Retry_After="999999"),
        status(503, Retry_After=soon),
    ]
    fetch.get()
    assert fetch.waits[:2] == [7, 900]
    assert 60 < fetch.waits[2] <= 100
    past = "Wed, 21 Oct 2015 07:28:00 -0000"  # -0000: of no known time zone
    fetch.server.faults = [status(503, Retry_After=when) for when in ("later", "-1", past)]
    fetch.part.unlink()
    fetch.again().get()
    assert fetch.waits == [1, 2, 0]


def test_fault_51_a_server_that_is_not_there_is_told_in_one_line(fetch: Fetching) -> None:
    with serving(FileServer()) as fetch.server:
        pass
    with pytest.raises(RunFailedError, match=r"cannot be reached \(.*refused.*\); 4 tries"):
        fetch.get()


def test_a_disk_that_fails_is_not_taken_for_a_network_that_does(fetch: Fetching) -> None:
    fetch.part.symlink_to("/dev/full")
    with pytest.raises(RunFailedError, match=r"file\.part cannot be written: No space left"):
        fetch.get()
    assert len(fetch.server.asked) == 1


def test_a_redirect_is_followed_with_its_range_but_never_to_a_file(fetch: Fetching) -> None:
    fetch.server.files["/other"] = BODY
    elsewhere = status(302, Location=f"{fetch.server.url}other")
    fetch.server.faults = [elsewhere, cut_after(100_000), elsewhere]
    assert fetch.get() == BODY
    assert fetch.server.asked[-1] == ("/other", "bytes=100000-")
    fetch.part.unlink()
    fetch.server.faults = [status(302, Location="file:///etc/passwd")]
    with pytest.raises(UserError, match="302"):
        fetch.get()


@pytest.mark.parametrize("url", ["file:///etc/", "ftp://a/", "http://", "http:// a/", "nih", ""])
def test_an_address_that_is_not_http_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--base-url"):
        check_base("--base-url", url)
