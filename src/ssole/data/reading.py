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
        self.failures: dict[int, str] = {}
        """{index: reason} of the images found unreadable so far."""
        self._shrink_to, self._channels = shrink_to, channels
        self._allowed = math.ceil(max_unreadable * len(source))
        self._lock = threading.Lock()

    def use(self, packed: PackedImages | None) -> None:
        """Take images from a cache from now on, and keep there what is decoded."""
        self.packed = packed
        for i in packed.unreadable if packed is not None else ():
            self.read(i)  # what earlier runs met counts, and is listed, from the start

    def read(self, i: int) -> torch.Tensor | None:
        """Image i, or None if it is unreadable.

        Raises:
            DataError: where this makes too many of them.
        """
        if i in self.failures:
            return None
        found = self.packed.get(i) if self.packed is not None else None
        if isinstance(found, str):
            self._fail(i, found)
            return None
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
            data = self.source.read(i)
        except DataError as error:  # a disk or a server that fails today may not tomorrow: the cache does not keep this
            self._fail(i, _reason(error, name), error)
            return None
        try:
            image = decode(data, where=name, shrink_to=self._shrink_to, channels=self._channels)
        except DataError as error:
            if self.packed is not None:
                self.packed.keep(i, _reason(error, name))
            self._fail(i, _reason(error, name), error)
            return None
        if self.packed is not None:
            self.packed.keep(i, image)
        return image

    def _fail(self, i: int, reason: str, cause: Exception | None = None) -> None:
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


def _reason(error: DataError, name: str) -> str:
    return str(error).removeprefix(f"{name}: ")
