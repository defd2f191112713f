"""What the images are: formats, sizes, shapes, classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Source
from ssole.doctor.scan import Seen

ASPECTS = {
    "tall": 0.5,
    "portrait_2_3": 0.7,
    "portrait_3_4": 0.9,
    "square": 1 / 0.9,
    "landscape_4_3": 1 / 0.7,
    "landscape_3_2": 2.0,
    "wide": float("inf"),
}
"""Shapes of pictures, and up to which width over height; the bounds lie alike on either side of a square."""
_SAME = {"MPO": "JPEG"}  # cameras write several JPEGs into one file, with the suffix .jpg


@dataclass(frozen=True, kw_only=True)
class Range:
    """Least, middle and most."""

    min: int
    median: int
    max: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the readable images are."""

    formats: dict[str, int]
    """Images by format, as found from the bytes; the most frequent first, as everywhere below."""
    modes: dict[str, int]
    """Images by Pillow's mode, or an array's channels and dtype."""
    width: Range
    height: Range
    shorter_side: Range
    bytes: Range
    total_bytes: int
    aspects: dict[str, int]
    """Images by shape, in the order of :data:`ASPECTS`."""
    one_size: bool
    """Whether all images have the same size."""
    blank: list[str]
    """Ids of images of a single colour."""
    misnamed: list[str]
    """Ids of files whose suffix says another format than their bytes."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Labels; training never needs them."""

    classes: int
    smallest: int
    """Images of the rarest class."""
    largest: int
    unlabelled: int


def contents(source: Source, seen: Sequence[Seen]) -> Contents:
    """What at least one readable image amounts to."""
    headers = [one.header for one in seen]
    width = np.array([header.width for header in headers])
    height = np.array([header.height for header in headers])
    size = np.array([header.bytes for header in headers], dtype=np.int64)
    return Contents(
        formats=_counted(header.format for header in headers),
        modes=_counted(header.mode for header in headers),
        width=_range(width),
        height=_range(height),
        shorter_side=_range(np.minimum(width, height)),
        bytes=_range(size),
        total_bytes=int(size.sum()),
        aspects=_aspects(width / height),
        one_size=len(set(zip(width.tolist(), height.tolist(), strict=True))) == 1,
        blank=[source.id(one.index) for one in seen if one.blank],
        misnamed=[source.id(one.index) for one in seen if _misnamed(source.id(one.index), one.header.format)],
    )


def classes(source: Source) -> Classes | None:
    """How many images each label has; None without labels."""
    if source.labels is None:
        return None
    counts = np.unique_counts(source.labels[source.labels >= 0]).counts
    unlabelled = len(source.labels) - int(counts.sum())
    if counts.size == 0:
        return None
    return Classes(classes=len(counts), smallest=int(counts.min()), largest=int(counts.max()), unlabelled=unlabelled)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _aspects(ratios: NDArray[np.float64]) -> dict[str, int]:
    counts = np.histogram(ratios, [0.0, *ASPECTS.values()])[0]
    return dict(zip(ASPECTS, counts.tolist(), strict=True))


def _range(values: NDArray[np.int64]) -> Range:
    return Range(min=int(values.min()), median=int(np.median(values)), max=int(values.max()))


def _misnamed(name: str, found: str) -> bool:
    from PIL import Image

    promised = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return promised is not None and _SAME.get(promised, promised) != _SAME.get(found, found)
