"""ImageStore: decoded images by index, from memory, from a cache or decoded ahead of use."""

from __future__ import annotations

import json
import math
import os
import threading
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

from ssole.data.arrays import ArraySource
from ssole.data.base import Source, evenly_spaced
from ssole.data.cache import open_cache
from ssole.data.decode import decode
from ssole.data.packed import PackedImages
from ssole.errors import DataError
from ssole.files import write_text_atomically
from ssole.progress import progress_bar
from ssole.runtime import decoding_threads, total_memory, usable_cpus

AHEAD = 2
"""Batches that may be decoded ahead of the one in use."""

_PROBES = 32  # images, evenly_spaced over the set, that must share a size before everything is decoded


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
        self.shrink_to, self.channels = shrink_to, channels
        self.labels: NDArray[np.int64] | None = source.labels
        self.workers = workers or decoding_threads()
        self._reader = Reader(source, shrink_to=shrink_to, channels=channels, max_unreadable=max_unreadable)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="ssole-decode")
        self._finalizer = weakref.finalize(self, _close, self._pool, self._reader)
        self._ahead: deque[dict[int, Future[torch.Tensor]]] = deque(maxlen=AHEAD + 1)  # and the batch in use

        probes = [self._reader.readable(i) for i in evenly_spaced(len(source), _PROBES)]
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

        Measured on up to `sample` images, evenly evenly_spaced, each with the same weight whatever its size.
        """
        if sample < 1:
            raise DataError(f"sample must be at least 1 image; got {sample}.")
        chosen = evenly_spaced(len(self), sample)
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


_CHUNK = 256  # images a thread decodes per task: enough to make the pool's own cost vanish


def decode_all(
    reader: Reader, pool: ThreadPoolExecutor, shape: torch.Size, dtype: torch.dtype, *, progress: bool
) -> torch.Tensor | None:
    """Every image, in one tensor (N, *shape), or None on meeting one of another shape or dtype.

    Unreadable images have undefined pixels.
    """
    n = len(reader.source)
    images, stop = torch.empty((n, *shape), dtype=dtype), threading.Event()
    starts = range(0, n, _CHUNK)
    with progress_bar("decoding images", n, enabled=progress) as advance:  # ready before there is work to interrupt
        tasks = [pool.submit(_decode_chunk, reader, images, start, stop) for start in starts]
        try:
            for start, task in zip(starts, tasks, strict=True):
                if not task.result():
                    return None
                advance(min(_CHUNK, n - start))
        finally:  # also on Ctrl-C, which should not have to wait for a chunk of photographs
            stop.set()
            for task in tasks:
                task.cancel()
    return images


def _decode_chunk(reader: Reader, images: torch.Tensor, start: int, stop: threading.Event) -> bool:
    """Decode images from `start` on into their places; False on meeting another shape, or when asked to stop."""
    places = images.numpy()  # copied by NumPy, since torch would give each of our threads a team of its own
    for i in range(start, min(start + _CHUNK, len(images))):
        if stop.is_set():
            return False
        image = reader.read(i)
        if image is not None:
            if image.shape != images.shape[1:] or image.dtype != images.dtype:
                return False
            places[i] = image.numpy()
    return True


def advice(packed: PackedImages | None, *, readable: int, workers: int) -> str | None:
    """In a line; None while the cache is being filled, which will bring them sooner by itself.

    Args:
        packed: The cache, if there is one.
        readable: How many images can be read, as far as is known.
        workers: Threads that decode.
    """
    if packed is not None and not packed.full:
        if len(packed) < readable:
            return None
        return (
            f"decoded images are read from {packed.folder}: a faster disk (name a folder there by SSOLE_CACHE) or more "
            "memory would help"
        )
    if workers < (processors := usable_cpus()):
        return f"images are decoded by {workers} threads, and {processors} processors are there: use more"
    if packed is not None:
        return (
            f"only {len(packed):,} of {readable:,} decoded images are kept in {packed.folder}: make room on the disk, "
            "or name a folder on a larger one by SSOLE_CACHE"
        )
    return "images are decoded anew in every epoch: keep them in a cache, store them smaller, or use more processors"


def moments(image: torch.Tensor) -> torch.Tensor:
    """Mean and mean square of each channel of a uint8 or uint16 image (C, h, w), in [0, 1]: float64 (2, C)."""
    x = image.flatten(1).double() / torch.iinfo(image.dtype).max
    return torch.stack([x.mean(1), x.square().mean(1)])


def mean_and_std(gathered: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Of each channel, from the moments of images, each of which counts the same whatever its size."""
    mean, square = torch.stack(list(gathered)).mean(0)
    return mean.tolist(), (square - mean**2).clamp_min(0).sqrt().tolist()
