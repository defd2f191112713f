"""From a source to batches of decoded images: in memory when they fit, else decoded just ahead of their use."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.decode import decode
from ssole.data.host import total_memory
from ssole.data.sources import Source
from ssole.errors import DataError
from ssole.files import write_text_atomically

_CHUNK = 256  # images a thread decodes per task: enough to make the pool's own cost vanish
_PROBES = 32  # images, spread over the set, that must share a size before everything is decoded


class ImageStore:
    """Random access to the decoded images of a source.

    If all images have one size and fit into `memory_limit` together, they are decoded once, into the tensor `.images`
    (N, 3, H, W) uint8, and `.uniform` is true. Otherwise each is decoded when asked for, by a pool of threads that
    :meth:`prefetch` sets to work ahead of time.

    An image that cannot be read is listed in `.unreadable` with the reason, and the next readable one, by index and
    round the end, comes in its place, so that a batch stays a pure function of its indices. In a store that is not
    uniform this is known only once the image has been asked for. `.labels` are those of the source, save that in a
    uniform store such an image has the label of the one in its place.

    Args:
        source: Where the images come from.
        memory_limit: Bytes that decoded images may take; by default a quarter of the machine's (or container's) memory.
        workers: Decoding threads; by default one per CPU, up to 8.
        shrink_to: On decoding, reduce images whose shorter side is longer than this to it. A photograph of 12
            megapixels takes 36 MB otherwise; twice the size of a crop is plenty, and much faster to decode.
        max_unreadable: Share of the images, rounded up to whole images, that may be unreadable.
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
        max_unreadable: float = 0.01,
        progress: bool = True,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.name} holds no images.")
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is a share of the images, in [0, 1]; got {max_unreadable}.")
        if workers is not None and workers < 1:
            raise DataError(f"workers must be at least 1; got {workers}.")
        if shrink_to is not None and shrink_to < 1:
            raise DataError(f"shrink_to must be at least 1 pixel; got {shrink_to}.")
        self.source = source
        self.labels: NDArray[np.int64] | None = source.labels
        self._shrink_to = shrink_to
        self._allowed = math.ceil(max_unreadable * len(source))
        self._failures: dict[int, str] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="ssole-decode")
        self._ahead: deque[dict[int, Future[torch.Tensor]]] = deque(maxlen=2)  # the batch in use, and the next
        limit = total_memory() // 4 if memory_limit is None else memory_limit
        self.images = self._decode_all(limit, progress)
        if self.images is not None:
            self._replace_unreadable(self.images)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def uniform(self) -> bool:
        """Whether all images have one size and are held decoded in `.images`."""
        return self.images is not None

    @cached_property
    def ids(self) -> list[str]:
        """The source's id of every image."""
        return [self.source.id(i) for i in range(len(self))]

    @property
    def unreadable(self) -> list[tuple[int, str, str]]:
        """(index, id, reason) of every image found unreadable so far, in the order of indices."""
        with self._lock:
            return [(i, self.source.id(i), reason) for i, reason in sorted(self._failures.items())]

    def get(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Images by index: (B, 3, H, W) uint8 if all of them have one size, else a list of B tensors (3, h, w)."""
        wanted = self._check(indices)
        if self.images is not None:
            return self.images[torch.tensor(wanted, dtype=torch.int64)]
        futures = self._submit(wanted)
        images = [futures[i].result() for i in wanted]
        same = len({image.shape for image in images}) == 1
        return torch.stack(images) if same else images

    def prefetch(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Begin to decode the batch that will be asked for next. Only the last two batches prefetched are kept."""
        if self.images is None:
            self._ahead.append(self._submit(self._check(indices)))

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
        return {i: known.get(i) or self._pool.submit(self._readable, i) for i in dict.fromkeys(wanted)}

    def _readable(self, i: int) -> torch.Tensor:
        """Image i, or the next that can be read."""
        for step in range(len(self)):
            image = self._try(i + step if i + step < len(self) else i + step - len(self))
            if image is not None:
                return image
        raise self._too_many()

    def _try(self, i: int) -> torch.Tensor | None:
        if i in self._failures:
            return None
        try:
            return decode(self.source.read(i), where=self.source.id(i), shrink_to=self._shrink_to)
        except DataError as error:
            with self._lock:
                self._failures[i] = str(error).removeprefix(f"{self.source.id(i)}: ")
            if len(self._failures) > self._allowed:
                raise self._too_many() from error
            return None

    def _too_many(self) -> DataError:
        first = "".join(f"\n  {name}: {reason}" for _, name, reason in self.unreadable[:5])
        return DataError(
            f"{len(self._failures)} of the {len(self)} images in {self.source.name} cannot be read, and at most "
            f"{min(self._allowed, len(self) - 1)} may be (max_unreadable). The first of them:{first}"
        )

    def _decode_all(self, limit: int, progress: bool) -> torch.Tensor | None:
        """Every image in one tensor, or None when sizes differ or they would not fit."""
        n = len(self)
        probes = [self._readable(i) for i in sorted({k * n // _PROBES for k in range(_PROBES)})]
        shape = probes[0].shape
        if any(probe.shape != shape for probe in probes) or n * probes[0].nbytes > limit:
            return None
        images = torch.empty((n, *shape), dtype=torch.uint8)
        tasks = [self._pool.submit(self._decode_chunk, images, start) for start in range(0, n, _CHUNK)]
        try:
            for task in _with_progress(tasks, n, progress):
                if not task.result():
                    return None
        finally:
            for task in tasks:
                task.cancel()
        return images

    def _decode_chunk(self, images: torch.Tensor, start: int) -> bool:
        """Decode images from `start` on into their places; False on meeting another size."""
        for i in range(start, min(start + _CHUNK, len(self))):
            image = self._try(i)
            if image is not None:
                if image.shape != images.shape[1:]:
                    return False
                images[i] = image
        return True

    def _replace_unreadable(self, images: torch.Tensor) -> None:
        """Put the next readable image, and its label, in the place of each unreadable one."""
        self.labels = self.labels if self.labels is None or not self._failures else self.labels.copy()
        for i in self._failures:
            after = range(i + 1, i + len(self))
            stand_in = next(j % len(self) for j in after if j % len(self) not in self._failures)
            images[i] = images[stand_in]
            if self.labels is not None:
                self.labels[i] = self.labels[stand_in]


def _with_progress(tasks: list[Future[bool]], images: int, show: bool) -> Iterable[Future[bool]]:
    """The tasks in turn, behind a progress bar from the moment that two seconds have passed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal))
    begin = time.monotonic()
    row = bar.add_task("", total=images)
    try:
        for done, task in enumerate(tasks):
            task.exception()  # wait for it; whoever takes the result sees the exception
            if not bar.live.is_started and time.monotonic() - begin > 2:
                bar.start()
            bar.update(row, completed=min((done + 1) * _CHUNK, images))
            yield task
    finally:
        bar.stop()
