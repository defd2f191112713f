"""What can be given as data: folders, parquet, names, arrays; their ids, labels, splits and errors."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import ids, png, value
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.data.base import Source, shared_labels
from ssole.data.folder import FolderSource, image_suffixes
from ssole.data.parquet import ParquetSource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError


def tree(root: Path, *paths: str) -> Path:
    """Files at these paths, each holding a grey of its own number."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(number))
    return root


# ---------------------------------------------------------------------------------------------------- folders


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


def test_labels_from_first_level_folders(tmp_path):
    source = open_source(tree(tmp_path, "dog/1.png", "cat/x/2.png", "cat/1.png"))
    assert ids(source) == ["cat/1.png", "cat/x/2.png", "dog/1.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("paths", [("dog/1.png", "cat/1.png", "loose.png"), ("only/1.png", "only/2.png")])
def test_no_labels_from_a_loose_image_or_a_single_folder(tmp_path, paths):
    assert open_source(tree(tmp_path, *paths)).labels is None


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


def test_suffixes_are_those_of_pixels():
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".jp2"} <= image_suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt", ".parquet", ""} & image_suffixes()


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folder_splits(tmp_path, test):
    tree(tmp_path, "train/a/1.png", "train/b/2.png", f"{test}/a/3.png", "meta/4.png")
    assert ids(open_source(tmp_path)) == ["train/a/1.png", "train/b/2.png"]
    source = open_source(tmp_path, split="test")
    assert ids(source) == [f"{test}/a/3.png"]
    assert value(source, 0) == 2
    assert open_source(tmp_path).classes == ["a", "b"]


def test_test_is_preferred_to_val(tmp_path):
    tree(tmp_path, "train/1.png", "test/2.png", "val/3.png")
    assert ids(open_source(tmp_path, split="test")) == ["test/2.png"]


def test_a_class_called_train_is_no_split(tmp_path):
    source = open_source(tree(tmp_path, "train/1.png", "car/2.png", "boat/3.png"))
    assert source.classes == ["boat", "car", "train"]


def test_folder_without_the_split_asked_for(tmp_path):
    tree(tmp_path / "whole", "a/1.png")
    tree(tmp_path / "half", "train/1.png")
    tree(tmp_path / "my-val", "1.png")
    with pytest.raises(DataError, match="not divided into splits"):
        open_source(tmp_path / "whole", split="test")
    with pytest.raises(DataError, match="no test split"):
        open_source(tmp_path / "half", split="test")
    assert len(open_source(tmp_path / "my-val", split="test")) == 1


def test_folders_without_images(tmp_path):
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty is empty"):
        open_source(tmp_path / "empty")
    tree(tmp_path / "other", "a.txt", "b/c.txt", "d.csv", "e")
    with pytest.raises(DataError, match=r"no images.*2 \.txt.*1 without suffix.*1 \.csv"):
        open_source(tmp_path / "other")


# ---------------------------------------------------------------------------------------------------- parquet


