"""SubsetSource: some of the images of another source."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ssole.data.arrays import ArraySource
from ssole.data.base import Pixels, Source
from ssole.errors import DataError


class SubsetSource(Source):
    """Source of some of the images of another source, which keep their ids and labels.

    Args:
        whole: The other source.
        positions: int64 (N,), indices of the chosen images, in the order to have them.
        name: A short name for messages; by default that of `whole`.

    Raises:
        DataError: no position, or one that `whole` does not have.
    """

    def __init__(self, whole: Source, positions: NDArray[np.int64], *, name: str | None = None) -> None:
        if not len(positions) or positions.min() < 0 or positions.max() >= len(whole):
            raise DataError(f"A part of {whole.name} needs positions from 0 to {len(whole) - 1}; got {positions}.")
        self.name = name or whole.name
        self.labels = None if whole.labels is None else whole.labels[positions]
        self.classes = whole.classes
        self.whole, self._positions = whole, positions
        self._base = whole  # never a subset itself
        if isinstance(whole, SubsetSource):
            self._base, self._positions = whole._base, whole._positions[positions]

    def __len__(self) -> int:
        return len(self._positions)

    def id(self, i: int) -> str:
        return self._base.id(int(self._positions[i]))

    def read(self, i: int) -> bytes | Pixels:
        return self._base.read(int(self._positions[i]))

    @cached_property
    def identity(self) -> str:
        return f"{self.whole.identity}\n{self.ids_fingerprint}"

    def files(self) -> list[str] | None:
        return self._base.files_of(self._positions)

    def fingerprint(self) -> str | None:
        if type(self._base).fingerprint is Source.fingerprint:
            return super().fingerprint()
        whole = self._base.fingerprint()
        return None if whole is None else hashlib.sha256(f"{self.ids_fingerprint} {whole}".encode()).hexdigest()


def is_array(source: Source) -> bool:
    """Whether the images are an array in memory, or a part of one."""
    return isinstance(source._base if isinstance(source, SubsetSource) else source, ArraySource)
