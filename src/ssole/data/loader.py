"""From a source to batches of decoded images: in memory when they fit, else from a cache or decoded ahead of use."""

from __future__ import annotations

import json
import os
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.advice import advice
from ssole.data.cache import open_cache
from ssole.data.host import decoding_threads, total_memory
from ssole.data.in_memory import decode_all
from ssole.data.packed import PackedImages
from ssole.data.reading import Reader
from ssole.data.sources import ArraySource, Source
from ssole.data.spread import spread
from ssole.data.statistics import mean_and_std, moments
from ssole.errors import DataError
from ssole.files import write_text_atomically

AHEAD = 2
"""Batches that may be decoded ahead of the one in use."""

_PROBES = 32  # images, spread over the set, that must share a size before everything is decoded


class ImageStore:
    """Random access to the decoded images of a source.

    If all images have one size and fit into `memory_limit` together, they are decoded once, into the tensor `.images`
    (N, C, H, W), and `.uniform` is true. Otherwise each is decoded when asked for, by a pool of threads that
    :meth:`prefetch` sets to work ahead of time, and with a `cache` is kept, decoded, for the epochs and runs to come.

    The cache is filled by the first epoch that trains, rather than by a pass before it: training begins at once, an
    epoch that has to decode every image anyway is hardly slower for it, and nothing is decoded that no one asks for.

    An image that cannot be read is listed in `.unreadable` with the reason, and the next readable one, by index and
    round the end, comes in its place, so that a batch stays a pure function of its indices. In a store that is not
    uniform this is known only once the image has been asked for. `.labels` are those of the source, save that in a
    uniform store such an image has the label of the one in its place.

    A store has threads and open files: use it in a `with` statement, or call :meth:`close`; what is forgotten is closed
    when the store is collected.

    Args:
        source: Where the images come from.
        memory_limit: Bytes that decoded images may take; by default a quarter of the machine's (or container's) memory.
        workers: Decoding threads; by default one per processor that the process may use, up to 16.
        shrink_to: On decoding, reduce images whose shorter side is longer than this to it. A photograph of 12
            megapixels takes 36 MB otherwise; twice the size of a crop is plenty, and much faster to decode.
        channels: None for RGB in uint8, or the number of channels that the images have, in uint8 or uint16 as they are.
        max_unreadable: Share of the images, rounded up to whole images, that may be unreadable.
        cache: Keep decoded images that are not held in memory: in this folder, or (True) in ``packed`` in the cache
            folder, which the environment variable ``SSOLE_CACHE`` names. The next run on the same images finds them,
            and a run beside this one shares them; save for a source that cannot tell whether its images changed, of
            which they are removed on closing. Arrays need no decoding and are never kept.
        cache_limit: Bytes that the cache may take; by default half of what is free on its disk and of what it has
            already. When not all images fit, as many as do are kept, with a warning.
        progress: Show a bar on a terminal if decoding everything takes more than two seconds.

    Raises:
        DataError: if more images than that are unreadable, or none can be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        memory_limit: int | None = None,
        workers: int | None = None,
        shrink_to: int | None = None,
        channels: int | None = None,
        max_unreadable: float = 0.01,
        cache: bool | str | os.PathLike[str] = False,
        cache_limit: int | None = None,
        progress: bool = True,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.name} holds no images.")
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is a share of the images, in [0, 1]; got {max_unreadable}.")
        if cache_limit is not None and cache_limit < 0:
            raise DataError(f"cache_limit must be at least 0 bytes; got {cache_limit}.")
        for name, value in (("workers", workers), ("shrink_to", shrink_to), ("channels", channels)):
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1; got {value}.")
        self.source = source
        self.labels: NDArray[np.int64] | None = source.labels
        self.workers = workers or decoding_threads()
        self._reader = Reader(source, shrink_to=shrink_to, channels=channels, max_unreadable=max_unreadable)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="ssole-decode")
        self._finalizer = weakref.finalize(self, _close, self._pool, self._reader)
        self._ahead: deque[dict[int, Future[torch.Tensor]]] = deque(maxlen=AHEAD + 1)  # and the batch in use

        probes = [self._reader.readable(i) for i in spread(len(source), _PROBES)]
        self.images = self._decode_all(probes, total_memory() // 4 if memory_limit is None else memory_limit, progress)
        if self.images is not None:
            self._replace_unreadable(self.images)
        elif cache is not False and not isinstance(source, ArraySource):
            parent = None if cache is True else Path(cache)
            expected = len(source) * sum(probe.nbytes for probe in probes) // len(probes)
            self._reader.packed = open_cache(
                source, parent=parent, shrink_to=shrink_to, channels=channels, limit=cache_limit, expected=expected
            )

    def __len__(self) -> int:
        return len(self.source)

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close the files. Images in memory stay; others can no longer be asked for."""
        self._ahead.clear()
        self._finalizer()

    @property
    def uniform(self) -> bool:
        """Whether all images have one size and are held decoded in `.images`."""
        return self.images is not None

    @property
    def packed(self) -> PackedImages | None:
        """The cache, if there is one."""
        return self._reader.packed

    @cached_property
    def ids(self) -> list[str]:
        """The source's id of every image."""
        return [self.source.id(i) for i in range(len(self))]

    @property
    def unreadable(self) -> list[tuple[int, str, str]]:
        """(index, id, reason) of every image found unreadable so far, in the order of indices."""
        return self._reader.listed()

    def get(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Images by index: (B, C, H, W) uint8 (or uint16) if all have one size, else a list of B tensors (C, h, w).

        The list's tensors may be shared with other batches: do not write to them.
        """
        wanted = self._check(indices)
        if self.images is not None:
            return self.images[torch.tensor(wanted, dtype=torch.int64)]
        futures = self._submit(wanted)
        images = [futures[i].result() for i in wanted]
        same = len({(image.shape, image.dtype) for image in images}) == 1
        return torch.stack(images) if same else images

    def prefetch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Begin to decode a batch that will be asked for soon. Only the last three batches prefetched are kept."""
        if self.images is None:
            self._ahead.append(self._submit(self._check(indices)))

    def channel_statistics(self, sample: int = 1000) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in units of the full range (255, or 65535 for uint16).

        Measured on up to `sample` images, evenly spread, each with the same weight whatever its size.
        """
        if sample < 1:
            raise DataError(f"sample must be at least 1 image; got {sample}.")
        chosen = spread(len(self), sample)
        return mean_and_std([m for k in range(0, len(chosen), 64) for m in map(moments, self.get(chosen[k : k + 64]))])

    def advice(self) -> str | None:
        """What would bring images sooner, in a line; None while the cache is being filled, which will, or in memory."""
        if self.uniform:
            return None
        return advice(self.packed, readable=len(self) - len(self._reader.failures), workers=self.workers)

    def save_unreadable(self, path: str | os.PathLike[str]) -> None:
        """Write `.unreadable` as JSON lines {"index", "id", "reason"}, replacing the file atomically."""
        rows = [{"index": i, "id": name, "reason": reason} for i, name, reason in self.unreadable]
        lines = "".join(json.dumps(row) + "\n" for row in rows)  # ASCII, even where a file name is no valid text
        write_text_atomically(Path(path), lines)

    def _check(self, indices: torch.Tensor | Sequence[int]) -> list[int]:
        array = np.asarray(indices, dtype=np.int64 if len(indices) == 0 else None)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"Indices must be a one-dimensional list of integers; got {array.dtype} {array.shape}.")
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            raise IndexError(f"Indices must lie in 0..{len(self) - 1}; got {array.min()} to {array.max()}.")
        numbers: list[int] = array.tolist()
        return numbers

    def _submit(self, wanted: Iterable[int]) -> dict[int, Future[torch.Tensor]]:
        known = {i: future for batch in list(self._ahead) for i, future in batch.items()}
        return {i: known.get(i) or self._pool.submit(self._reader.readable, i) for i in dict.fromkeys(wanted)}

    def _decode_all(self, probes: list[torch.Tensor], limit: int, progress: bool) -> torch.Tensor | None:
        """Every image in one tensor, or None when sizes differ or they would not fit."""
        first = probes[0]
        if len({(probe.shape, probe.dtype) for probe in probes}) > 1 or len(self) * first.nbytes > limit:
            return None
        return decode_all(self._reader, self._pool, first.shape, first.dtype, progress=progress)

    def _replace_unreadable(self, images: torch.Tensor) -> None:
        """Put the next readable image, and its label, in the place of each unreadable one."""
        failures = self._reader.failures
        self.labels = self.labels if self.labels is None or not failures else self.labels.copy()
        for i in failures:
            after = range(i + 1, i + len(self))
            stand_in = next(j % len(self) for j in after if j % len(self) not in failures)
            images[i] = images[stand_in]
            if self.labels is not None:
                self.labels[i] = self.labels[stand_in]


def _close(pool: ThreadPoolExecutor, reader: Reader) -> None:
    pool.shutdown(wait=False, cancel_futures=True)  # waiting would be for ever if a thread of the pool collects us
    if reader.packed is not None:
        reader.packed.close()
