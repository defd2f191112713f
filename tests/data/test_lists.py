"""Lists of files: what they may name, their labels, and that they read nothing outside of their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_files import ids, png, value

from ssole.data.base import Source
from ssole.data.lists import ListSource
from ssole.data.sources import open_source
from ssole.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "deep/b.png", "with, comma.png", "été.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(number))
    (tmp_path / "outside.png").write_bytes(png(99))
    return tmp_path / "photos"


def write(file: Path, text: str) -> Path:
    file.write_bytes(text.encode("utf-8"))
    return file


def test_text(folder):
    listed = write(folder / "list.txt", "\ufeffdeep/b.png\r\n\r\n  a.png\nété.png\nwith, comma.png")
    source = open_source(str(listed))
    assert isinstance(source, Source)
    assert ids(source) == ["deep/b.png", "a.png", "été.png", "with, comma.png"]
    assert [value(source, i) for i in range(4)] == [1, 0, 3, 2]
    assert source.labels is None
    assert source.name == "list.txt"


def test_names_that_are_not_text(folder):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / name).write_bytes(png(7))
    except OSError:
        pytest.skip("this file system only takes names that are text")
    (folder / "list.txt").write_bytes(b"caf\xe9.png\n")
    source = open_source(folder / "list.txt")
    assert ids(source) == [name]
    assert value(source, 0) == 7


@pytest.mark.parametrize(
    ("text", "labels", "classes"),
    [
        ("Path,Label\na.png,3\ndeep/b.png,\n\n", [3, -1], None),
        ("label,extra,filename\ndog,x,a.png\ncat,y,deep/b.png", [1, 0], ["cat", "dog"]),
        ('image\na.png\n"with, comma.png"', None, None),
        ("file,label\na.png,\ndeep/b.png,", None, None),
        ("file,label\na.png,1\ndeep/b.png,one", [0, 1], ["1", "one"]),
    ],
)
def test_tables(folder, text, labels, classes):
    source = open_source(write(folder / "list.csv", text))
    assert source.id(0) == "a.png"
    assert len(source) == 2
    assert (None if source.labels is None else source.labels.tolist()) == labels
    assert source.classes == classes
    assert [value(source, 0), value(source, 1)] == [0, 2 if "comma" in text else 1]


def test_tabs(folder):
    assert ids(open_source(write(folder / "list.tsv", "path\tlabel\nwith, comma.png\t1\n"))) == ["with, comma.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("where,label\na.png,1", r"\['where', 'label'\].*path, file"),
        ("path,label\na.png", r"line 2: fewer columns than the header \['path', 'label'\]"),
        ("path,label\n,3", "no path"),
        ("path,label\n", "names no files"),
        ("", r"\[\].*path, file"),
    ],
)
def test_tables_that_are_wrong(folder, text, said):
    with pytest.raises(DataError, match=said):
        open_source(write(folder / "list.csv", text))


def test_a_number_of_more_than_64_bits_is_a_name(folder):
    assert open_source(write(folder / "list.csv", f"path,label\na.png,{10**30}\n")).classes == [str(10**30)]


def test_labels_that_are_not_text(folder):
    (folder / "list.csv").write_bytes(b"path,label\na.png,caf\xe9\n")
    with pytest.raises(DataError, match=r"labels of .*list\.csv are not all UTF-8"):
        open_source(folder / "list.csv")


def test_an_empty_list(folder):
    with pytest.raises(DataError, match=r"list\.txt names no files"):
        open_source(write(folder / "list.txt", "\n\n"))


@pytest.mark.parametrize("entry", ["../outside.png", "deep/../../outside.png", "..", ".", "/etc/passwd", "{outside}"])
def test_nothing_outside_of_the_folder_is_read(folder, entry):
    entry = entry.replace("{outside}", str(folder.parent / "outside.png"))
    with pytest.raises(DataError, match=r"outside of .*photos.*Move the list.*root=") as raised:
        open_source(write(folder / "list.txt", f"a.png\n{entry}\n"))
    assert repr(entry) in str(raised.value)


def test_a_folder_whose_name_begins_alike_is_outside(folder):
    (folder.parent / "photos-of-others").mkdir()
    (folder.parent / "photos-of-others" / "a.png").write_bytes(png(50))
    with pytest.raises(DataError, match="outside of"):
        open_source(write(folder / "list.txt", f"{folder}-of-others/a.png"))


def test_absolute_paths_and_dots_within_the_folder(folder):
    source = open_source(write(folder / "list.txt", f"{folder}/a.png\ndeep/../deep/./b.png\n"))
    assert ids(source) == ["a.png", "deep/b.png"]
    assert value(source, 1) == 1


def test_another_root(folder):
    listed = write(folder / "deep" / "list.txt", f"photos/a.png\n{folder.parent}/outside.png")
    source = ListSource(listed, root=folder.parent)
    assert ids(source) == ["photos/a.png", "outside.png"]
    assert [value(source, 0), value(source, 1)] == [0, 99]


def test_links_in_the_folder_are_followed(folder):
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    assert value(open_source(write(folder / "list.txt", "link.png")), 0) == 99


def test_files_that_are_missing_are_told_when_read(folder):
    source = open_source(write(folder / "list.txt", "a.png\ngone.png\ndeep\nnul\0.png"))
    assert value(source, 0) == 0
    for i, reason in ((1, "No such file"), (2, "directory"), (3, "null")):
        with pytest.raises(DataError, match=rf"(?s)^{source.id(i)}: cannot read the file \(.*{reason}"):
            source.read(i)


def test_files_without_permission(folder, monkeypatch):
    """Asked for through `open`, since whoever runs the tests may be allowed everything."""
    source = open_source(write(folder / "list.txt", "a.png"))

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"^a\.png: cannot read the file \(Permission denied\)"):
        source.read(0)


def test_splits(folder):
    write(folder / "train.txt", "a.png")
    write(folder / "test.txt", "deep/b.png")
    assert ids(open_source(folder / "test.txt", split="test")) == ["deep/b.png"]
    assert ids(open_source(f"{folder}/{{train,test}}.txt", split="test")) == ["deep/b.png"]
    assert ids(open_source(f"{folder}/{{train,test}}.txt")) == ["a.png"]
    with pytest.raises(DataError, match="No test split"):
        open_source(folder / "train.txt", split="test")
