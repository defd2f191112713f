"""Images that are there twice: the same bytes, or pictures that look the same.

Two images are near copies when their perceptual hashes differ in at most 8 of 64 bits *and* their 16 x 16 grey
thumbnails correlate by at least 0.9. The hash alone, at a distance wide enough to find re-encoded, resized and slightly
cropped copies, also pairs different pictures of the same composition; the second look tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssole.doctor.scan import THUMBNAIL, Seen
from ssole.progress import progress_bar

MOST_BITS = 8
LEAST_CORRELATION = 0.9


@dataclass(frozen=True, slots=True)
class Group:
    """Images alike, by index: the first, and its copies."""

    first: int
    copies: list[int]


@dataclass(frozen=True, slots=True)
class Leak:
    """An image of the second set that the first set has too."""

    index: int
    """In the second set."""
    twin: int
    """In the first set: the one most alike."""
    exact: bool
    """Whether the bytes are the same."""


def exact_copies(seen: Iterable[Seen]) -> list[Group]:
    """Groups of images with the same content."""
    by_digest: dict[bytes, Group] = {}
    for one in seen:
        if one.digest in by_digest:
            by_digest[one.digest].copies.append(one.index)
        else:
            by_digest[one.digest] = Group(one.index, [])
    return [group for group in by_digest.values() if group.copies]


def near_copies(seen: Sequence[Seen], *, progress: bool = False) -> list[Group]:
    """Groups of images that look the same without being the same: each copy is near to the first of its group.

    Greedy, in the order given: an image is a copy if it is near to an earlier one that is not a copy itself. Without
    the copies, no two images are near. Exact copies are passed over, and so are blank images, which all look the same.
    """
    firsts: dict[bytes, Seen] = {}
    for one in seen:
        if not one.blank:
            firsts.setdefault(one.digest, one)
    unique = list(firsts.values())
    looks = Looks(unique)
    is_copy = np.zeros(len(unique), dtype=bool)
    groups: list[Group] = []
    with progress_bar("comparing images", len(unique), enabled=progress) as advance:
        for i in range(len(unique)):
            advance()
            if is_copy[i]:
                continue
            near = looks.near(unique[i], start=i + 1)
            near = near[~is_copy[near]]
            if near.size:
                is_copy[near] = True
                groups.append(Group(unique[i].index, [unique[j].index for j in near]))
    return groups


def leaks(first: Sequence[Seen], second: Sequence[Seen], *, progress: bool = False) -> list[Leak]:
    """Images of the second set that are in the first as well, exactly or nearly."""
    by_digest = {one.digest: one.index for one in reversed(first)}
    looks = Looks([one for one in first if not one.blank])
    found: list[Leak] = []
    with progress_bar("comparing the two sets", len(second), enabled=progress) as advance:
        for one in second:
            advance()
            if one.digest in by_digest:
                found.append(Leak(one.index, by_digest[one.digest], exact=True))
            elif not one.blank and (near := looks.near(one)).size:
                found.append(Leak(one.index, looks.seen[near[0]].index, exact=False))
    return found


class Looks:
    """The fingerprints of many images, to be compared with that of one."""

    def __init__(self, seen: Sequence[Seen]) -> None:
        self.seen = seen
        self._hashes = np.array([one.hash for one in seen], dtype=np.uint64)
        self._thumbnails = np.array([one.thumbnail for one in seen], dtype=np.uint8).reshape(len(seen), THUMBNAIL**2)

    def near(self, one: Seen, *, start: int = 0) -> NDArray[np.int64]:
        """Positions, from `start` on, of the images near to `one`, the most alike first."""
        bits = np.bitwise_count(self._hashes[start:] ^ np.uint64(one.hash))
        candidates = start + np.flatnonzero(bits <= MOST_BITS)
        correlation = _correlation(self._thumbnails[candidates], one.thumbnail.ravel())
        alike = correlation >= LEAST_CORRELATION
        return candidates[alike][np.argsort(-correlation[alike], kind="stable")]


def _correlation(rows: NDArray[np.uint8], row: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pearson correlation of each of the rows (N, P) with the row (P,); 0 where either is constant."""
    a = rows.astype(np.float32) - rows.mean(axis=1, dtype=np.float32, keepdims=True)
    b = row.astype(np.float32) - row.mean(dtype=np.float32)
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    correlation: NDArray[np.float32] = np.divide(a @ b, size, out=np.zeros_like(size), where=size > 0)
    return correlation
