"""Evaluation data: test images, held-out images, and labels in one numbering."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured import MeanColour, coloured, evaluate_quietly
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.evaluation.datasets import Subset, stratified_split


def test_without_test_images_a_stated_share_is_held_out() -> None:
    data = coloured(210, seed=0)
    first, again = (evaluate_quietly(MeanColour(), data, baselines=False, seed=4) for _ in range(2))
    assert "tested on 42 images held out of 210 by seed 4" in first.notes[0]
    assert f"A run that was trained on {data.name} has seen them too" in first.notes[0]
    assert first.rows["trained"]["linear"].n == 42
    assert first.to_dict() == again.to_dict()


def test_a_folder_without_splits_is_never_tested_on_itself(tmp_path: Path) -> None:
    source = coloured(60, seed=0)
    for i in range(60):
        folder = tmp_path / "test" / source.classes[source.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i)).save(folder / f"{i}.png")
    for data in (tmp_path, tmp_path / "test"):  # a folder named test opens as either split
        result = evaluate_quietly(MeanColour(), str(data / "test" if data == tmp_path else data), baselines=False)
        assert "held out of 60" in result.notes[0]


class Labelled:
    """A data set in memory, as of torch."""

    def __init__(self, source: ArraySource) -> None:
        self.source, self.targets = source, source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> object:
        return self.source.read(index)


def test_test_images_that_are_the_training_images_are_refused(tmp_path: Path) -> None:
    source, photos, other = coloured(60, seed=0), tmp_path / "photos", tmp_path / "other"
    for root, change in ((photos, 0), (other, 1)):  # of the same names, sizes and times
        for i in range(60):
            folder = root / source.classes[source.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.read(i) ^ change).save(folder / f"{i}.bmp")
            os.utime(folder / f"{i}.bmp", (0, 0))
    in_memory = Labelled(source)
    for data, test in ((source, source), (photos, str(photos)), (in_memory, in_memory)):
        with pytest.raises(DataError, match=r"the test images are the training images .* a fifth is held out"):
            evaluate_quietly(MeanColour(), data, test=test)
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")  # other names, and the same files
    with pytest.raises(DataError, match="the test images are the training images"):
        evaluate_quietly(MeanColour(), tmp_path / "both", test=tmp_path / "both" / "train")
    (tmp_path / "both" / "train").rename(photos)
    for data, test in ((source, coloured(60, seed=1)), (photos, other)):
        result = evaluate_quietly(MeanColour(), data, test=test, protocol=["knn"], baselines=False)
        assert result.rows["trained"]["knn20"].n == 60


def test_test_images_among_the_training_images_are_noted(tmp_path: Path) -> None:
    source = coloured(60, seed=0)
    rows = [f"{i}.png,{label}" for i, label in enumerate(source.labels)]
    for i in range(60):
        Image.fromarray(source.read(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "last.csv").write_text("\n".join(["path,label", *rows[48:]]))
    unlabelled = [f"{row.partition(',')[0]}," for row in rows[48:]]
    (tmp_path / "few.csv").write_text("\n".join(["path,label", *rows[:48], *unlabelled]))
    how = {"test": tmp_path / "last.csv", "protocol": "knn", "baselines": False}
    shared = evaluate_quietly(MeanColour(), tmp_path / "all.csv", **how)
    where = f"such as {tmp_path / '48.png'}"
    assert f"12 of 12 test images are training images too, {where}: every figure is too high." in shared.notes
    apart = evaluate_quietly(MeanColour(), tmp_path / "few.csv", **how)  # images without a label teach nothing
    assert not any("too high" in note for note in apart.notes)


def test_labels_are_matched_by_class_name() -> None:
    test = coloured(90, seed=1)
    renumbered = ArraySource(test.images, (test.labels + 1) % 3, classes=("blue", "red", "green"), name="renumbered")
    result = evaluate_quietly(MeanColour(), coloured(240, seed=0), test=renumbered, baselines=False)
    assert result.rows["trained"]["knn20"].value == 1


def test_ids_for_labels_are_numbered_in_their_order() -> None:
    plain, test = coloured(120, seed=0, names=None), coloured(60, seed=1, names=None)
    ids = np.array([3017, 5_000_000_000, 4 * 10**18])
    train, other = (ArraySource(one.images, ids[one.labels], name=one.name) for one in (plain, test))
    results = [evaluate_quietly(MeanColour(), a, test=b, baselines=False) for a, b in ((plain, test), (train, other))]
    assert results[0].rows == results[1].rows
    assert results[0].details == results[1].details
    assert f"Labels go up to {ids[2]}: the 3 classes are numbered in their order." in results[1].notes


def test_other_classes_in_test_are_an_error_that_names_them() -> None:
    test = coloured(90, seed=1, names=("red", "green", "purple"))
    with pytest.raises(DataError, match=r"lack: 'purple'. Training has 'red', 'green', 'blue'"):
        evaluate_quietly(MeanColour(), coloured(120, seed=0), test=test)
    with pytest.raises(DataError, match="have no labels"):
        evaluate_quietly(MeanColour(), coloured(120, seed=0), test=ArraySource(test.images))


def test_labels_that_cannot_be_used_are_told() -> None:
    texts = Labelled(coloured(30, seed=0))
    texts.targets = np.array(["red", "green", "blue"])[texts.targets]
    why = r"targets of the data set are texts \(30,\), and labels are one integer for each image"
    assert re.match(rf"Labelled has no labels \({why}\): only", evaluate_quietly(MeanColour(), texts).notes[0])
    with pytest.raises(DataError, match=rf"The test images \(Labelled\) have no labels: {why}"):
        evaluate_quietly(MeanColour(), coloured(30, seed=0), test=texts)


def test_a_folder_given_as_test_images_needs_no_special_name(tmp_path: Path) -> None:
    for place, images in (("photos", coloured(120, seed=0)), ("later", coloured(60, seed=1))):
        for i in range(len(images)):
            folder = tmp_path / place / f"class{int(images.labels[i])}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.read(i))).save(folder / f"{i}.png")
    result = evaluate_quietly(
        MeanColour(), str(tmp_path / "photos"), test=str(tmp_path / "later"), protocol=["knn"], baselines=False
    )
    assert result.rows["trained"]["knn20"].n == 60
    with pytest.raises(DataError, match="nowhere"):
        evaluate_quietly(MeanColour(), str(tmp_path / "photos"), test=str(tmp_path / "nowhere"))


def test_splits_hold_out_a_share_of_every_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])[torch.randperm(113)]
    kept, held = stratified_split(labels, 0.2, seed=1)
    assert labels[held].bincount(minlength=4).tolist() == [20, 2, 1, 0]
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(113))
    assert torch.equal(stratified_split(labels, 0.2, seed=1)[1], held)
    assert not torch.equal(stratified_split(labels, 0.2, seed=2)[1], held)
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(labels, 1.0, seed=1)


def test_a_sample_of_more_images_than_float32_counts_stays_within_them() -> None:
    count = 2**24 + 4
    everything = torch.zeros(1, dtype=torch.int64).expand(count)
    images = Subset(store=None, positions=everything, labels=everything)  # type: ignore[arg-type]
    assert len(images.thinned(2000)) == 2000
