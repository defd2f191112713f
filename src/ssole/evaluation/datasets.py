"""From what a user gave as data to what is judged: images to learn from, images to test on, labels that agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssole.data.base import Source, Spec, shared_labels
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation.splits import stratified_split

HELD_OUT = 0.2
"""Share of each class that is held out for testing where the data have no test images."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of a store, by position, and their labels."""

    store: ImageStore
    positions: Tensor
    """(N,) int64, ascending."""
    labels: Tensor | None
    """(N,) int64, or None."""

    def __len__(self) -> int:
        return len(self.positions)

    def get(self, indices: Tensor) -> Tensor | list[Tensor]:
        """Images by position in this part."""
        return self.store.get(self.positions[indices])

    @property
    def readable(self) -> Tensor:
        """(N,) bool: which rows are the image they stand for, as far as is known once all have been asked for.

        A store gives its next image in place of one that cannot be read, which its label says nothing about.
        """
        bad = torch.tensor([index for index, _, _ in self.store.unreadable], dtype=torch.int64)
        return ~torch.isin(self.positions, bad)

    def only(self, chosen: Tensor) -> Part:
        """The images at these positions of this part."""
        labels = None if self.labels is None else self.labels[chosen]
        return Part(store=self.store, positions=self.positions[chosen], labels=labels)

    def __str__(self) -> str:
        return f"{self.store.source.name}, {len(self)} images"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Images to judge features on; ``test`` is None, and ``train`` holds every image, when there are no labels."""

    train: Part
    test: Part | None
    classes: int | None = None
    notes: list[str] = field(default_factory=list)


def open_judged(
    data: Spec,
    test: Spec | None,
    *,
    seed: int,
    progress: bool = True,
    shrink_to: int | None = None,
    channels: int | None = None,
) -> Judged:
    """Open ``data`` and its test images: those given, or its own test split, or else a stratified hold-out by ``seed``.

    Args:
        shrink_to, channels: as for :class:`~ssole.data.store.ImageStore`.

    Raises:
        DataError: where either cannot be opened, only one has labels, or test has classes that train lacks.
    """

    def store(source: Source) -> ImageStore:
        return ImageStore(source, shrink_to=shrink_to, channels=channels, progress=progress)

    source = open_source(data, split="train")
    if source.labels is None or not (source.labels >= 0).any():
        note = f"{source.name} has no labels: only label-free figures, which are no accuracies."
        return Judged(train=_whole(store(source)), test=None, notes=[note])
    other, why_not = _test_source(source, data, test)
    train_store = store(source)
    if other is not None:
        return match(train_store, store(other))
    part, notes = labelled(train_store, source.labels)
    assert part.labels is not None
    kept, held = stratified_split(part.labels, HELD_OUT, seed=seed)
    notes = [f"No test split ({why_not}): tested on {len(held)} images held out of {len(part)} by seed {seed}.", *notes]
    return _checked(part.only(kept), part.only(held), source.classes, notes)


def match(train: ImageStore, test: ImageStore) -> Judged:
    """The labelled images of two stores, with labels in one numbering.

    Raises:
        DataError: where either has no labels, or test has classes that train lacks.
    """
    train_labels, test_labels, names = shared_labels(train.source, test.source)
    (train_part, train_notes), (test_part, test_notes) = labelled(train, train_labels), labelled(test, test_labels)
    return _checked(train_part, test_part, names, train_notes + test_notes)


def labelled(store: ImageStore, labels: NDArray[np.int64]) -> tuple[Part, list[str]]:
    """The images of a store whose label is known (not negative), and a note if those are not all.

    Raises:
        DataError: when there are none.
    """
    all_labels = torch.from_numpy(np.array(labels, dtype=np.int64))
    known = (all_labels >= 0).nonzero()[:, 0]
    if not len(known):
        raise DataError(f"none of the {len(store)} images of {store.source.name} has a label")
    missing = len(store) - len(known)
    notes = [f"{missing} of {len(store)} images of {store.source.name} have no label: left out."] if missing else []
    return Part(store=store, positions=known, labels=all_labels[known]), notes


def _checked(train: Part, test: Part, names: list[str] | None, notes: list[str]) -> Judged:
    assert train.labels is not None
    assert test.labels is not None
    learned, asked = set(train.labels.tolist()), set(test.labels.tolist())

    def listed(labels: set[int]) -> str:
        shown = [repr(names[label]) if names is not None else str(label) for label in sorted(labels)[:10]]
        return ", ".join(shown) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")

    if asked - learned:
        raise DataError(
            f"the test images ({test.store.source.name}) have classes that the training images "
            f"({train.store.source.name}) lack: {listed(asked - learned)}. Training has {listed(learned)}. "
            "Give a training and a test set of the same classes"
        )
    if len(learned) < 2:
        raise DataError(f"all labels of {train} are {listed(learned)}: an accuracy needs at least two classes")
    if learned - asked:
        notes = [*notes, f"No test image is of {listed(learned - asked)}."]
    return Judged(train=train, test=test, classes=max(learned) + 1, notes=notes)


def _test_source(source: Source, data: Spec, test: Spec | None) -> tuple[Source | None, str]:
    """Where the test images come from, or None and the reason why there are none."""
    if test is not None:
        return _given_test(test), ""
    try:
        other = open_source(data, split="test")
    except DataError as error:
        return None, str(error).split(". ")[0].rstrip(".")
    # Data without splits may open as the same images for both: testing on those would be testing on the training set.
    same = other is source or (len(other) == len(source) and _ids(other) == _ids(source))
    return (None, f"{source.name} is one set of images") if same else (other, "")


def _given_test(test: Spec) -> Source:
    """What was given as test images: its test split, or all of it where it has no splits."""
    try:
        return open_source(test, split="test")
    except DataError:
        return open_source(test, split="train")


def _ids(source: Source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def _whole(store: ImageStore) -> Part:
    return Part(store=store, positions=torch.arange(len(store)), labels=None)
