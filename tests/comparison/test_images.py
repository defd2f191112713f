"""Images of a comparison: test images, the parts that the search sees, and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparing import compare

import tiny
from ssole.comparison.images import open_images, sample
from ssole.data.arrays import ArraySource
from ssole.data.base import Source
from ssole.errors import DataError


@pytest.mark.usefixtures("in_a_folder")
def test_without_a_test_split_a_fifth_is_held_out_of_training() -> None:
    tiny.write_folder(Path("one"), 100)
    result = compare(data="one", seeds=1)
    assert result.data["test"].endswith("20 images")
    assert result.data["train"].endswith("80 images")
    assert any("20 images held out" in note for note in result.notes)


def labelled(name: str, labels: list[int]) -> ArraySource:
    return ArraySource(tiny.images(len(labels)), np.array(labels), name=name)


def ids(source: Source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def counts(source: Source) -> list[int]:
    """Images of classes 0, 1, ..., without those of no known class."""
    assert source.labels is not None
    return [int(count) for count in np.bincount(source.labels[source.labels >= 0])]


def test_given_test_images_leave_the_training_images_whole() -> None:
    train, test = labelled("mine", [0] * 60 + [1] * 20), labelled("other", [0, 1, 1])
    found = open_images(train, test)
    assert (found.train, found.test) == (train, test)
    assert (found.is_part, found.notes) == (False, [])
    assert counts(found.validation) == [6, 2]  # a tenth of each class
    assert counts(found.search_train) == [54, 18]
    assert sorted(ids(found.validation) + ids(found.search_train)) == sorted(ids(train))
    assert (found.validation.name, found.search_train.name) == ("mine (validation)", "mine (for the search)")


def test_test_images_among_the_training_images_are_noted(tmp_path: Path) -> None:
    tiny.write_folder(tmp_path, 30)
    folder = open_images(tmp_path, None).train
    paths = sorted(ids(folder))
    (tmp_path / "some.csv").write_text(
        "\n".join(["path,label", *(f"{path},{path[: path.index('/')]}" for path in paths)])
    )
    assert (
        f"{len(paths)} of {len(paths)} test images are training"
        in open_images(tmp_path, tmp_path / "some.csv").notes[0]
    )


def test_without_test_images_a_fifth_of_each_class_is_held_out() -> None:
    data = labelled("mine", [0] * 60 + [1] * 20)
    found = open_images(data, None)
    assert (counts(found.train), counts(found.test)) == ([48, 16], [12, 4])
    assert sorted(ids(found.train) + ids(found.test)) == sorted(ids(data))
    assert not {*ids(found.test)} & {*ids(found.search_train), *ids(found.validation)}
    assert sorted(ids(found.search_train) + ids(found.validation)) == sorted(ids(found.train))
    assert found.is_part
    (note,) = found.notes
    assert note.startswith("No test split (")
    assert note.endswith("): tested on 16 images held out by seed 0.")
    again = open_images(labelled("mine", [0] * 60 + [1] * 20), None)
    assert ids(again.test) == ids(found.test)  # in every comparison of the same images


def test_images_without_a_label_train_and_are_never_scored() -> None:
    data = labelled("mine", [0, 1, -1, -1] * 20)
    found = open_images(data, None)
    assert (counts(found.test), len(found.test)) == ([4, 4], 8)
    assert (counts(found.train), len(found.train)) == ([16, 16], 72)
    assert len(found.validation) == sum(counts(found.validation)) == 4
    assert len(found.search_train) == 68


def test_a_sample_is_of_labelled_images_evenly_spaced() -> None:
    data = labelled("mine", [-1, 0, 1, 0, 1] * 8)
    kept = sample(data, 5)
    known = [i for i in range(40) if i % 5]
    assert ids(kept) == [f"mine:{known[i]}" for i in (0, 6, 12, 19, 25)]
    assert kept.name == "mine (sample)"
    assert ids(sample(data, 99)) == [f"mine:{i}" for i in known]
    found = open_images(data, labelled("other", [0, 1]), most=20)
    assert (len(found.train), found.is_part) == (20, True)
    assert len(found.search_train) + len(found.validation) == 20
    assert open_images(data, labelled("other", [0, 1]), most=40).train is data


def test_data_without_labels_are_refused_by_name() -> None:
    with_labels, without = labelled("mine", [0, 1] * 5), ArraySource(tiny.images(4), name="bare")
    unknown = labelled("unknown", [-1] * 4)
    for data, test, name in ((without, None, "bare"), (with_labels, without, "bare"), (unknown, None, "unknown")):
        with pytest.raises(DataError, match=f"^methods are scored by labels, and {name} has none: give images in a"):
            open_images(data, test)


def test_a_sample_has_an_image_of_every_class() -> None:
    data = labelled("mine", [0] * 500 + [1, 2, 2] + [0] * 497)
    kept = sample(data, 10)
    assert ids(kept) == [f"mine:{i}" for i in (*range(0, 501, 100), 501, 600, 700, 800, 900)]  # 500 is of class 1
    found = open_images(data, labelled("other", [0, 1, 2]), most=10)
    assert set(counts(found.train)) == {9, 1}
