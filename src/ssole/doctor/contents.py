"""Contents of a data set: formats, sizes, shapes and classes of its images, and which of them are copies of others.

Exact copies have the same bytes, near copies look the same. Two images are near copies if their perceptual hashes
differ in at most 8 of 64 bits *and* their 16 x 16 grey thumbnails correlate by at least 0.9. A distance of 8 bits finds
copies that are re-encoded, resized or slightly cropped. It also pairs different pictures of the same composition, which
the thumbnails tell apart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Source
from ssole.doctor.scan import THUMBNAIL, Readable
from ssole.progress import progress_bar

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

MAX_BITS = 8
MIN_CORRELATION = 0.9


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
    ratio, bounds = width / height, [most for most, _ in ASPECTS.values()]
    # exactly 1:2 is still a portrait, and exactly 2:1 a landscape
    shape = np.where(ratio > 1, np.searchsorted(bounds, ratio), np.searchsorted(bounds, ratio, side="right"))
    aspects = np.bincount(shape, minlength=len(ASPECTS)).tolist()
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
    if source.labels is None or source.labels.max(initial=-1) < 0:
        return None
    counts = np.unique_counts(source.labels[source.labels >= 0]).counts
    unlabelled = len(source.labels) - int(counts.sum())
    return Classes(classes=len(counts), smallest=int(counts.min()), largest=int(counts.max()), unlabelled=unlabelled)


def _range(values: NDArray[np.int64]) -> Range:
    return Range(min=int(values.min()), median=int(np.median(values)), max=int(values.max()))


def _misnamed(name: str, found: str) -> bool:
    from PIL import Image

    named = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return named is not None and _SAME.get(named, named) != _SAME.get(found, found)


@dataclass(frozen=True, slots=True)
class Copies:
    """Group of duplicates, by id: the first image and its copies."""

    first: str
    copies: list[str]


@dataclass(frozen=True, slots=True)
class Leak:
    """Image of the second set that is also in the first set."""

    id: str
    """Id in the second set."""
    twin: str
    """Id of the most similar image of the first set."""
    exact: bool
    """Whether both have the same bytes."""


def exact_copies(images: Iterable[Readable]) -> list[Copies]:
    """Groups of images with the same content."""
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.digest, []).append(image.id)
    return [Copies(first, copies) for first, *copies in groups.values() if copies]


def near_copies(images: Sequence[Readable], *, progress: bool = False) -> list[Copies]:
    """Groups of images that look the same but differ in their bytes; every copy is near to the first of its group.

    The search is greedy, in the order given: an image is a copy if it is near to an earlier image that is not a copy
    itself. So no two images are near once the copies are removed. Exact copies are left out, and so are blank images,
    because they all look the same.
    """
    by_digest: dict[str, Readable] = {}
    for image in images:
        if not image.blank:
            by_digest.setdefault(image.digest, image)
    unique = list(by_digest.values())
    search = NearCopySearch(unique)
    is_copy = np.zeros(len(unique), dtype=bool)
    groups: list[Copies] = []
    with progress_bar("comparing images", len(unique), enabled=progress) as advance:
        for i, image in enumerate(unique):
            advance()
            if is_copy[i]:
                continue
            near = search.near(image, start=i + 1)
            near = near[~is_copy[near]]
            if near.size:
                is_copy[near] = True
                groups.append(Copies(image.id, [unique[j].id for j in near]))
    return groups


def leaks(first: Sequence[Readable], second: Sequence[Readable], *, progress: bool = False) -> list[Leak]:
    """Images of the second set that are also in the first set, exactly or nearly."""
    by_digest = {image.digest: image.id for image in reversed(first)}
    candidates = [image for image in first if not image.blank]
    search = NearCopySearch(candidates)
    found: list[Leak] = []
    with progress_bar("comparing the two sets", len(second), enabled=progress) as advance:
        for image in second:
            advance()
            if image.digest in by_digest:
                found.append(Leak(image.id, by_digest[image.digest], exact=True))
            elif not image.blank and (near := search.near(image)).size:
                found.append(Leak(image.id, candidates[near[0]].id, exact=False))
    return found


class NearCopySearch:
    """Search for near copies of one image among many, by their perceptual hashes and thumbnails."""

    def __init__(self, images: Sequence[Readable]) -> None:
        self._hashes = np.array([image.hash for image in images], dtype=np.uint64)
        thumbnails = np.array([image.thumbnail for image in images], dtype=np.uint8)
        self._thumbnails = thumbnails.reshape(len(images), THUMBNAIL**2)

    def near(self, image: Readable, *, start: int = 0) -> NDArray[np.int64]:
        """Positions, from `start` on, of the images that are near to this one; the most similar first."""
        bits = np.bitwise_count(self._hashes[start:] ^ np.uint64(image.hash))
        candidates = start + np.flatnonzero(bits <= MAX_BITS)
        correlation = _correlation(self._thumbnails[candidates], image.thumbnail.ravel())
        near = correlation >= MIN_CORRELATION
        return candidates[near][np.argsort(-correlation[near], kind="stable")]


def _correlation(rows: NDArray[np.uint8], row: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pearson correlation of each of the rows (N, P) with the row (P,); 0 where either is constant."""
    a = rows.astype(np.float32) - rows.mean(axis=1, dtype=np.float32, keepdims=True)
    b = row.astype(np.float32) - row.mean(dtype=np.float32)
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    correlation: NDArray[np.float32] = np.divide(a @ b, size, out=np.zeros_like(size), where=size > 0)
    return correlation
