"""Reading single images, and keeping account of those that cannot be read."""

from __future__ import annotations

import math
import threading

import torch

from ssole.data.decode import decode
from ssole.data.packed import PackedImages
from ssole.data.sources import Source
from ssole.errors import DataError


class Reader:
    """Decoded images of a source, from its cache where they are kept; safe to use from several threads.

    Args:
        source: Where the images come from.
        shrink_to, channels: As for :func:`ssole.data.decode.decode`.
        max_unreadable: Share of the images, rounded up to whole images, that may be unreadable.
    """

    def __init__(self, source: Source, *, shrink_to: int | None, channels: int | None, max_unreadable: float) -> None:
        self.source = source
        self.packed: PackedImages | None = None
        """The cache, once there is one."""
        self.failures: dict[int, str] = {}
        """{index: reason} of the images found unreadable so far."""
        self._shrink_to, self._channels = shrink_to, channels
        self._allowed = math.ceil(max_unreadable * len(source))
        self._lock = threading.Lock()

    def read(self, i: int) -> torch.Tensor | None:
        """Image i, or None if it is unreadable.

        Raises:
            DataError: where this makes too many of them.
        """
        if i in self.failures:
            return None
        found = self.packed.get(i) if self.packed is not None else None
        return self._decode(i) if found is None else found

    def readable(self, i: int) -> torch.Tensor:
        """Image i, or in its place the next that can be read, by index and round the end."""
        n = len(self.source)
        for step in range(n):
            image = self.read((i + step) % n)
            if image is not None:
                return image
        raise self._too_many()

    def listed(self) -> list[tuple[int, str, str]]:
        """(index, id, reason) of every image found unreadable so far, in the order of indices."""
        with self._lock:
            return [(i, self.source.id(i), reason) for i, reason in sorted(self.failures.items())]

    def _decode(self, i: int) -> torch.Tensor | None:
        name = self.source.id(i)
        try:
            image = decode(self.source.read(i), where=name, shrink_to=self._shrink_to, channels=self._channels)
        except DataError as error:  # never kept in the cache: a disk, a server or a decoder may be there the next time
            self._fail(i, str(error).removeprefix(f"{name}: "), error)
            return None
        if self.packed is not None:
            self.packed.keep(i, image)
        return image

    def _fail(self, i: int, reason: str, cause: Exception) -> None:
        with self._lock:
            self.failures[i] = reason
        if len(self.failures) > self._allowed:
            raise self._too_many() from cause

    def _too_many(self) -> DataError:
        first = "".join(f"\n  {name}: {reason}" for _, name, reason in self.listed()[:5])
        return DataError(
            f"{len(self.failures)} of the {len(self.source)} images in {self.source.name} cannot be read, and at most "
            f"{min(self._allowed, len(self.source) - 1)} may be (max_unreadable). The first of them:{first}"
        )
