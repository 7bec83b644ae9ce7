"""An archive of images unpacks to whole files inside its folder, or is refused by name."""

import gzip
import io
import os
import random
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xray_lightning.data.download import archive as unpack
from xray_lightning.data.download.archive import Unpacked, unpack_images
from xray_lightning.errors import RunFailedError

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"x", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def unpacked(path: Path, *, most: int = 10**6) -> Unpacked:
    return unpack_images(path, path.parent / "in" / "side", most=most, advance=lambda _: None)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_images_come_out_as_they_went_in_and_the_whole_archive_is_told(tmp_path: Path) -> None:
    noise = random.Random(0)
    images = {f"images/{place}.png": noise.randbytes(512 * place) for place in range(5)}
    folder = member("images", b"", type=tarfile.DIRTYPE)
    path = archive(tmp_path / "a.tar.gz", folder, *(member(*item) for item in images.items()))
    told: list[int] = []
    done = unpack_images(path, tmp_path / "in", most=10**6, advance=told.append)
    assert files(tmp_path / "in") == images
    assert done == Unpacked(5, 512 * 10)
    assert 0 < sum(told) <= path.stat().st_size


def test_modes_owners_and_times_of_an_archive_are_not_taken_over(tmp_path: Path) -> None:
    odd = member("a.png", mode=0o4777, uid=4242, mtime=0)
    unpacked(archive(tmp_path / "a.tar.gz", odd))
    state = (tmp_path / "in" / "side" / "a.png").stat()
    assert state.st_mode & 0o7111 == 0
    assert state.st_uid == os.getuid()
    assert state.st_mtime > 0


