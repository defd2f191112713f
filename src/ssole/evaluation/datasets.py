"""Evaluation data: train and test images, their labels in one numbering, and stratified splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssole import distributed
from ssole.data.base import Source, Spec
from ssole.data.folder import FileSource
from ssole.data.labels import shared_labels
from ssole.data.sources import open_source, open_test_images
from ssole.data.store import ImageStore
from ssole.errors import DataError, listed
from ssole.evaluation.preprocessing import Preprocessing

HELD_OUT = 0.2
"""Share of each class that is held out for testing where the data have no test images."""
SPARSE = 10
"""Labels are renumbered 0, 1, ... if the largest is at least 1,000 and at least this many times the number of classes:
then they are ids, such as of species."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Some images of a store, by position, and their labels."""

    store: ImageStore
    positions: Tensor
    """(N,) int64, ascending."""
    labels: Tensor
    """(N,) int64, -1 where unknown."""

    def __len__(self) -> int:
        return len(self.positions)

    def __str__(self) -> str:
        return f"{self.store.source.name}, {len(self)} images"

    def get(self, indices: Tensor) -> Tensor | list[Tensor]:
        """Images by position in this subset."""
        return self.store.get(self.positions[indices])

    @property
    def readable(self) -> Tensor:
        """(N,) bool, whether each image can be read. Complete once features were extracted."""
        return torch.from_numpy(self.store.readable)[self.positions]

    def readable_rows(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features and labels of the readable images, from the features of all (N, F).

        A store returns the next image in place of an unreadable one, so the label would belong to another image.
        """
        return features[self.readable], self.labels[self.readable]

    def select(self, chosen: Tensor) -> Subset:
        """The images at these positions of this subset."""
        return Subset(store=self.store, positions=self.positions[chosen], labels=self.labels[chosen])

    def readable_part(self) -> Subset:
        """The images that can be read. Call it after features were extracted."""
        return self.select(self.readable.nonzero()[:, 0])

    def thinned(self, most: int) -> Subset:
        """At most so many images, evenly spaced."""
        last = len(self) - 1
        return self.select(torch.linspace(0, last, min(len(self), most)).long().clamp(max=last))  # float32 rounds up


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Train and test images of an evaluation; without labels, ``test`` is None and ``train`` holds every image."""

    train: Subset
    test: Subset | None
    classes: int | None = None
    """Number of classes."""
    names: list[str] | None = None
    """Names of the classes, where known."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the result must know about the data."""


@distributed.first_on_each_node()
def open_data(
    data: Spec, test: Spec | None, preprocessing: Preprocessing, *, seed: int, **options: Any
) -> EvaluationData:
    """Evaluation data, decoded for a model. Of the processes of a machine, the first one makes listings for all.

    Test images are those given, else the test split of ``data``, else a stratified hold-out by ``seed``. ``options``
    are those of stores.

    Raises:
        DataError: where data cannot be opened, test images are the training images or lack labels that train has, or
            they have classes that train lacks.
    """
    source = open_source(data, split="train")
    if source.labels is None or not (source.labels >= 0).any():
        why = f" ({source.why_unlabelled})" if source.why_unlabelled else ", or a single class"
        note = f"{source.name} has no labels{why}: only the protocol label-free, because all others need labels."
        if test is not None:
            note += f" The test images ({open_test_images(test).name}) are not used: there is nothing to test."
        store, count = preprocessing.open_store(source, **options), len(source)
        train = Subset(store=store, positions=torch.arange(count), labels=torch.full((count,), -1))
        return EvaluationData(train=train, test=None, notes=[note])
    test_source, why_not = find_test_images(source, data, test)
    store = preprocessing.open_store(source, **options)
    if test_source is not None:
        return match(store, preprocessing.open_store(test_source, **options))
    subset, notes = _labelled(store, source.labels, "images")
    kept, held = stratified_split(subset.labels, HELD_OUT, seed=seed)
    note = (
        f"No test split ({why_not}): tested on {len(held)} images held out of {len(subset)} by seed {seed}. A run that "
        f"was trained on {source.name} has seen them too, without their labels unless its loss is supervised."
    )
    return _checked(subset.select(kept), subset.select(held), source.classes, [note, *notes])


def match(train: ImageStore, test: ImageStore) -> EvaluationData:
    """Evaluation data of two stores: their labelled images, with labels in one numbering.

    It is a DataError if either has no labels, or if test has classes that train lacks.
    """
    train_labels, test_labels, names = shared_labels(train.source, test.source)
    train_part, train_notes = _labelled(train, train_labels, "training images")
    test_part, test_notes = _labelled(test, test_labels, "test images")
    notes = [*notes_of_shared(train.source, test.source), *train_notes, *test_notes]
    return _checked(train_part, test_part, names, notes)


def _labelled(store: ImageStore, labels: NDArray[np.int64], kind: str) -> tuple[Subset, list[str]]:
    """The images of a store with a known label (not negative), and a note where others of this kind lack one."""
    all_labels = torch.from_numpy(np.array(labels, dtype=np.int64))
    known = (all_labels >= 0).nonzero()[:, 0]
    if not len(known):
        raise DataError(f"none of the {len(store)} {kind} of {store.source.name} has a label")
    missing = len(store) - len(known)
    name = store.source.name
    notes = [f"{missing} of {len(store)} {kind} of {name} have no label: left out."] if missing else []
    return Subset(store=store, positions=known, labels=all_labels[known]), notes


def shuffled_batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of positions below `count`, for so many steps.

    Each epoch has a new random order; its last, incomplete batch is dropped. If `batch` exceeds `count`, every batch
    has all positions.
    """
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        yield order[:batch]
        order = order[batch:]


def stratified_split(labels: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified random split: positions (kept, held out), both ascending, with ``share`` of each class held out.

    Of every class of two or more images, at least one is held out and at least one is kept. A class of one image is
    kept. The result depends on the arguments alone, on every machine: labels (N,), integers, the share, and a seed.
    A share outside (0, 1), or labels whose every class has a single image, are a ValueError.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out is {share}; it must be between 0 and 1")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for members in shuffled_classes(labels, torch.Generator().manual_seed(seed)):
        held[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    if not held.any():
        few = f"no class of the {len(labels)} images has two of them"
        raise ValueError(f"{few}, so that nothing can be held out: give more images of each class")
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def shuffled_classes(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Positions of the images of each class, in the order of the classes; within each, in a random one."""
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].sort(stable=True).indices]
    classes: tuple[Tensor, ...] = order.split(labels.unique(return_counts=True)[1].tolist())
    return classes


