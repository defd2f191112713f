"""Decoding a whole source into one tensor, where its images have one size and fit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from ssole.data.reading import Reader
from ssole.progress import progress_bar

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