def write(path: Path, values, *, labels=None, names=None, kind="struct", column="image", **options) -> Path:
    """A parquet file as Hugging Face writes them (`kind` struct), or with plain binary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [None if v is None else png(v) for v in values]
    if kind == "struct":
        data = [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)]
        array = pa.array(data, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        array = pa.array(data, kind)
    columns = {column: array}
    features = {column: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
        features["label"] = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value"}
    table = pa.table(columns)
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("kind", ["struct", pa.binary(), pa.large_binary()])
def test_parquet(tmp_path, kind):
    path = write(tmp_path / "x.parquet", range(200), labels=[i % 3 for i in range(200)], kind=kind, row_group_size=64)
    source = open_source(str(path))
    assert isinstance(source, Source)
    assert len(source) == 200
    assert [value(source, i) for i in (199, 0, 63, 64, 65)] == [199, 0, 63, 64, 65]
    assert source.id(150) == "x.parquet:150"
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [i % 3 for i in range(200)]
    assert source.classes is None


def test_parquet_place(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write(tmp_path / folder / "x.parquet", [1])
    monkeypatch.chdir(tmp_path)
    assert [open_source(folder).place for folder in "ab"] == [f"{tmp_path}/{folder}/x.parquet" for folder in "ab"]


def test_parquet_class_names_from_hugging_face(tmp_path):
    path = write(tmp_path / "x.parquet", [1, 2], labels=[1, 0], names=["cat", "dog"], column="picture")
    assert open_source(path).classes == ["cat", "dog"]


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_string_and_missing_labels(tmp_path, dictionary):
    labels = pa.array(["dog", None, "cat", "dog"])
    path = write(tmp_path / "x.parquet", range(4), labels=labels.dictionary_encode() if dictionary else labels)
    source = open_source(path)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert open_source(write(tmp_path / "y.parquet", range(3), labels=[5, None, 2])).labels.tolist() == [5, -1, 2]


def test_parquet_without_labels_or_with_null_images(tmp_path):
    source = open_source(write(tmp_path / "x.parquet", [1, None]))
    assert source.labels is None
    with pytest.raises(DataError, match=r"x.parquet:1: .*null"):
        source.read(1)


def test_several_parquet_files_in_every_way_of_naming_them(tmp_path):
    one, two = (write(tmp_path / f"part-{i}.parquet", [10 * i, 10 * i + 1], labels=[i, i]) for i in (1, 2))
    for spec in ([one, str(two)], str(tmp_path / "*.parquet"), str(tmp_path / "part-[12].parquet"), tmp_path):
        source = open_source(spec)
        assert ids(source) == ["part-1.parquet:0", "part-1.parquet:1", "part-2.parquet:0", "part-2.parquet:1"]
        assert [value(source, i) for i in range(4)] == [10, 11, 20, 21]
        assert source.labels.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "{}/0000.parquet", "cifar_{}.parquet"])
def test_parquet_splits(tmp_path, layout):
    for number, split in enumerate(("train", "test")):
        write(tmp_path / layout.format(split), [number])
    assert ids(open_source(tmp_path)) == [layout.format("train") + ":0"]
    assert ids(open_source(tmp_path, split="test")) == [layout.format("test") + ":0"]


def test_parquet_folder_of_no_named_split(tmp_path):
    write(tmp_path / "a.parquet", [1])
    write(tmp_path / ".cache" / "b.parquet", [1])
    assert ids(open_source(tmp_path)) == ["a.parquet:0"]
    with pytest.raises(DataError, match=r"No test split.*no such word"):
        open_source(tmp_path, split="test")


def test_one_parquet_file_named_after_a_split(tmp_path):
    train, test = write(tmp_path / "my-train.parquet", [1]), write(tmp_path / "my-test.parquet", [2])
    assert len(open_source(test)) == len(open_source(test, split="test")) == len(open_source(train)) == 1
    with pytest.raises(DataError, match="No test split"):
        open_source(train, split="test")


def test_parquet_test_is_preferred_to_validation(tmp_path):
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.parquet", [1])
    assert ids(open_source(tmp_path, split="test")) == ["test.parquet:0"]
    assert ids(open_source(tmp_path)) == ["train.parquet:0"]


def test_parquet_columns_that_are_wrong_missing_or_ambiguous(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(DataError, match=r"no image column.*text \(string\), label \(int64\)"):
        open_source(path)
    pq.write_table(pa.table({"left": [png(1)], "right": [png(2)], "kind": ["a"]}), path)
    with pytest.raises(DataError, match=r"several columns.*left.*right"):
        open_source(path)
    source = ParquetSource(path, image_column="right", label_column="kind")
    assert value(source, 0) == 2
    assert source.classes == ["a"]
    for wrong in ({"image_column": "kind"}, {"image_column": "left", "label_column": "nope"}):
        with pytest.raises(DataError, match=r"'(kind|nope)'.*left"):
            ParquetSource(path, **wrong)


def test_parquet_that_is_damaged_empty_or_missing(tmp_path):
    path = write(tmp_path / "x.parquet", range(100))
    with pytest.raises(DataError, match="no rows"):
        open_source(write(tmp_path / "none.parquet", []))
    with pytest.raises(DataError, match=r"no file .*missing"):
        open_source([path, tmp_path / "missing.parquet"])
    with pytest.raises(DataError, match="No file"):
        open_source([])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"x\.parquet as parquet"):
        open_source(path)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"img": [png(1)]}), other)
    with pytest.raises(DataError, match=r"lacks the column 'image'.*img"):
        ParquetSource([write(path, [1]), other])


def test_parquet_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", range(100))
    monkeypatch.setattr("ssole.runtime.total_memory", lambda: 4000)
    with pytest.raises(DataError, match=r"x\.parquet: .* GiB.*80 % of the memory"):
        open_source(path)


def test_images_beside_parquet(tmp_path):
    """A table of other things does not matter; a second set of images does."""
    tree(tmp_path, "1.png")
    pq.write_table(pa.table({"score": [1.0]}), tmp_path / "meta.parquet")
    assert ids(open_source(tmp_path)) == ["1.png"]
    write(tmp_path / "meta.parquet", [1])
    with pytest.raises(DataError, match=r"both 1 image files and 1 parquet"):
        open_source(tmp_path)


# ---------------------------------------------------------------------------------------------------- the rest


def test_arrays():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    source = open_source(images)
    assert isinstance(source, Source)
    assert np.array_equal(source.read(1), images[1])
    assert ids(source) == ["array:0", "array:1"]
    assert source.labels is None
    labelled = ArraySource(images[..., 0], np.array([1, 0], np.int32), classes=("a", "b"), name="mine")
    assert labelled.labels.dtype == np.int64
    assert labelled.id(1) == "mine:1"
    assert open_source(labelled, split="test") is labelled


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, r"float32 \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), None, "channels last"),
        (np.zeros((4, 4), np.uint8), None, r"\(4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, r"\(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"\(3,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "float64"),
    ],
)
def test_arrays_that_are_wrong(images, labels, said):
    with pytest.raises(DataError, match=said):
        ArraySource(images, labels)


def test_digits_m(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    source = open_source("digits-m", split="test")
    assert len(source) == 1600
    assert source.classes == list("0123456789")
    assert source.id(7) == "digits-m/test:7"


def test_what_does_not_exist(tmp_path, monkeypatch):
    tree(tmp_path, "pictures/1.png")
    with pytest.raises(DataError, match=r"named .*pictuers.*Did you mean .*pictures\?"):
        open_source(tmp_path / "pictuers")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean cifar10"):
        open_source("cifar-10")
    with pytest.raises(DataError, match="Did you mean digits-m"):
        open_source("digitsm")
    with pytest.raises(DataError, match=r"named '/no/such/place'"):
        open_source("/no/such/place")
    with pytest.raises(DataError, match="No file matches"):
        open_source("nothing-*.parquet")


def test_specs_of_a_wrong_kind(tmp_path):
    with pytest.raises(DataError, match=r"1\.png cannot be opened.*folder of images.*\.parquet.*got \['\.png'\]"):
        open_source(tree(tmp_path, "1.png") / "1.png")
    with pytest.raises(DataError, match="got int"):
        open_source(3)
    with pytest.raises(DataError, match="'val'"):
        open_source("digits-m", split="val")


def test_shared_labels_match_by_name(tmp_path):
    train = FolderSource(tree(tmp_path / "train", "ape/1.png", "bee/1.png", "cat/1.png"))
    test = FolderSource(tree(tmp_path / "test", "ant/1.png", "bee/1.png", "cat/1.png"))
    a, b, classes = shared_labels(train, test)
    assert classes == ["ape", "bee", "cat", "ant"]
    assert a.tolist() == [0, 1, 2]
    assert b.tolist() == [3, 1, 2]
    images = np.zeros((2, 4, 4), np.uint8)
    numbered = ArraySource(images, np.array([0, -1]))
    assert shared_labels(numbered, numbered)[1].tolist() == [0, -1]
    unknown = ArraySource(images, np.array([1, -1]), classes=["dog", "cat"])
    assert shared_labels(train, unknown)[1].tolist() == [2, -1]
    with pytest.raises(DataError, match=r"test images .* no labels"):
        shared_labels(train, ArraySource(images))


# ------------------------------------------------------------------------------------------------- torchvision


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_placed_by_hand(tmp_path, monkeypatch):
    """Real files in the layout that the message of a failed download asks for."""
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part, count in (("train", 3), ("t10k", 2)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(images[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(np.array([7, 0, 2], np.uint8)[:count]))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))
    source = open_source("MNIST")
    assert len(source) == 3
    assert source.labels.tolist() == [7, 0, 2]
    assert source.classes[7] == "7 - seven"
    assert np.array_equal(source.read(2), images[2])
    assert len(open_source("mnist", split="test")) == 2
    assert source.id(0) == "mnist/train:0"


class _Fake:
    """A torchvision dataset in the layout of STL-10 or CIFAR, that is there only once it has been downloaded."""

    def __init__(self, root, *, download=False, **arguments):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.root, self.arguments = root, arguments
        if "split" in arguments:
            self.data = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
            self.labels = np.array([-1, -1] if arguments["split"] == "unlabeled" else [1, 0])
        else:
            self.data, self.targets = np.zeros((2, 4, 5, 3), np.uint8), [3, 4]
        self.classes = list("abcde")


def test_torchvision_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.STL10", _Fake)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", _Fake)
    cifar = open_source("cifar10")
    assert cifar.labels.tolist() == [3, 4]
    assert cifar.read(0).shape == (4, 5, 3)
    labelled, unlabelled = open_source("stl10"), open_source("stl10-unlabeled")
    assert np.array_equal(labelled.read(1), _Fake("", download=True, split="").data[1].transpose(1, 2, 0))
    assert labelled.labels.tolist() == [1, 0]
    assert unlabelled.labels is None
    assert unlabelled.classes is None
    assert open_source("stl10-unlabeled", split="test").labels.tolist() == [1, 0]


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("Error downloading"), TimeoutError("timed out")])
def test_a_failed_download_says_what_to_place_where(tmp_path, monkeypatch, error):
    def fail(root, **arguments):
        raise error if arguments.get("download") else RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR100", fail)
    with pytest.raises(DataError) as raised:
        open_source("cifar100")
    for part in ("cifar100", str(error), "cifar-100-python.tar.gz", str(tmp_path / "torchvision")):
        assert part in str(raised.value)