def _checked(train: Subset, test: Subset, names: list[str] | None, notes: list[str]) -> EvaluationData:
    """Evaluation data, after a check that classifiers can learn from train and be scored on test."""
    in_train, in_test = set(train.labels.tolist()), set(test.labels.tolist())
    require_classes(in_train, in_test, names, (train.store.source.name, test.store.source.name))
    if in_train - in_test:
        notes = [*notes, f"No test image is of {_quoted(in_train - in_test, names)}."]
    classes = max(in_train) + 1
    if max(in_train) >= max(1000, SPARSE * len(in_train)):  # else figures of each class would not fit into memory
        known = sorted(in_train)
        train, test = (
            replace(one, labels=torch.searchsorted(torch.tensor(known), one.labels)) for one in (train, test)
        )
        names = [str(label) if names is None else names[label] for label in known]
        classes = len(known)
        notes = [*notes, f"Labels go up to {known[-1]}: the {classes} classes are numbered in their order."]
    return EvaluationData(train=train, test=test, classes=classes, names=names, notes=notes)


def require_classes(train: set[int], test: set[int], names: list[str] | None, whose: tuple[str, str]) -> None:
    """Raise a DataError unless classifiers that learned the classes of train can be tested on those of test.

    `whose` are the names of the train and test images.
    """
    if test - train:
        raise DataError(
            f"the test images ({whose[1]}) have classes that the training images ({whose[0]}) lack: "
            f"{_quoted(test - train, names)}. Training has {_quoted(train, names)}. Give a training and a test set of "
            "the same classes"
        )
    if len(train) < 2:
        raise DataError(f"all labels of {whose[0]} are {_quoted(train, names)}: an accuracy needs at least two classes")


def _quoted(labels: set[int], names: list[str] | None) -> str:
    named = names or []  # integers of the other source may go beyond
    shown = [repr(named[label]) if label < len(named) else str(label) for label in sorted(labels)]
    return listed(shown, 10)


def find_test_images(source: Source, data: Spec, test: Spec | None) -> tuple[Source | None, str]:
    """Source of the test images, or None and the reason why there is none.

    Images given in ``test`` that cannot be opened, or are the training images, are a DataError.
    """
    if test is not None:
        other = open_test_images(test)
        # a data set in memory, which is opened twice; of a path, the two splits may be meant
        is_same = test is data and not isinstance(test, (str, os.PathLike))
        if is_same or _are_equal(source, other):
            raise DataError(
                f"the test images are the training images ({source.name}), so every figure would be too high: name "
                "other test images, or none, and a fifth is held out"
            )
        return other, ""
    try:
        other = open_source(data, split="test")
    except DataError as error:
        return None, str(error).split(". ")[0].rstrip(".")
    # Data without splits may open as the same images for both: a test on those would be a test on the training set.
    same = other is source or (
        len(other) == len(source) and all(other.id(i) == source.id(i) for i in range(len(source)))
    )
    return (None, f"{source.name} is one set of images") if same else (other, "")


def notes_of_shared(train: Source, test: Source) -> list[str]:
    """Note on labelled test images that are labelled training images too, where the files of both can tell."""
    if not isinstance(train, FileSource) or not isinstance(test, FileSource):
        return []
    files, others = (
        [] if one.labels is None else one.files_of(np.flatnonzero(one.labels >= 0)) or [] for one in (train, test)
    )
    known = {os.path.abspath(file) for file in files}
    if not (shared := [file for file in others if os.path.abspath(file) in known]):
        return []
    count = f"{len(shared)} of {len(others)} test images are training images too"
    return [f"{count}, such as {shared[0]}: every figure is too high."]


def _are_equal(one: Source, other: Source) -> bool:
    """Whether two sources are sure to have the same images, because they read the same unchanged files."""
    if one is other:
        return True
    if isinstance(one, FileSource) and isinstance(other, FileSource) and len(one) == len(other):
        files, others = one.files(), other.files()  # by other names perhaps: `train/a.png` of a folder, and `a.png`
        if files and others and list(map(os.path.realpath, files)) == list(map(os.path.realpath, others)):
            return True
    return one.identity == other.identity and one.fingerprint() == other.fingerprint() is not None
