"""Numbers of labels, and labels that two sources share."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from image_files import tree

from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.data.labels import number_texts, shared_labels
from ssole.errors import DataError


def test_integers_that_pandas_writes_with_a_point_are_integers() -> None:
    """As it does with a column of integers of which some are missing."""
    labels, classes = number_texts(pa.array(["3.0", None, "10.0", "0.0"]))
    assert labels is not None
    assert (labels.tolist(), classes) == ([3, -1, 10, 0], None)
    assert number_texts(pa.array(["3", "4.0"]))[1] is None
    labels, classes = number_texts(pa.array(["3.5", "3.0"]))
    assert labels is not None
    assert (labels.tolist(), classes) == ([1, 0], ["3.0", "3.5"])


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
    none = ArraySource(images, np.array([-1, -1]), classes=[])
    assert shared_labels(train, none)[1].tolist() == [-1, -1]
    with pytest.raises(DataError, match=r"test images .* no labels"):
        shared_labels(train, ArraySource(images))


def test_many_classes_are_matched_at_once() -> None:
    """In quadratic time, these would take minutes."""
    names = [f"class {i}" for i in range(60_000)]
    image, labels = np.zeros((1, 4, 4), np.uint8), np.array([0])
    train, test = (ArraySource(image, labels, classes=order) for order in (names, names[::-1]))
    begin = time.monotonic()
    assert shared_labels(train, test)[1].tolist() == [59_999]
    assert time.monotonic() - begin < 10


def test_integers_are_names_beside_names_that_are_integers() -> None:
    """A list whose labels are 1, 2 and "other" numbers texts, and one with 1, 2 and 10 has integers."""
    images = np.zeros((4, 4, 4), np.uint8)
    texts = ArraySource(images, np.array([0, 1, 2, -1]), classes=["1", "2", "other"])
    integers = ArraySource(images, np.array([2, 10, -1, 1]))
    a, b, classes = shared_labels(texts, integers)
    assert (a.tolist(), b.tolist(), classes) == ([0, 1, 2, -1], [1, 3, -1, 0], ["1", "2", "other", "10"])
    a, b, classes = shared_labels(integers, texts)
    assert (a.tolist(), b.tolist(), classes) == ([1, 2, -1, 0], [0, 1, 3, -1], ["1", "2", "10", "other"])
    years = ArraySource(images, np.array([0, 1, 1, 0]), classes=["2019", "2020"])
    positions = ArraySource(images, np.array([1, 0, 0, 1]))
    assert shared_labels(years, positions)[1].tolist() == [1, 0, 0, 1]
