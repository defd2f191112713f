"""Reader: reads, decodes and caches images for the threads of an `ImageStore`, and records which cannot be read.

It is apart from the store because the threads hold a reference to it: a store that they referred to would not be freed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch

from ssole.data.base import Source
from ssole.data.cache import ImageCache
from ssole.data.decode import decode
from ssole.errors import DataError


class Reader:
    """Reader of images by index, from the cache or decoded and then cached; safe to use from several threads.

    Args:
        decoding: `shrink_to` and `channels` of :func:`ssole.data.decode.decode`.
        allowed: Number of images that may be unreadable.
    """

    def __init__(self, source: Source, decoding: dict[str, int | None], *, allowed: int) -> None:
        self.source, self._decoding, self._allowed = source, decoding, allowed
        self.cache: ImageCache | None = None
        self.reasons: dict[int, str] = {}  # why each unreadable image cannot be read, by index
        self._lock = threading.Lock()

    def read(self, i: int) -> torch.Tensor | None:
        """Image i, or None if it is unreadable; `DataError` if more than allowed are."""
        if i in self.reasons:
            return None
        if self.cache is not None and (kept := self.cache.get(i)) is not None:
            return kept
        name = self.source.id(i)
        try:
            image = decode(self.source.read(i), where=name, **self._decoding)
        except DataError as error:  # not cached: a disk, a server or a decoder may be there the next time
            with self._lock:
                self.reasons[i] = str(error).removeprefix(f"{name}: ")
            if len(self.reasons) > self._allowed:
                raise self._too_many() from error
            return None
        if self.cache is not None:
            self.cache.keep(i, image)
        return image

    def read_or_next(self, i: int) -> torch.Tensor:
        """Image i, or the next readable one by index; after the last comes the first."""
        n = len(self.source)
        for step in range(n):
            if (image := self.read((i + step) % n)) is not None:
                return image
        raise self._too_many()

    def fill(self, images: torch.Tensor, chunk: range, stop: threading.Event) -> bool:
        """Decode the readable images of a chunk into their rows of `images` (N, C, H, W).

        Returns False if it was stopped, or at an image of another shape or dtype.
        """
        rows = images.numpy()  # NumPy copies, because torch would start more threads for each of ours
        for i in chunk:
            if stop.is_set():
                return False
            if (image := self.read(i)) is not None:
                if image.shape != images.shape[1:] or image.dtype != images.dtype:
                    return False
                rows[i] = image.numpy()
        return True

    def take(self, found: Iterable[tuple[int, str, str]]) -> None:
        """Take over images that others found unreadable, as :meth:`unreadable`; `DataError` if these are too many."""
        with self._lock:
            self.reasons |= {i: reason for i, _, reason in found}
        if len(self.reasons) > self._allowed:
            raise self._too_many()

    def unreadable(self) -> list[tuple[int, str, str]]:
        """(index, id, reason) of every image found unreadable so far, in the order of indices."""
        with self._lock:
            return [(i, self.source.id(i), reason) for i, reason in sorted(self.reasons.items())]

    def _too_many(self) -> DataError:
        first = "".join(f"\n  {name}: {reason}" for _, name, reason in self.unreadable()[:5])
        return DataError(
            f"{len(self.reasons)} of the {len(self.source)} images in {self.source.name} cannot be read, and at most "
            f"{min(self._allowed, len(self.source) - 1)} may be. Repair or remove them (ssole doctor DATA lists "
            "all). Only training can be told to allow a larger share (--max-unreadable, in Python max_unreadable). "
            f"The first of them:{first}"
        )
