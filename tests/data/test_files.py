"""Images are found by name at any depth, and odd entries of a folder neither count nor block."""

import os
from pathlib import Path

import pytest
from tables import touch

from xray_lightning.data.image_files import find_files
from xray_lightning.errors import UserError

WANTED = frozenset({"1.png", "2.png", "3.png"})


def test_images_are_found_by_name_at_any_depth(tmp_path: Path) -> None:
    first = touch(tmp_path / "images_001" / "images" / "1.png")
    second = touch(tmp_path / "2.png")
    touch(tmp_path / "deep" / "er" / "unlisted.JPG")
    touch(tmp_path / "images_001" / "3.png.txt")
    assert find_files(tmp_path, WANTED) == ({"1.png": str(first), "2.png": str(second)}, 1)


def test_two_files_of_one_name_are_refused_with_both_paths(tmp_path: Path) -> None:
    paths = [touch(tmp_path / folder / "1.png") for folder in ("a", "b")]
    with pytest.raises(UserError) as caught:
        find_files(tmp_path, WANTED)
    assert f"{paths[0]} and {paths[1]}" in str(caught.value)


def test_two_files_of_one_name_that_nobody_wants_are_no_fault(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        touch(tmp_path / folder / "9.png")
    assert find_files(tmp_path, WANTED) == ({}, 2)


def test_one_file_by_two_ways_is_one_file(tmp_path: Path) -> None:
    real = touch(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").symlink_to(real)
    (tmp_path / "c").symlink_to(tmp_path / "a", target_is_directory=True)
    paths, unlisted = find_files(tmp_path, WANTED)
    assert os.path.samefile(paths["1.png"], real)
    assert unlisted == 0


def test_fault_36_links_that_loop_or_dangle_and_fifos_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "1.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").mkdir()
    assert find_files(tmp_path, WANTED) == ({}, 0)
