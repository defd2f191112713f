"""Folders of images and lists of files: what they hold, labels, and that a list reads nothing outside its folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import ids, png, special_files, tree, value
from PIL import Image

from ssole.data.base import Source
from ssole.data.folder import FolderSource, ListSource, find_files, image_suffixes, unread_images
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError


def test_folder_is_recursive_sorted_and_counts_what_it_leaves(tmp_path):
    tree(tmp_path, "b.png", "a/deep/er/x.PNG", "a.jpg", ".hidden.png", ".git/c.png", "notes.txt", "a/readme", "z.TXT")
    source = open_source(str(tmp_path))
    assert isinstance(source, Source)
    assert ids(source) == ["a.jpg", "a/deep/er/x.PNG", "b.png"]
    assert [value(source, i) for i in range(3)] == [2, 1, 0]
    assert source.ignored == {".txt": 2, "": 1}
    assert source.hidden == 2
    assert source.labels is None
    assert source.name == tmp_path.name


def test_files_of_formats_that_are_not_read_are_noted(monkeypatch):
    ignored = {".heic": 60, ".nef": 2, ".txt": 9, ".png": 1}
    assert unread_images(ignored).startswith("not read, though they look like images: 60 .heic, 2 .nef (")
    assert unread_images({".txt": 9, "": 1}) == ""
    monkeypatch.setattr("ssole.data.folder.image_suffixes", lambda: frozenset({".heic", ".png"}))  # a plugin reads them
    assert unread_images({".heic": 60}) == ""


def test_labels_from_first_level_folders(tmp_path):
    source = open_source(tree(tmp_path, "dog/1.png", "cat/x/2.png", "cat/1.png"))
    assert ids(source) == ["cat/1.png", "cat/x/2.png", "dog/1.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1]


def test_a_stray_image_takes_the_labels_away_and_is_named(tmp_path):
    for path in ("cat/1.png", "dog/2.png", "dog/3.png", "views.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    source = FolderSource(tmp_path)
    assert source.labels is None
    assert source.why_unlabelled == "views.png lies outside the folders of the classes"
    (tmp_path / "views.png").unlink()
    assert FolderSource(tmp_path).why_unlabelled is None
    (tmp_path / "cat/1.png").rename(tmp_path / "1.png")
    assert FolderSource(tmp_path).why_unlabelled is None  # one folder would be no classes


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a-b/1.png", "a/1.png", "a/x/2.png", "b/1.png"], [1, 0, 0, 2]),
        (["a/1.png", "a/2.png"], None),
        (["a.png", "a/1.png", "b/1.png"], None),
        (["a/1.png", "b.png", "c/1.png"], None),
    ],
)
def test_labels_are_the_first_folders(tmp_path, paths, labels):
    """The first case: a-b/ sorts before a/, and the class a before the class a-b."""
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(png())
    source = FolderSource(tmp_path)
    assert ids(source) == sorted(paths)
    assert (None if source.labels is None else source.labels.tolist()) == labels


def test_links_are_followed_once(tmp_path):
    root = tree(tmp_path / "root", "a/1.png")
    tree(tmp_path / "elsewhere", "2.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    source = open_source(root)
    assert ids(source) == ["a/1.png", "b/2.png", "gone.png"]
    with pytest.raises(DataError, match=r"gone.png: cannot read the file \(No such file"):
        source.read(2)


def test_folders_without_a_number_are_all_looked_into(tmp_path, monkeypatch):
    """As on some file systems under Windows, which give 0 for all. Loops end there too."""
    tree(tmp_path, "a/1.png", "b/c/2.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    stat = os.stat

    def without_number(path, **options):
        values = list(stat(path, **options))
        return os.stat_result([values[0], 0, *values[2:]])

    monkeypatch.setattr("ssole.data.folder.os.stat", without_number)
    assert find_files(tmp_path, {".png"})[0] == ["a/1.png", "b/c/2.png"]


def test_a_link_to_itself_is_unreadable(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    source = open_source(tmp_path)
    with pytest.raises(DataError, match=r"^a\.png: cannot read the file \(Too many levels"):
        source.read(0)


def test_every_kind_of_bad_file_is_counted_with_its_reason(tmp_path, monkeypatch):
    """Through the store, as a run meets them: it goes on, and lists each."""
    folder = tree(tmp_path / "photos", *(f"{i}.png" for i in range(6)))
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole := tmp_path / "whole.jpg")
    bad = {
        "bomb.png": (png(size=(70, 70)), "4900 pixels.*MAX_IMAGE_PIXELS"),
        "empty.png": (b"", "empty"),
        "folder.png/x.txt": (b"", None),  # a folder with an image's name is a folder
        "html.jpg": (b"<!DOCTYPE html><html>404</html>", "HTML"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "truncated.jpg": (whole.read_bytes()[:600], "damaged|truncated"),
        "text.png": (b"hello", "not an image"),
    }
    for name, (data, _) in bad.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    (folder / "wrong-suffix.jpg").write_bytes(png(9))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    store = ImageStore(open_source(folder), max_unreadable=0.6, progress=False)
    store.get(range(len(store)))
    reasons = {name: reason for _, name, reason in store.unreadable}
    expected = {name: reason for name, (_, reason) in bad.items() if reason} | {"gone.png": "No such file"}
    assert reasons.keys() == expected.keys()
    assert [name for name in expected if not re.search(expected[name], reasons[name])] == []


def test_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(png())
    except OSError:
        pytest.skip("this file system only takes names that are text")
    assert ids(open_source(tmp_path)) == [name]
    assert value(open_source(tmp_path), 0) == 0


def test_special_files_are_not_images(tmp_path):
    """Reading a pipe or such a device would never end."""
    tree(tmp_path, "a/1.png")
    special = special_files(tmp_path / "a", ".png")
    source = open_source(tmp_path)
    assert ids(source) == ["a/1.png"]
    assert source.ignored == {"pipe, socket or device": len(special)}
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"no images.*: 5 pipe, socket or device\."):
        open_source(tmp_path)


def test_a_file_that_becomes_a_pipe_is_unreadable(tmp_path):
    source = open_source(tree(tmp_path, "1.png"))
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"^1\.png: cannot read the file \(not a regular file"):
        source.read(0)


@pytest.mark.parametrize("change", ["add", "remove", "rename", "deep", "new folder", "folder gone"])
def test_changes_are_noticed_on_opening(tmp_path, change):
    root = tree(tmp_path, "cat/1.png", "cat/deep/2.png", "dog/3.png")
    open_source(root)
    expected = {"cat/1.png", "cat/deep/2.png", "dog/3.png"}
    if change == "remove":
        (root / "cat/1.png").unlink()
        expected -= {"cat/1.png"}
    elif change == "rename":
        (root / "cat/1.png").rename(root / "cat/0.png")
        expected = expected - {"cat/1.png"} | {"cat/0.png"}
    elif change == "folder gone":
        (root / "cat/deep/2.png").unlink()
        (root / "cat/deep").rmdir()
        expected -= {"cat/deep/2.png"}
    else:
        new = {"add": "dog/9.png", "deep": "cat/deep/x.png", "new folder": "emu/1.png"}[change]
        tree(root, new)
        expected |= {new}
    assert ids(open_source(root)) == sorted(expected)


def test_many_files_are_found_quickly(tmp_path):
    """A fiftieth of a million in a fiftieth of five seconds, by files that share their content."""
    (tmp_path / "0.png").touch()
    for folder in range(20):
        (tmp_path / f"{folder:02}").mkdir()
        for file in range(1000):
            os.link(tmp_path / "0.png", tmp_path / f"{folder:02}" / f"photograph-{file:06}.png")
    tries = []
    while len(tries) < 9 and min(tries, default=9) > 0.1:
        start = time.process_time()  # other work on the machine does not count
        assert len(FolderSource(tmp_path)) == 20_001
        tries.append(time.process_time() - start)
    assert min(tries) < 0.1


def test_suffixes_are_those_of_pixels():
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".jp2"} <= image_suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt", ".parquet", ""} & image_suffixes()


def test_folders_without_images(tmp_path):
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty is empty"):
        open_source(tmp_path / "empty")
    tree(tmp_path / "other", "a.txt", "b/c.txt", "d.csv", "e")
    with pytest.raises(DataError, match=r"no images.*2 \.txt.*1 without suffix.*1 \.csv"):
        open_source(tmp_path / "other")


# ------------------------------------------------------------------------------------------------------- lists


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


def test_listed_names_that_are_not_text(folder):
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_that_powershell_or_excel_wrote(folder, encoding):
    text = "a.png\r\nb/ä.png\r\n"
    (folder / "list.txt").write_bytes(("\ufeff" * (encoding != "utf-16") + text).encode(encoding))
    assert ids(ListSource(folder / "list.txt")) == ["a.png", "b/ä.png"]


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


def test_a_list_whose_columns_hold_no_labels_says_so(folder):
    source = open_source(write(folder / "list.csv", "path,Category\na.png,cat\n"))
    assert source.why_unlabelled == "none of its columns path, category is called label, labels, class, target"
    assert open_source(write(folder / "list.csv", "path\na.png\n")).why_unlabelled is None


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


def test_an_absolute_path_may_have_other_capitals_where_the_system_knows_none(folder, monkeypatch):
    monkeypatch.setattr("ssole.data.folder.os.path.normcase", str.lower)  # as on Windows
    (folder / "list.txt").write_text(f"{str(folder.resolve()).upper()}/a.png\n")
    assert ids(ListSource(folder / "list.txt")) == ["a.png"]


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


def test_listed_special_files_are_unreadable(folder):
    special = special_files(folder, ".png")
    source = open_source(write(folder / "list.txt", "".join(f"{file.name}\n" for file in special)))
    for i, file in enumerate(special):
        with pytest.raises(DataError, match=rf"^{file.name}: cannot read the file \(not a regular file"):
            source.read(i)


def test_files_without_permission(folder, monkeypatch):
    """Asked for through `open`, since whoever runs the tests may be allowed everything."""
    source = open_source(write(folder / "list.txt", "a.png"))

    def refuse(path, mode, **options):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"^a\.png: cannot read the file \(Permission denied\)"):
        source.read(0)


def test_splits_of_lists(folder):
    write(folder / "train.txt", "a.png")
    write(folder / "test.txt", "deep/b.png")
    assert ids(open_source(folder / "test.txt", split="test")) == ["deep/b.png"]
    assert ids(open_source(f"{folder}/{{train,test}}.txt", split="test")) == ["deep/b.png"]
    assert ids(open_source(f"{folder}/{{train,test}}.txt")) == ["a.png"]
    with pytest.raises(DataError, match="No test split"):
        open_source(folder / "train.txt", split="test")
