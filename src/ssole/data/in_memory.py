"""Decoding a whole source into one tensor, where its images have one size and fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ssole.data.reading import Reader

_CHUNK = 256  # images a thread decodes per task: enough to make the pool's own cost vanish


def decode_all(
    reader: Reader, pool: ThreadPoolExecutor, shape: torch.Size, dtype: torch.dtype, *, progress: bool
) -> torch.Tensor | None:
    """Every image, in one tensor (N, *shape), or None on meeting one of another shape or dtype.

    Unreadable images have undefined pixels.
    """
    n = len(reader.source)
    images, stop = torch.empty((n, *shape), dtype=dtype), threading.Event()
    tasks = [pool.submit(_decode_chunk, reader, images, start, stop) for start in range(0, n, _CHUNK)]
    try:
        for task in _with_progress(tasks, n, progress):
            if not task.result():
                return None
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
