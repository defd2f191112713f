"""Parquet files: columns, labels, splits and errors."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import ids, png, tree, value

from ssole.data.base import Source, SubsetSource
from ssole.data.parquet import ParquetSource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError


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
def test_images_labels_and_ids_are_those_of_the_rows(tmp_path, kind):
    path = write(tmp_path / "x.parquet", range(200), labels=[i % 3 for i in range(200)], kind=kind, row_group_size=64)
    source = open_source(str(path))
    assert isinstance(source, Source)
    assert len(source) == 200
    assert [value(source, i) for i in (199, 0, 63, 64, 65)] == [199, 0, 63, 64, 65]
    assert source.id(150) == "x.parquet:150"
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [i % 3 for i in range(200)]
    assert source.classes is None


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write(tmp_path / folder / "x.parquet", [1])
    monkeypatch.chdir(tmp_path)
    assert [open_source(folder).identity for folder in "ab"] == [f"{tmp_path}/{folder}/x.parquet" for folder in "ab"]


def test_parquet_class_names_from_hugging_face(tmp_path):
    path = write(tmp_path / "x.parquet", [1, 2], labels=[1, 0], names=["cat", "dog"], column="picture")
    assert open_source(path).classes == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_columns_of_views_as_polars_writes_them(tmp_path, kind):
    bytes_, texts = pa.array([png(1), png(2)], pa.binary_view()), pa.array(["dog", None], pa.string_view())
    images = pa.StructArray.from_arrays([bytes_, texts], ["bytes", "path"]) if kind == "struct" else bytes_
    try:
        pq.write_table(pa.table({"image": images, "label": texts}), tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("this version of Arrow neither writes nor reads views")
    source = open_source(tmp_path / "x.parquet")
    assert [value(source, i) for i in range(2)] == [1, 2]
    assert (source.classes, source.labels.tolist()) == (["dog"], [0, -1])


@pytest.mark.parametrize("dictionary", [False, True])
def test_texts_are_numbered_in_alphabetical_order_and_null_is_unknown(tmp_path, dictionary):
    labels = pa.array(["dog", None, "cat", "dog"])
    path = write(tmp_path / "x.parquet", range(4), labels=labels.dictionary_encode() if dictionary else labels)
    source = open_source(path)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert open_source(write(tmp_path / "y.parquet", range(3), labels=[5, None, 2])).labels.tolist() == [5, -1, 2]


def test_parquet_labels_of_integers_of_several_widths(tmp_path):
    labels = [pa.array([2, None], pa.int32()), pa.array([2**40, 1], pa.int64())]
    files = [write(tmp_path / f"{i}.parquet", [1, 2], labels=column) for i, column in enumerate(labels)]
    assert ParquetSource(files).labels.tolist() == [2, -1, 2**40, 1]


def test_parquet_labels_that_cannot_be_read(tmp_path):
    files = [write(tmp_path / f"{i}.parquet", [1], labels=labels) for i, labels in enumerate(([1], ["a"]))]
    with pytest.raises(DataError, match=r"0\.parquet and 1 more: the labels are .*of different types"):
        ParquetSource(files)
    buffers = [pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    text = pa.StringArray.from_buffers(1, *buffers)
    with pytest.raises(DataError, match=r"x\.parquet: the labels are damaged.*utf-8"):
        ParquetSource(write(tmp_path / "x.parquet", [1], labels=text))


@pytest.mark.parametrize(
    "features",
    [[1], None, *({"label": {"_type": "ClassLabel", "names": names}} for names in (["a"], "ab", {"0": "a"}, [{}, 1]))],
)
def test_parquet_descriptions_that_do_not_name_the_labels(tmp_path, features):
    table = pa.table({"image": [png(0), png(1)], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert (source.labels.tolist(), source.classes) == ([0, 1], None)


def test_texts_name_their_classes_themselves(tmp_path):
    """A column that was turned into texts may still be described as numbers of classes in another order."""
    path = write(tmp_path / "x.parquet", [1, 2], labels=["dog", "cat"], names=["dog", "cat"])
    source = open_source(path)
    assert [source.classes[label] for label in source.labels] == ["dog", "cat"]


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
    with pytest.raises(DataError, match=r"several columns.*left.*right.*ParquetSource\(files, image_column=NAME\)"):
        open_source(path)
    source = ParquetSource(path, image_column="right", label_column="kind")
    assert value(source, 0) == 2
    assert source.classes == ["a"]
    for wrong in ({"image_column": "kind"}, {"image_column": "left", "label_column": "nope"}):
        with pytest.raises(DataError, match=r"'(kind|nope)'.*left"):
            ParquetSource(path, **wrong)


def test_decoded_images_of_two_columns_are_kept_apart(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"left": [png(1)] * 3, "right": [png(2)] * 3}), path)
    for column, expected in (("left", 1), ("right", 2)):
        whole = ParquetSource(path, image_column=column)
        for source in (whole, SubsetSource(whole, np.arange(2))):
            with ImageStore(source, memory_limit=0, cache=tmp_path / "cache", progress=False) as store:
                assert store.get([0]).unique().tolist() == [expected]


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
    monkeypatch.setattr("ssole.memory.total_memory", lambda: 4000)
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


def test_labels_beyond_63_bits_are_numbered(tmp_path):
    labels = pa.array([2**64 - 1, None, 3, 2**64 - 1], pa.uint64())
    pq.write_table(pa.table({"image": [png(i) for i in range(4)], "label": labels}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert source.classes == ["3", str(2**64 - 1)]
    pq.write_table(pa.table({"image": [png()], "label": pa.array([9], pa.uint64())}), tmp_path / "b.parquet")
    assert open_source(tmp_path / "b.parquet").labels.tolist() == [9]


class Group:
    """Metadata of a row group, whose columns have damaged statistics: Arrow ends the process on looking at them."""

    num_columns = 2
    total_byte_size = 1000

    def column(self, number):
        pytest.fail("Arrow would have ended the process")


def test_statistics_of_columns_are_not_looked_at_when_there_is_room_for_all(monkeypatch, tmp_path):
    path = write(tmp_path / "a.parquet", [1, 2])
    file = pq.ParquetFile(path)
    metadata = SimpleNamespace(num_row_groups=1, row_group=lambda _: Group())
    damaged = SimpleNamespace(metadata=metadata, schema_arrow=file.schema_arrow, iter_batches=file.iter_batches)
    monkeypatch.setattr("ssole.data.parquet._open", lambda _: damaged)
    assert [value(ParquetSource(path), i) for i in range(2)] == [1, 2]


def test_a_file_that_is_written_anew_after_it_was_read_is_not_taken_for_the_one_in_memory(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(0)]}), path)
    read = ParquetSource(path)
    before = read.fingerprint()
    assert before == ParquetSource(path).fingerprint()
    pq.write_table(pa.table({"image": [png(1), png(2)]}), path)
    new = ParquetSource(path).fingerprint()
    assert len({before, read.fingerprint(), new}) == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3.0, None, float("nan"), 0.0]),
        pa.array([3, None, None, 0], pa.int8()).cast(pa.float16()),
        pa.array([Decimal("3.0"), None, None, Decimal("0.0")]),
    ],
)
def test_whole_numbers_of_a_type_with_fractions_are_labels(tmp_path, column):
    """pandas makes floats of a column of integers in which some are missing."""
    source = open_source(write(tmp_path / "x.parquet", range(4), labels=column))
    assert source.labels.tolist() == [3, -1, -1, 0]
    assert (source.classes, source.why_unlabelled) == (None, None)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pa.array([0.5, 1.0]), "the column 'label' holds numbers that are not whole"),
        (pa.array([1e300, float("inf")]), "the column 'label' holds numbers that are not whole"),
        (pa.array([0, 1], pa.date32()), "the column 'label' is of type date32[day], and labels are integers or texts"),
    ],
)
def test_a_column_of_labels_that_are_none_is_named(tmp_path, column, why):
    source = open_source(write(tmp_path / "x.parquet", range(2), labels=column))
    assert source.labels is None
    assert source.why_unlabelled == why


def test_a_column_that_may_hold_fractions_comes_after_one_that_may_not(tmp_path):
    table = pa.table({"image": [png(0), png(1)], "label": [0.5, 1.0], "class": [0, 1], "age": [3.5, 4.0]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"x\.parquet: the column 'age' holds numbers that are not whole"):
        ParquetSource(tmp_path / "x.parquet", label_column="age")
