"""Texts that name data in configs: paths, names, URLs without secrets, and images in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import ids, png, tar

from ssole.data.arrays import ArraySource
from ssole.data.describe import MAX_PATHS, are_paths, canonical, describe, is_in_memory, why_not_reopened
from ssole.data.sources import open_source
from ssole.errors import DataError


def test_what_a_config_keeps_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert describe("photos") == describe(Path("photos")) == str(tmp_path / "photos")
    assert describe(["photos", "s3://b/x.tar"]) == (str(tmp_path / "photos"), "s3://b/x.tar")
    for name in ("digits-m", "CIFAR10", "s3://b/{0..9}.tar", "neither-name-nor-file"):
        assert describe(name) == name
        assert not is_in_memory(describe(name))
    assert describe("{0..9}.tar") == str(tmp_path / "{0..9}.tar")
    for images in (np.zeros((2, 4, 4), np.uint8), ArraySource(np.zeros((2, 4, 4), np.uint8), name="mine")):
        assert is_in_memory(describe(images))
        assert canonical(images) is images
    assert canonical(["photos", "s3://b/x.tar"]) == (str(tmp_path / "photos"), "s3://b/x.tar")
    assert canonical("https://me:word@host/x.tar") == "https://me:word@host/x.tar"  # its description lacks the password
    (tmp_path / "REMOVED").mkdir()
    assert canonical("REMOVED") == str(tmp_path / "REMOVED")  # which stands for secrets in URLs alone
    assert describe(images) == "in memory: mine"


def test_names_stay_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert describe("digits-m") == "digits-m"
    assert describe("CIFAR10") == "CIFAR10"
    assert describe(["photos", Path("photos/cat")]) == (
        str(Path("photos").absolute()),
        str(Path("photos/cat").absolute()),
    )
    assert describe("shard-{00..09}.tar") == str(Path("shard-{00..09}.tar").absolute())
    assert describe("s3://bucket/*.tar") == "s3://bucket/*.tar"
    assert describe([b"an encoded image", b"another"]) == "in memory: list"


@pytest.mark.parametrize("text", ["", "~nobody/photos", "a" * 5000, "a\0b"])
def test_what_is_no_path_stays_as_it_is(text: str) -> None:
    assert describe(text) == text


@pytest.mark.parametrize("name", ["digits-m", "cifar10"])
def test_a_folder_of_the_name_of_a_data_set_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert describe(name) == name
    assert describe(f"./{name}") == str(tmp_path / name)


def test_the_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    assert describe("~/photos") == str(tmp_path / "photos")
    assert describe("~/*.tar") == str(tmp_path / "*.tar")


def test_images_in_memory_are_named_by_what_they_are() -> None:
    assert describe(np.zeros((2, 4, 4), np.uint8)) == "in memory: ndarray (2, 4, 4)"
    assert describe([Path("photos"), np.zeros((4, 4))]) == "in memory: list"  # not even a list of paths in part
    assert not is_in_memory(("in memory: x",))  # one of several files may have such a name
    assert not is_in_memory(None)


def test_what_is_opened_again_is_neither_in_memory_nor_behind_a_url() -> None:
    for text in ("digits-m", "/photos", ("/a.tar", "/b.tar"), None):
        assert why_not_reopened(text) is None
    for text in ("https://host/x.tar", "s3://b/x.tar", ("/a.tar", "s3://b/x.tar")):
        assert why_not_reopened(text) == "images behind a URL, which are fetched only if you name it"
    assert why_not_reopened(describe(np.zeros((2, 4, 4), np.uint8))) == "images in memory"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (["a", Path("b")], True),
        (("a",), True),
        ([], True),
        ("a", False),
        (["a", b"an encoded image"], False),
        ({"a"}, False),
        (None, False),
    ],
)
def test_a_list_of_paths(spec: object, expected: bool) -> None:
    assert are_paths(spec) is expected


def test_brackets_in_the_working_directory_are_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "proj [v2]" / "photos"
    tar(folder / "a.tar", {"a.png": png(1)})
    monkeypatch.chdir(tmp_path / "proj [v2]")
    named = canonical("photos/*.tar")
    monkeypatch.chdir(tmp_path)
    assert ids(open_source(named)) == ids(open_source(folder / "a.tar"))


def test_very_many_paths_belong_into_a_list() -> None:
    paths = ["a.png"] * (MAX_PATHS + 1)
    assert len(describe(paths[1:])) == MAX_PATHS
    with pytest.raises(DataError, match=r"100,001 paths are too many .*: write them to a text file, one a line"):
        canonical(paths)
