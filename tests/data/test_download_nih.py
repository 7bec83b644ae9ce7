"""The archives of NIH come whole, once, several at a time, and after any kill."""

import gzip
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment
from file_server import FileServer, Handler, cut_after, serving, stall_after, status
from tables import NIH_HEADER

from xray_lightning.data.download import nih
from xray_lightning.data.download.http import Patience
from xray_lightning.data.download.nih import (
    ARCHIVES,
    METADATA,
    OFFICIAL_LINES,
    Archive,
    Fetched,
    download_nih,
    parse_parts,
)
from xray_lightning.data.manifest import read_manifest
from xray_lightning.errors import InterruptedRunError, RunFailedError, UserError

IMAGES = 40
NO_TIME = Patience(stall_seconds=5, sleep=lambda _: None)


def packed(part: int) -> bytes:
    """A tar.gz of `images/*.png` as NIH packs them."""
    stream = io.BytesIO()
    noise = random.Random(part)
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for place in range(IMAGES):
            info = tarfile.TarInfo(f"images/{part:08d}_{place:03d}.png")
            info.size = 3000
            tar.addfile(info, io.BytesIO(noise.randbytes(info.size)))
    return gzip.compress(stream.getvalue(), mtime=0)


BODIES = {part: packed(part) for part in (1, 2, 3)}
SMALL = tuple(
    Archive(part, f"id{part}", len(body), hashlib.md5(body).hexdigest())
    for part, body in BODIES.items()
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    state = FileServer({f"/id{part}.gz": body for part, body in BODIES.items()})
    with serving(state):
        yield state


def get(server: FileServer, root: Path, *parts: int, jobs: int = 1) -> Fetched:
    return download_nih(
        root, parts=parts, jobs=jobs, base_url=server.url, archives=SMALL, patience=NO_TIME
    )


def images(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def as_packed(*parts: int) -> dict[str, bytes]:
    found = {}
    for part in parts:
        with tarfile.open(fileobj=io.BytesIO(BODIES[part])) as tar:
            for info in tar:
                stream = tar.extractfile(info)
                assert stream is not None
                found[f"images_{part:03d}/{info.name}"] = stream.read()
    return found


def test_the_official_archives_are_twelve_and_their_entries_differ() -> None:
    assert [archive.part for archive in ARCHIVES] == list(range(1, 13))
    assert len({archive.id for archive in ARCHIVES}) == len({a.md5 for a in ARCHIVES}) == 12
    assert all(len(archive.md5) == len(archive.id) == 32 for archive in ARCHIVES)
    assert sum(archive.bytes for archive in ARCHIVES) == 45_079_862_784


def test_chosen_parts_come_into_folders_of_their_own_and_archives_do_not_stay(
    server: FileServer, tmp_path: Path
) -> None:
    fetched = get(server, tmp_path / "nih", 1, 3)
    assert fetched.new == {1: IMAGES, 3: IMAGES}
    assert images(tmp_path) == {f"nih/{k}": v for k, v in as_packed(1, 3).items()}
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_run_fetches_nothing(server: FileServer, tmp_path: Path) -> None:
    get(server, tmp_path, 1)
    server.asked.clear()
    assert get(server, tmp_path, 1) == Fetched({}, {1: IMAGES}, METADATA)
    assert server.asked == []
    assert get(server, tmp_path, 1, 2).new == {2: IMAGES}
    assert [path for path, _ in server.asked] == ["/id2.gz"]


def test_a_part_whose_images_were_removed_is_fetched_again(
    server: FileServer, tmp_path: Path
) -> None:
    get(server, tmp_path, 1)
    next(tmp_path.rglob("*.png")).unlink()
    assert get(server, tmp_path, 1).new == {1: IMAGES}
    assert images(tmp_path) == as_packed(1)


def test_two_archives_come_at_once(server: FileServer, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def meet(handler: Handler) -> None:
        both.wait()  # passes only when two requests are open together
        handler.send()

    server.faults = [meet, meet]
    assert get(server, tmp_path, jobs=2).new == dict.fromkeys((1, 2, 3), IMAGES)
    assert images(tmp_path) == as_packed(1, 2, 3)


def test_one_archive_that_fails_is_named_and_does_not_hold_up_the_others(
    server: FileServer, tmp_path: Path
) -> None:
    del server.files["/id1.gz"]
    with pytest.raises(UserError, match=r"/id1\.gz answers 404"):
        get(server, tmp_path)
    assert images(tmp_path) == as_packed(2, 3)


def test_several_archives_that_fail_are_all_named(server: FileServer, tmp_path: Path) -> None:
    server.files = {"/id1.gz": b"wrong", "/id2.gz": BODIES[2]}
    with pytest.raises(RunFailedError, match=r"/id1\.gz: 5 bytes .*/id3\.gz answers 404"):
        get(server, tmp_path)
    assert images(tmp_path) == as_packed(2)


def test_fault_50_an_archive_with_a_wrong_md5_is_never_unpacked(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/id1.gz"] = BODIES[2]
    with pytest.raises(RunFailedError, match=r"/id1\.gz: .* with md5"):
        get(server, tmp_path, 1)
    assert images(tmp_path) == {}


def test_fault_49_51_cuts_and_a_busy_server_are_sat_out(server: FileServer, tmp_path: Path) -> None:
    server.faults = [status(503, Retry_After="9"), cut_after(20_000), cut_after(20_000)]
    get(server, tmp_path, 1)
    assert images(tmp_path) == as_packed(1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_too_full_is_told_before_anything_is_asked_for(
    jobs: int, server: FileServer, tmp_path: Path
) -> None:
    unpacked = sum(round(archive.bytes * 1.05) for archive in SMALL)
    at_once = sum(sorted(archive.bytes for archive in SMALL)[-jobs:])

    def start(free: int) -> Fetched:
        return download_nih(
            tmp_path, jobs=jobs, base_url=server.url, archives=SMALL, free=lambda _: free
        )

    with pytest.raises(UserError, match=r"0\.0 GB are needed and 0\.0 GB are free"):
        start(unpacked + at_once - 1)
    assert server.asked == []
    assert start(unpacked + at_once).new == dict.fromkeys((1, 2, 3), IMAGES)


def test_what_is_there_needs_no_room_again(server: FileServer, tmp_path: Path) -> None:
    get(server, tmp_path)
    download_nih(tmp_path, base_url=server.url, archives=SMALL, free=lambda _: 0)


def test_two_downloads_into_one_folder_do_not_meet(server: FileServer, tmp_path: Path) -> None:
    with nih.working_in(tmp_path), pytest.raises(UserError, match="another download works in it"):
        get(server, tmp_path, 1)
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        get(server, tmp_path / "file" / "nih", 1)


# -- kills -----------------------------------------------------------------------------------------

SCRIPT = """
import io, os, signal, sys, tarfile, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_download_nih import SMALL, NO_TIME
from xray_lightning.data.download import archive
from xray_lightning.data.download.nih import download_nih
from xray_lightning.errors import InterruptedRunError, XrayError
if len(sys.argv) > 4:
    class Stalls(io.BytesIO):  # the eleventh image stops in its middle
        def read(self, count=-1):
            if self.tell():
                print('unpacking', flush=True)
                time.sleep(60)
            return super().read(count)
    extract, count, archive.CHUNK = tarfile.TarFile.extractfile, [0], 1000
    def slow(tar, member):
        count[0] += 1
        source = extract(tar, member)
        return Stalls(source.read()) if count[0] == 11 else source
    tarfile.TarFile.extractfile = slow
try:
    download_nih(Path(sys.argv[1]), parts=(1,), base_url=sys.argv[2], archives=SMALL)
except (XrayError, InterruptedRunError) as error:
    print(error)
    sys.exit(error.exit_code)
"""


def started(server: FileServer, root: Path, *flags: str) -> subprocess.Popen[str]:

    here = str(Path(__file__).parent)
    path = os.pathsep.join([str(REPOSITORY), here, str(REPOSITORY / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), server.url, here, *flags],
        env=environment(no_proxy="127.0.0.1", PYTHONPATH=path),
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_part(root: Path, size: int) -> None:
    part = root / ".download" / "images_001.tar.gz.part"
    for _ in range(3000):
        if part.exists() and part.stat().st_size == size:
            return
        time.sleep(0.01)
    raise AssertionError("the archive did not come")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_while_an_archive_comes_loses_none_of_it(
    number: signal.Signals, server: FileServer, tmp_path: Path
) -> None:
    server.faults = [stall_after(50_000)]
    with started(server, tmp_path) as process:
        wait_for_part(tmp_path, 50_000)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("run the same command again" in said) == (number == signal.SIGINT)
    assert get(server, tmp_path, 1).new == {1: IMAGES}
    assert server.asked[-1] == ("/id1.gz", "bytes=50000-")
    assert images(tmp_path) == as_packed(1)


def test_a_kill_while_an_archive_is_unpacked_leaves_whole_images_and_ends_whole(
    server: FileServer, tmp_path: Path
) -> None:
    with started(server, tmp_path, "slowly") as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.kill()
    assert said == "unpacking\n"
    whole = as_packed(1)
    there = images(tmp_path)
    assert len(there) == 10
    assert all(whole[name] == content for name, content in there.items())
    server.asked.clear()
    assert get(server, tmp_path, 1).new == {1: IMAGES}
    assert server.asked == []  # the archive itself was there
    assert images(tmp_path) == whole


def test_ctrl_c_is_told_as_such() -> None:
    from xray_lightning.workers import all_of

    stop, ended = threading.Event(), threading.Event()
    told: list[bool] = []

    def press() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        told.append(stop.wait(20))
        ended.set()
        return 1

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or ignored: see SCRIPT
    try:
        with pytest.raises(InterruptedRunError, match="run the same command again"):
            all_of([press], jobs=1, stop=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(30)
    assert told == [True]  # at once, not when the work had ended by itself


# -- the table and the lists -----------------------------------------------------------------------


def serve_metadata(server: FileServer) -> str:
    names = [f"00000001_{n:03d}.png" for n in range(IMAGES)]
    rows = [f"{name},No Finding,{n},1,50,M,PA" for n, name in enumerate(names)]
    for file, lines in (
        ("Data_Entry_2017_v2020.csv", [NIH_HEADER, *rows]),
        ("train_val_list.txt", names[:30]),
        ("test_list.txt", names[30:]),
    ):
        server.files[f"/lists/{file}"] = "\n".join(lines).encode()
    return f"{server.url}lists"


def test_table_and_lists_come_from_where_one_says_and_make_a_data_set(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve_metadata(server)
    fetched = download_nih(
        tmp_path, parts=(1,), base_url=server.url, metadata_url=url, archives=SMALL
    )
    assert fetched.missing == ()
    manifest = read_manifest(tmp_path)
    assert (manifest.table["path"] != "").all()
    assert {side: len(names) for side, names in manifest.given.items()} == {
        "train_val": 30,
        "test": 10,
    }
    official = OFFICIAL_LINES["test_list.txt"]
    assert f"test_list.txt lists 10 images, where NIH's lists {official}" in caplog.text
    caplog.clear()
    (tmp_path / "test_list.txt").unlink()
    server.files["/lists/test_list.txt"] = b"1.png\n" * official
    download_nih(tmp_path, parts=(1,), base_url=server.url, metadata_url=url, archives=SMALL)
    assert caplog.messages == []  # as many as NIH's


def test_table_and_lists_that_are_there_are_kept(server: FileServer, tmp_path: Path) -> None:
    url = serve_metadata(server)
    (tmp_path / "Data_Entry_2017.csv").write_text("mine")
    (tmp_path / "test_list.txt").write_text("mine")
    download_nih(tmp_path, parts=(1,), base_url=server.url, metadata_url=url, archives=SMALL)
    assert (tmp_path / "test_list.txt").read_text() == "mine"
    assert not (tmp_path / "Data_Entry_2017_v2020.csv").exists()


@pytest.mark.parametrize("name", ["Data_Entry_2017_v2020.csv", "test_list.txt"])
def test_a_page_in_place_of_a_table_is_refused(
    name: str, server: FileServer, tmp_path: Path
) -> None:
    url = serve_metadata(server)
    server.files[f"/lists/{name}"] = b"<html>\nsign in\n</html>\n"
    with pytest.raises(UserError, match=f"{name} is not NIH's {name}"):
        download_nih(tmp_path, base_url=server.url, metadata_url=url, archives=SMALL)
    assert not (tmp_path / name).exists()


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", range(1, 13)), ("1,2", (1, 2)), (" 3-5, 12,4", (3, 4, 5, 12)), ("7", (7,))],
)
def test_parts_are_named_by_numbers_and_ranges(text: str, parts: tuple[int, ...]) -> None:
    assert parse_parts(text) == tuple(parts)


@pytest.mark.parametrize("text", ["0", "13", "a", "1-", "-1", "5-3", "1-99999999", "1.0"])
def test_parts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--parts"):
        parse_parts(text)


def xray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xray_lightning.cli.main", "data", "download", *arguments],
        env=environment(no_proxy="127.0.0.1", PYTHONPATH=str(REPOSITORY), COLUMNS="100"),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["nih", "chestmnist"])
def test_the_command_shows_an_example(name: str) -> None:
    assert f"Example: xray data download {name}" in xray(name, "--help").stdout


def test_a_mirror_without_the_file_ends_in_one_line(server: FileServer, tmp_path: Path) -> None:
    done = xray("nih", str(tmp_path / "nih"), "--parts", "1", "--base-url", server.url)
    assert done.returncode == 2, done.stderr
    if "are needed" not in done.stderr:  # a small disk is told first
        assert done.stderr.startswith(f"xray: error: {server.url}{ARCHIVES[0].id}.gz answers 404")
    assert len(done.stderr.splitlines()) == 1
