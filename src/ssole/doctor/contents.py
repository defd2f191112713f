"""Contents of a data set: formats, sizes, shapes and classes of its images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Source
from ssole.doctor.scan import Readable

ASPECTS = {
    "tall": (0.5, "tall, beyond 1:2"),
    "portrait_2_3": (0.7, "portrait, about 2:3"),
    "portrait_3_4": (0.9, "portrait, about 3:4"),
    "square": (1 / 0.9, "square"),
    "landscape_4_3": (1 / 0.7, "landscape, about 4:3"),
    "landscape_3_2": (2.0, "landscape, about 3:2"),
    "wide": (float("inf"), "wide, beyond 2:1"),
}
"""Largest width over height of images of a shape, and words for it. The bounds are symmetric about a square."""
_SAME = {"MPO": "JPEG"}  # MPO is several JPEGs in one file, which cameras write with the suffix .jpg


@dataclass(frozen=True, kw_only=True)
class Range:
    """Minimum, median and maximum."""

    min: int
    median: int
    max: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Formats, sizes and shapes of the readable images."""

    formats: dict[str, int]
    """Number of images by format, which is read from the bytes; the most frequent first."""
    modes: dict[str, int]
    """Number of images by mode, as in :class:`~ssole.doctor.scan.Header`; the most frequent first."""
    width: Range
    height: Range
    shorter_side: Range
    bytes: Range
    total_bytes: int
    aspects: dict[str, int]
    """Number of images by shape, in the order of :data:`ASPECTS`."""
    one_size: bool
    """Whether all images have the same size."""
    blank: list[str]
    """Ids of images of a single colour."""
    misnamed: list[str]
    """Ids of files whose suffix does not fit the format of their bytes."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Number of classes and of images in a class."""

    classes: int
    smallest: int
    """Images of the rarest class."""
    largest: int
    unlabelled: int


def contents(images: Sequence[Readable]) -> Contents:
    """Contents of a data set with at least one readable image."""
    headers = [image.header for image in images]
    width = np.array([header.width for header in headers])
    height = np.array([header.height for header in headers])
    size = np.array([header.bytes for header in headers], dtype=np.int64)
    aspects = np.histogram(width / height, [0.0, *(most for most, _ in ASPECTS.values())])[0].tolist()
    return Contents(
        formats=dict(Counter(header.format for header in headers).most_common()),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        width=_range(width),
        height=_range(height),
        shorter_side=_range(np.minimum(width, height)),
        bytes=_range(size),
        total_bytes=int(size.sum()),
        aspects=dict(zip(ASPECTS, aspects, strict=True)),
        one_size=len(set(zip(width.tolist(), height.tolist(), strict=True))) == 1,
        blank=[image.id for image in images if image.blank],
        misnamed=[image.id for image in images if _misnamed(image.id, image.header.format)],
    )


def classes(source: Source) -> Classes | None:
    """Classes of the labels, or None without labels."""
    if source.labels is None:
        return None
    counts = np.unique_counts(source.labels[source.labels >= 0]).counts
    unlabelled = len(source.labels) - int(counts.sum())
    if counts.size == 0:
        return None
    return Classes(classes=len(counts), smallest=int(counts.min()), largest=int(counts.max()), unlabelled=unlabelled)


def _range(values: NDArray[np.int64]) -> Range:
    return Range(min=int(values.min()), median=int(np.median(values)), max=int(values.max()))


def _misnamed(name: str, found: str) -> bool:
    from PIL import Image

    named = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return named is not None and _SAME.get(named, named) != _SAME.get(found, found)