HOSTILE = {
    "absolute": (member("/tmp/xray_outside.png"), "leads outside"),
    "parent": (member("images/../../../outside.png"), "leads outside"),
    "drive": (member("C:\\outside.png"), "leads outside"),
    "symlink": (member("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link to"),
    "hard link": (member("a.png", b"", type=tarfile.LNKTYPE, linkname="../../x"), "a link to"),
    "fifo": (member("a.png", b"", type=tarfile.FIFOTYPE), "a FIFO"),
    "device": (member("a.png", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "a device"),
    "block device": (member("a.png", b"", type=tarfile.BLKTYPE), "a device"),
    "control characters": (member("a\x1b[2J.png"), "the odd path"),
    "long name": (member("a" * 250 + ".png"), "the odd path"),
    "deep": (member("a/" * 40 + "a.png"), "the odd path"),
    "no name": (member("."), "no plain file"),
    "twice": (member("first.png"), "there twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_fault_52_a_hostile_member_is_refused_and_nothing_lies_outside(
    name: str, tmp_path: Path
) -> None:
    hostile, reason = HOSTILE[name]
    path = archive(tmp_path / "a.tar.gz", member("first.png"), hostile, member("last.png"))
    with pytest.raises(RunFailedError, match=reason) as caught:
        unpacked(path)
    assert str(path) in str(caught.value)
    assert set(files(tmp_path)) == {"a.tar.gz", "in/side/first.png"}
    assert not Path("/tmp/xray_outside.png").exists()


PARTS = st.sampled_from(
    ["..", ".", "", "a", "b.png", "link", "~", "C:", "a\\b.png", "\n", "OUTSIDE"]
)
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]


@given(
    names=st.lists(st.lists(PARTS, min_size=1, max_size=5).map("/".join), min_size=1, max_size=6),
    targets=st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=6, max_size=6),
    kinds=st.lists(st.sampled_from(KINDS), min_size=6, max_size=6),
)
def test_fault_52_whatever_the_names_and_links_nothing_is_written_outside(
    names: list[str],
    targets: list[str],
    kinds: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("names")
    inside, outside = root / "in" / "side", root / "outside"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    members = [
        member(name.replace("OUTSIDE", str(outside)), b"", type=kind, linkname=target)
        for name, target, kind in zip(names, targets, kinds, strict=False)
    ]
    path = archive(root / "a.tar.gz", member("first.png"), *members)
    with suppress(RunFailedError):
        unpacked(path)
    assert (inside / "first.png").read_bytes() == b"x"
    assert list(outside.iterdir()) == []
    there = [found for found in root.rglob("*") if not found.is_relative_to(inside)]
    assert sorted(found.name for found in there) == ["a.tar.gz", "in", "outside", "side"][:3]


def test_fault_52_a_link_then_a_file_through_it_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    link = member("images", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "target"))
    with pytest.raises(RunFailedError, match="a link to"):
        unpacked(archive(tmp_path / "a.tar.gz", link, member("images/a.png")))
    assert list((tmp_path / "target").iterdir()) == []


def test_fault_52_a_link_that_lies_in_the_folder_already_leads_nowhere(tmp_path: Path) -> None:
    inside, target = tmp_path / "in" / "side", tmp_path / "target"
    inside.mkdir(parents=True)
    target.mkdir()
    (inside / "images").symlink_to(target)
    with pytest.raises(RunFailedError, match="leads outside by a link"):
        unpacked(archive(tmp_path / "a.tar.gz", member("images/a.png")))
    (inside / ".b.png.part").symlink_to(target / "written")
    unpacked(archive(tmp_path / "b.tar.gz", member("b.png")))
    assert list(target.iterdir()) == []
    assert (inside / "b.png").read_bytes() == b"x"


def test_fault_52_an_archive_that_unpacks_to_too_much_is_left_in_time(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.tar.gz", *(member(f"{n}.png", bytes(10**6)) for n in range(20)))
    assert bomb.stat().st_size < 50_000
    with pytest.raises(RunFailedError, match="unpacks to more than 5,000,000 bytes"):
        unpacked(bomb, most=5_000_000)
    assert sum(map(len, files(tmp_path / "in").values())) < 5_000_000
    assert not list((tmp_path / "in").glob(".*"))  # nor is half a file left


def test_a_tail_of_zeros_without_end_is_left_in_time(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", member("a.png"))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(10**7)))
    with pytest.raises(RunFailedError, match="unpacks to more than"):
        unpacked(path)


def headers(*blocks: tarfile.TarInfo) -> bytes:
    return b"".join(info.tobuf(tarfile.GNU_FORMAT) for info in blocks)


@pytest.mark.parametrize("size", [2**33, 2**40], ids=["8 GB", "1 TB"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_fault_52_a_header_that_claims_a_huge_size_takes_no_memory_and_no_disk(
    kind: bytes, size: int, tmp_path: Path
) -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.size = kind, size
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(headers(info) + bytes(4096)))
    with pytest.raises(RunFailedError, match=r"claims 8,589|claims 1,099"):
        unpacked(path, most=2**50)
    assert files(tmp_path / "in") == {}


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_FILES", 3)
    with pytest.raises(RunFailedError, match="more than 3 files"):
        unpacked(archive(tmp_path / "a.tar.gz", *(member(f"{n}.png") for n in range(5))))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_inside(data: bytes) -> bytes:
    """A whole gzip of a tar that ends in the middle of a file."""
    return gzip.compress(gzip.decompress(data)[:5000])


def wrong_header(data: bytes) -> bytes:
    plain = bytearray(gzip.decompress(data))
    second = 512 + 4096
    plain[second : second + 100] = b"\xff" * 100
    return gzip.compress(bytes(plain))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [cut, cut_inside, wrong_header, flipped, lambda _: b"", lambda _: b"<html>"]
)
def test_a_damaged_archive_is_refused_and_nothing_of_it_stays(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    noise = random.Random(0)
    images = {f"{place}.png": noise.randbytes(4096) for place in range(8)}
    path = archive(tmp_path / "a.tar.gz", *(member(*item) for item in images.items()))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFailedError, match="damaged archive"):
        unpacked(path)
    assert files(tmp_path / "in") == {}


def test_headers_of_headers_of_headers_end_in_one_line(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_LONGNAME
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(headers(*[info] * 3000) + bytes(1024)))
    with pytest.raises(RunFailedError, match="damaged archive"):
        unpacked(path, most=10**8)


def test_an_archive_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="holds no image"):
        unpacked(archive(tmp_path / "a.tar.gz", member("README.txt")))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a file")
    with pytest.raises(RunFailedError, match="cannot be unpacked"):
        unpacked(archive(tmp_path / "a.tar.gz", member("a.png")))
