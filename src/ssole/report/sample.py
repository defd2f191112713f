"""Sample of a run's images, with their features before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssole.data.base import Source, Spec, SubsetSource
from ssole.data.describe import why_not_reopened
from ssole.data.labels import shared_labels
from ssole.data.sources import open_source
from ssole.data.thumbnail import images_to_show, thumbnail
from ssole.errors import DataError
from ssole.evaluation.checks import NotFiniteError
from ssole.evaluation.datasets import EvaluationData, Subset, find_test_images, open_data
from ssole.evaluation.features import extract, extract_views
from ssole.evaluation.knn import nearest
from ssole.evaluation.preprocessing import Preprocessing
from ssole.models.load import LoadedBackbone, load, untrained
from ssole.report.record import Record
from ssole.views import make_views

_TEST_SHARE = 4  # of the images, one in so many test images
_PAIRS = 512  # images whose views are compared


@dataclass(frozen=True, kw_only=True)
class Part:
    """Readable images with their features, by row."""

    subset: Subset
    after: Tensor
    """(N, F) features of the trained network."""
    before: Tensor
    """(N, F) features of the same network untrained."""

    def __len__(self) -> int:
        return len(self.after)

    @property
    def labels(self) -> Tensor:
        """(N,) labels, -1 where unknown."""
        return self.subset.labels

    def id(self, row: int) -> str:
        """Name of an image."""
        return self.subset.store.source.id(int(self.subset.positions[row]))

    def pictures(self, rows: Sequence[int], side: int) -> list[Image.Image]:
        """Images as pictures that fit into a square, decoded by all threads at once."""
        return [thumbnail(image, side) for image in self.subset.get(torch.tensor(rows))]


@dataclass(frozen=True, kw_only=True)
class RunSample:
    """Some images of a run's data, with their features by the trained and the untrained network."""

    train: Part
    test: Part | None
    """Test images; None without labels."""
    classes: list[str] | None
    """Names of the labels, where known."""
    labelled: bool
    total: int
    """Number of images that the sample was drawn from."""
    agreement: tuple[float, float]
    """Share of images whose second view is nearest to their own first view, trained and untrained."""

    def name_of(self, label: int) -> str:
        """Name of a label."""
        if label < 0:
            return "no label"
        return self.classes[label] if self.classes is not None and label < len(self.classes) else str(label)


def open_sample(
    record: Record, data: Spec | None, *, limit: int, device: torch.device, progress: bool
) -> tuple[RunSample | None, str]:
    """Sample of at most `limit` images of a run's data; or None and the reason why there is none.

    A network that gives NaN or infinity is a NotFiniteError.
    """
    if not record.finished:
        return None, "The run is not finished, so it has no backbone yet."
    if data is None and (reason := why_not_reopened(record.config.data)) is not None:
        return None, f"The run was trained on {reason}. Pass them, or --data, to see them here."
    try:
        return _open(record, record.config.data if data is None else data, limit, device, progress), ""
    except (DataError, OSError) as error:  # no such images, or unreadable ones
        return None, f"There are no pictures: {str(error).rstrip('.')}. If the images are elsewhere now, give --data."
    except NotFiniteError:
        raise
    except ValueError as error:
        return None, f"There are no pictures: {error}."


def open_examples(record: Record, data: Spec | None, *, limit: int) -> tuple[list[Tensor], Tensor] | None:
    """At most `limit` evenly spaced images (C, h, w) of a run's data, and their indices; None if there are none."""
    if data is None and why_not_reopened(record.config.data) is not None:
        return None
    config, size = record.config, record.config.augment.useful_size
    try:
        source = open_source(config.data if data is None else data, split="train")
        images, indices, _ = images_to_show(source, limit, shrink_to=size, channels=config.channels)
    except (ValueError, OSError):  # once the run is finished, the page says why there are no pictures
        return None
    return (images, indices) if images else None


def _open(record: Record, data: Any, limit: int, device: torch.device, progress: bool) -> RunSample:
    trained, start = load(record.path), untrained(record.path)
    both, preprocessing = _SideBySide([trained, start]), Preprocessing.from_model(trained)
    whole = open_source(data, split="train")
    most = record.config.max_unreadable
    found = _open_data(whole, data, preprocessing, limit, progress=progress, max_unreadable=_by_chance(most, limit))

    def part(subset: Subset) -> Part:
        features = extract(both, subset, preprocessing, device=device, progress=progress)
        after, before = subset.readable_rows(features)[0].chunk(2, dim=1)
        return Part(subset=subset.readable_part(), after=after.contiguous(), before=before.contiguous())

    train = part(found.train)
    return RunSample(
        train=train,
        test=None if found.test is None else part(found.test),
        classes=found.names,
        labelled=bool((train.labels >= 0).any()),
        total=len(whole),
        agreement=(_agreement(record, trained, train, device), _agreement(record, start, train, device)),
    )


def _by_chance(share: float, images: int) -> float:
    """Share of unreadable images to allow in a random sample, if `share` of all images may be unreadable."""
    return min(1.0, share + 3 * math.sqrt(share / images))  # three standard deviations more


def _open_data(whole: Source, data: Any, preprocessing: Preprocessing, limit: int, **options: Any) -> EvaluationData:
    source = _some(whole, limit)
    tests = None
    if whole.labels is not None and (whole.labels >= 0).any():
        tests, _ = find_test_images(whole, data, None)
        tests = None if tests is None else _some(tests, max(1, limit // _TEST_SHARE))
    try:
        if tests is not None:  # without a label, or of a class that the sample of training images has
            train_labels, test_labels, _ = shared_labels(source, tests)
            known = np.flatnonzero((test_labels < 0) | np.isin(test_labels, train_labels))
            tests = SubsetSource(tests, known) if len(known) else None
        return open_data(source, tests, preprocessing, seed=0, **options)
    except ValueError:  # one class alone, classes of which the sample has no image, ...: show it without labels
        if source.labels is None:
            raise
        source.labels = None
        return open_data(source, None, preprocessing, seed=0, **options)


def _some(source: Source, limit: int) -> SubsetSource:
    """At most `limit` images of a source, drawn at random but the same every time, in the order of the source."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    return SubsetSource(source, order[:limit].sort().values.numpy())


class _SideBySide(nn.ModuleList):
    """Networks as one, so that images are decoded once: features (B, F) of each beside the others, (B, M F)."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([model(images) for model in self], dim=1)


def _agreement(record: Record, model: LoadedBackbone, part: Part, device: torch.device) -> float:
    """Share of images, of some hundred, whose second view is nearest to their own first view."""
    chosen = part.subset.thinned(_PAIRS)
    views = partial(make_views, recipe=record.config.augment.main_views(2), seed=0, epoch=0)
    first, second = extract_views(model, chosen, chosen.positions, views, device=device).unbind(1)
    _, index = nearest(first, second, 1)
    return float((index[:, 0] == torch.arange(len(chosen))).float().mean())
