"""The images of a comparison: for training and testing, and a part of train that the search is scored on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssole.data.base import Source, Spec, SubsetSource, evenly_spaced
from ssole.data.labels import shared_labels
from ssole.data.sources import open_source
from ssole.errors import DataError
from ssole.evaluation.datasets import (
    HELD_OUT,
    find_test_images,
    notes_of_shared,
    require_classes,
    stratified_split,
)
from ssole.evaluation.online import NEIGHBOURS

VALIDATION_SHARE = 0.1
"""Share of each class of the training images on which settings are chosen."""
SPLIT_SEED = 0
"""Seed of the splits, which are the same in every comparison of the same images."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of a comparison. The search sees `search_train` and `validation`, which are the parts of `train`."""

    train: Source
    test: Source
    search_train: Source
    validation: Source
    is_part: bool
    """Whether `train` is a part of the data that were given, since images were held out or a sample was asked for.

    If not, run folders name the data themselves, so that they can be opened again.
    """
    notes: list[str]
    """What a reader of the result must know about the data."""


def open_images(data: Spec, test: Spec | None, *, most: int | None = None) -> Images:
    """Images of a comparison. Test images are those given, else the test split, else a stratified fifth of the data.

    With `most`, the training images are a :func:`sample` of so many labelled ones. Data without labels, which methods
    are scored by, are a DataError, and so are images that runs could not be tested on.
    """
    source = open_source(data)
    labels = _required_labels(source)
    test_source, why_not = find_test_images(source, data, test)
    notes = []
    is_part = test_source is None
    if test_source is None:
        kept, held = _split(labels, HELD_OUT)
        source, test_source = _part(source, kept, "train"), _part(source, held, "test")
        notes.append(f"No test split ({why_not}): tested on {len(held)} images held out by seed {SPLIT_SEED}.")
    else:
        _required_labels(test_source)
        train_labels, test_labels, names = shared_labels(source, test_source)
        in_train, in_test = (set(labels[labels >= 0].tolist()) for labels in (train_labels, test_labels))
        require_classes(in_train, in_test, names, (source.name, test_source.name))
        notes += notes_of_shared(source, test_source)
    if most is not None and most < len(source):
        source, is_part = sample(source, most), True
    labels = _required_labels(source)
    kept, held = _split(labels, VALIDATION_SHARE)
    return Images(
        train=source,
        test=test_source,
        search_train=_part(source, kept, "for the search"),
        validation=_part(source, held, "validation"),
        is_part=is_part,
        notes=notes,
    )


def sample(source: Source, most: int) -> Source:
    """Evenly spaced sample of so many labelled images of a source, and one more of each class that it lacks."""
    labels = _required_labels(source).numpy()
    labelled = np.flatnonzero(labels >= 0)
    spaced = labelled[evenly_spaced(len(labelled), most)]
    classes, first = np.unique(labels[labelled], return_index=True)
    rare = labelled[first[~np.isin(classes, labels[spaced])]]
    return _part(source, torch.from_numpy(np.union1d(spaced, rare)), "sample")


def require_neighbours(train: Source) -> None:
    """Raise a DataError, before anything is trained, if kNN would have too few images to learn from."""
    if (count := int((_required_labels(train) >= 0).sum())) < NEIGHBOURS:
        raise DataError(
            f"methods are ranked by kNN with k = {NEIGHBOURS}, and {train.name} has {count} images with labels: give "
            f"at least {NEIGHBOURS}"
        )


def _required_labels(source: Source) -> torch.Tensor:
    if source.labels is None or source.labels.max() < 0:
        advice = source.why_unlabelled or "give images in a folder a class"
        raise DataError(f"methods are scored by labels, and {source.name} has none: {advice}")
    return torch.from_numpy(np.array(source.labels, dtype=np.int64))


def _split(labels: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Stratified split of the labelled images; the others are kept too, because training needs no labels."""
    known = (labels >= 0).nonzero()[:, 0]
    held = known[stratified_split(labels[known], share, seed=SPLIT_SEED)[1]]
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held] = False
    return kept.nonzero()[:, 0], held


def _part(source: Source, positions: torch.Tensor, what: str) -> Source:
    return SubsetSource(source, positions.numpy(), name=f"{source.name} ({what})")
