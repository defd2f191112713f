"""ImageStore: the decoded images of a source by index, from memory, from the cache or decoded ahead of use."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.config import PretrainConfig
from ssole.data.arrays import is_array
from ssole.data.base import Source, evenly_spaced
from ssole.data.cache import ImageCache, open_cache
from ssole.data.decode import as_batch, mean_and_std, moments
from ssole.data.reader import Reader
from ssole.errors import DataError
from ssole.memory import total_memory
from ssole.progress import progress_bar
from ssole.runtime import decoding_threads

AHEAD = 2
"""Batches that may be decoded ahead of the one in use."""
_PROBES = 32  # evenly spaced images that are decoded first; only if all have one size may memory hold all images
_CHUNK = 256  # images that a thread decodes in one task


def default_memory_limit() -> int:
    """Bytes of memory that decoded images may take: a quarter of the machine's, or of the container's."""
    return total_memory() // 4


class ImageStore:
    """Random access to the decoded images of a source.

    If all images have one size and fit into `memory_limit` together, they are decoded once, into the tensor `images`
    (N, C, H, W), and `uniform` is true. Otherwise each image is decoded when it is asked for, by threads that
    :meth:`prefetch` sets to work in advance. With `cache`, its pixels are kept on disk for later epochs and runs.

    An image that cannot be read is listed in `unreadable`: at once in a uniform store, else when it is first asked for.
    The next readable one by index (the first after the last) takes its place, so a batch depends on its indices alone.
    `labels` are the source's, but in a uniform store a replaced image has the label of the one in its place.

    A store has threads and open files, so use it in a `with` statement or call :meth:`close`. If you do not, it is
    closed when Python frees it.

    Args:
        source: Where the images come from.
        memory_limit: Bytes that decoded images may take; by default a quarter of the machine's (or container's) memory.
        workers: Decoding threads; by default one per processor that the process may use, up to 16.
        shrink_to: Reduce images whose shorter side is longer than this many pixels: twice the size of a crop is plenty.
        channels: None for RGB in uint8, or the number of channels that the images have, in uint8 or uint16 as they are.
        max_unreadable: Share of the images, rounded up to whole images, that may be unreadable.
        cache: Keep decoded images that do not fit into memory in this folder, or (True) in ``packed`` in the cache
            folder, which the environment variable ``SSOLE_CACHE`` names. All runs on the same images share them. They
            are removed on closing if the source cannot tell whether its images changed. Arrays are never kept.
        cache_limit: Bytes that the cache may take; by default half of those that are free on its disk or its own.
        processes: Processes of this machine that open these images. With a cache they share it, and none holds all
            images in memory. If the source cannot tell whether its images changed, they have no cache, and each holds
            images in its part of the memory.
        progress: Show a bar on a terminal if decoding everything takes more than two seconds.

    Raises:
        DataError: more images than allowed are unreadable, none can be read, or an argument is out of range.
    """

    def __init__(
        self,
        source: Source,
        *,
        memory_limit: int | None = None,
        workers: int | None = None,
        shrink_to: int | None = None,
        channels: int | None = None,
        max_unreadable: float = PretrainConfig.max_unreadable,
        cache: bool | str | os.PathLike[str] = False,
        cache_limit: int | None = None,
        processes: int = 1,
        progress: bool = True,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.name} holds no images.")
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is a share of the images, in [0, 1]; got {max_unreadable}.")
        if cache_limit is not None and cache_limit < 0:
            raise DataError(f"cache_limit must be at least 0 bytes; got {cache_limit}.")
        counts = {"workers": workers, "shrink_to": shrink_to, "channels": channels, "processes": processes}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1; got {value}.")
        self.source, self.labels = source, source.labels
        self.shrink_to, self.channels, self.workers = shrink_to, channels, workers or decoding_threads()
        decoding = {"shrink_to": shrink_to, "channels": channels}
        self._reader = Reader(source, decoding, allowed=math.ceil(max_unreadable * len(source)))
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="ssole-decode")
        self._finalizer = weakref.finalize(self, _close, self._pool, self._reader)
        self._ahead: deque[dict[int, Future[torch.Tensor]]] = deque(maxlen=AHEAD + 1)  # and the batch in use

        probes = [self._reader.read_or_next(i) for i in evenly_spaced(len(source), _PROBES)]
        if cache is not False and processes > 1 and not is_array(source) and source.fingerprint() is None:
            cache = False  # each process would have its own
        if memory_limit is None:
            memory_limit = 0 if processes > 1 and cache is not False else default_memory_limit() // processes
        self.images = self._decode_all(probes, memory_limit, progress)
        self.cache: ImageCache | None = None
        if self.images is None and cache is not False and not is_array(source):
            parent = None if cache is True else Path(cache)
            expected = len(source) * sum(probe.nbytes for probe in probes) // len(probes)
            self.cache = self._reader.cache = open_cache(source, parent, decoding, limit=cache_limit, expected=expected)

    def __len__(self) -> int:
        return len(self.source)

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close the files. Images in memory stay; others can no longer be asked for."""
        self._ahead.clear()
        self._finalizer()

    @property
    def uniform(self) -> bool:
        """Whether all images have one size and are held decoded in `images`."""
        return self.images is not None

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all images."""
        return [self.source.id(i) for i in range(len(self))]

    @property
    def unreadable(self) -> list[tuple[int, str, str]]:
        """(index, id, reason) of every image found unreadable so far, in the order of indices."""
        return self._reader.unreadable()

    def take_unreadable(self, found: Iterable[tuple[int, str, str]]) -> None:
        """Take over what stores of the same images in other processes found unreadable; `DataError` if too many."""
        self._reader.take(found)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) boolean mask of all images except those found unreadable so far."""
        mask = np.ones(len(self), dtype=bool)
        mask[[i for i, _, _ in self.unreadable]] = False
        return mask

    def get(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Images by index: (B, C, H, W) uint8 (or uint16) if all have one size, else a list of B tensors (C, h, w).

        Of different depths, all come in 16 bits (255 as 65535). Do not write to a list's tensors, which may be shared.
        """
        wanted = self._check(indices)
        if self.images is not None:
            return torch.from_numpy(self.images.numpy()[wanted])  # torch 2.8 cannot index uint16
        futures = self._submit(wanted)
        return as_batch([futures[i].result() for i in wanted])

    def prefetch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Begin to decode a batch that will be asked for soon. Only the last three prefetched batches are kept."""
        if self.images is None:
            self._ahead.append(self._submit(self._check(indices)))

    def channel_statistics(self, sample: int = 1000) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in units of the full range (255, or 65535 for uint16).

        Up to `sample` evenly spaced images are measured; all have the same weight, small or large.
        """
        if sample < 1:
            raise DataError(f"sample must be at least 1 image; got {sample}.")
        parts = torch.tensor(evenly_spaced(len(self), sample)).split(64)
        return mean_and_std([m for part in parts for m in map(moments, self.get(part))])

    def hint(self) -> str | None:
        """Advice in one line on how to get images sooner; None if they are in memory, or the cache is still filling."""
        if self.uniform:
            return None
        cache, readable = self.cache, len(self) - len(self._reader.reasons)
        if cache is None:
            return "images are decoded anew in every epoch: keep them in a cache, store them smaller, or add processors"
        if cache.full:
            return (
                f"only {len(cache):,} of {readable:,} decoded images are kept in {cache.folder}: make room on the "
                "disk, or name a folder on a larger one by SSOLE_CACHE"
            )
        if len(cache) < readable:
            return None
        return f"decoded images are read from {cache.folder}: more memory, or SSOLE_CACHE on a faster disk, would help"

    def _check(self, indices: torch.Tensor | Sequence[int]) -> list[int]:
        array = np.asarray(indices, dtype=np.int64 if len(indices) == 0 else None)  # NumPy takes [] for floats
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"Indices must be a one-dimensional list of integers; got {array.dtype} {array.shape}.")
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            raise IndexError(f"Indices must lie in 0..{len(self) - 1}; got {array.min()} to {array.max()}.")
        return list(map(int, array))

    def _submit(self, wanted: Iterable[int]) -> dict[int, Future[torch.Tensor]]:
        known = {i: future for batch in list(self._ahead) for i, future in batch.items()}
        return {i: known.get(i) or self._pool.submit(self._reader.read_or_next, i) for i in dict.fromkeys(wanted)}

    def _decode_all(self, probes: list[torch.Tensor], limit: int, progress: bool) -> torch.Tensor | None:
        """Every image in one tensor (N, C, H, W), or None if their sizes differ or they would not fit."""
        n, first = len(self), probes[0]
        if len({(probe.shape, probe.dtype) for probe in probes}) > 1 or n * first.nbytes > limit:
            return None
        images, stop = torch.empty((n, *first.shape), dtype=first.dtype), threading.Event()
        chunks = [range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
        with progress_bar("decoding images", n, enabled=progress) as advance:  # first: if it fails, no task runs
            tasks = [self._pool.submit(self._reader.fill, images, chunk, stop) for chunk in chunks]
            try:
                for chunk, task in zip(chunks, tasks, strict=True):
                    if not task.result():
                        return None
                    advance(len(chunk))
            finally:  # also on Ctrl-C, which should not have to wait for a chunk of photographs
                stop.set()
        if (bad := np.flatnonzero(~self.readable)).size:
            rows, good = images.numpy(), np.flatnonzero(self.readable)
            next_good = good[np.searchsorted(good, bad) % len(good)]
            rows[bad] = rows[next_good]
            if self.labels is not None:
                self.labels = self.labels.copy()
                self.labels[bad] = self.labels[next_good]
        return images


def _close(pool: ThreadPoolExecutor, reader: Reader) -> None:
    pool.shutdown(wait=False, cancel_futures=True)  # a pool's thread that frees the store would wait for itself
    if reader.cache is not None:
        reader.cache.close()
