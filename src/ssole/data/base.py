"""Source, the base class of image sources; a part of a source; and hashes of images."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssole.data.storage import CONNECTIONS, files_fingerprint
from ssole.errors import DataError

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Decoded image, (H, W) or (H, W, C)."""

Split = Literal["train", "test"]

MAX_FILES = 100_000
"""Most files that a fingerprint looks at, in about a second; of more, an evenly spaced sample."""


class NoTestImages(DataError):
    """Error for data that have no test split."""


class Source(ABC):
    """Base class of sources: images with stable ids and, perhaps, labels.

    For a source of your own, write a subclass that sets `name` and defines `__len__`, `id` and `read`. Everything else
    has a default. To keep its decoded images from run to run, also define `files` or `fingerprint`.

    Attributes:
        name: A short name for messages and reports.
        labels: (N,) int64 with −1 for an image whose label is unknown; None without labels.
        classes: Names of the labels 0, 1, ..., or None.
        ignored: Number of other files found beside the images, by suffix.
        hidden: Number of files and folders left out because their name begins with a dot.
        why_unlabelled: Why there are no labels, where there seemed to be some; else None.
    """

    name: str
    labels: NDArray[np.int64] | None = None
    classes: list[str] | None = None
    ignored: Mapping[str, int] = MappingProxyType({})
    hidden: int = 0
    why_unlabelled: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def id(self, i: int) -> str:
        """Name of image i, the same in every run: its path below the root, or ``file:row``."""

    @abstractmethod
    def read(self, i: int) -> bytes | Pixels:
        """Image i, encoded or as an array (H, W) or (H, W, C), uint8 or uint16; safe to call from several threads.

        Raises:
            DataError: the image cannot be read; the message begins with the id.
        """

    @cached_property
    def ids_fingerprint(self) -> str:
        """Hash of all ids in their order. Run folders hold it in images.json, so its definition must not change."""
        ids = "\0".join(self.id(i) for i in range(len(self)))
        return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()  # file names need not be valid text

    @cached_property
    def identity(self) -> str:
        """Text that names the data set, such as a folder's path. It should stay the same when images change.

        By default it is a hash of the ids, which changes with them. A subclass may set it.
        """
        return self.ids_fingerprint

    def files(self) -> list[str] | None:
        """Paths or URLs of the files that hold the images, or an evenly spaced sample of them; None if unknown."""
        return None

    def files_of(self, positions: Sequence[int] | NDArray[np.int64]) -> list[str] | None:
        """Files of some of the images, as :meth:`files`. By default those of all, because images may share a file."""
        return self.files()

    def fingerprint(self) -> str | None:
        """Hash that changes whenever an image may have changed; None if the source cannot tell.

        By default it is made of the ids and of the sizes and times of `files`. A fingerprint of your own should include
        `ids_fingerprint`.
        """
        files = self.files()
        contents = self.state_of(files) if files else None
        return None if contents is None else hashlib.sha256(f"{self.ids_fingerprint} {contents}".encode()).hexdigest()

    def state_of(self, files: list[str]) -> str | None:
        """Hash of the sizes and times of files; None if a server does not tell them."""
        return files_fingerprint(files)


class SubsetSource(Source):
    """Source of some of the images of another source, which keep their ids and labels.

    Args:
        whole: The other source.
        positions: (N,) integers, indices of the chosen images, in the order to have them.
        name: A short name for messages; by default that of `whole`.

    Raises:
        DataError: no position, or one that `whole` does not have.
    """

    def __init__(self, whole: Source, positions: NDArray[np.int64] | Sequence[int], *, name: str | None = None) -> None:
        positions = np.asarray(positions)
        is_known = positions.ndim == 1 and positions.size > 0 and np.issubdtype(positions.dtype, np.integer)
        if not is_known or positions.min() < 0 or positions.max() >= len(whole):
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

    def state_of(self, files: list[str]) -> str | None:
        return self._base.state_of(files)

    def fingerprint(self) -> str | None:
        if type(self._base).fingerprint is Source.fingerprint:  # made from files: here from those of the part alone
            return super().fingerprint()
        whole = self._base.fingerprint()
        return None if whole is None else hashlib.sha256(f"{self.ids_fingerprint} {whole}".encode()).hexdigest()


class Indexable(Protocol):
    """Any object with a length and an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Spec: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Pixels | Indexable | Source"
"""Data as users may give them; see :func:`ssole.data.sources.open_source`."""


def evenly_spaced(n: int, count: int) -> list[int]:
    """Evenly spaced indices below n, beginning with 0: `count` of them, or all n if there are fewer."""
    count = min(n, count)
    return [k * n // count for k in range(count)]


def content_digest(data: bytes | Pixels) -> str:
    """Hash of an image as a source reads it. Runs hold it in images.json, so its definition must not change."""
    if isinstance(data, np.ndarray):  # 2 x 8 and 4 x 4 pixels may have the same bytes
        data = f"{data.dtype} {data.shape} ".encode() + data.tobytes()
    return hashlib.sha256(data).hexdigest()[:32]


def content_digests(source: Source, count: int) -> dict[str, str]:
    """Hashes of evenly spaced images by id, read by several threads; those that cannot be read are left out."""
    chosen = evenly_spaced(len(source), count)

    def digest(i: int) -> str | None:
        with suppress(DataError):  # training meets the error again, unless it was temporary
            return content_digest(source.read(i))
        return None

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = dict(zip(map(source.id, chosen), pool.map(digest, chosen), strict=True))
    return {name: text for name, text in found.items() if text is not None}
