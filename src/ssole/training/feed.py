"""Batches of images on the training device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch

from ssole.data.store import AHEAD, ImageStore
from ssole.training.plan import Plan

Images = torch.Tensor | list[torch.Tensor]
"""uint8 or uint16 (B, C, H, W), or B tensors (C, h, w) of different sizes."""

_ALIGN = 64  # bytes; images begin at multiples within a copy, as vector loads and 16-bit values need


class Feed:
    """Batches of decoded images, in the order of a plan, made ready while earlier ones train."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self.waited = 0.0
        """Seconds that whoever asked for batches has waited for them."""
        self._images = None if store.images is None else _resident(store.images, device)
        self._upload = _Upload(device) if device.type == "cuda" and self._images is None else None

    def batches(self, plan: Plan, start: int) -> Iterator[tuple[int, int, torch.Tensor, Images]]:
        """(step, epoch, ids (B,), images) from step `start` on."""
        ahead: deque[tuple[int, int, torch.Tensor, Callable[[], Images]]] = deque()
        for step, epoch, ids in plan.batches(start):
            ahead.append((step, epoch, ids, self._begin(ids)))
            if len(ahead) > AHEAD:
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def advice(self) -> str | None:
        """What would shorten the wait, in a line; None if it ends by itself."""
        return self._store.advice()

    def _begin(self, ids: torch.Tensor) -> Callable[[], Images]:
        """Have a batch made ready; the result waits for it."""
        if (resident := self._images) is not None:
            return lambda: resident[ids.to(self._device)]
        self._store.prefetch(ids)
        if self._upload is not None:
            return self._upload.begin(lambda: self._store.get(ids))
        return lambda: self._store.get(ids)

    def _finish(
        self, step: int, epoch: int, ids: torch.Tensor, ready: Callable[[], Images]
    ) -> tuple[int, int, torch.Tensor, Images]:
        begin = time.perf_counter()
        images = ready()
        self.waited += time.perf_counter() - begin
        return step, epoch, ids, images


def _resident(images: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """All images in the accelerator's memory, so that a step needs no transfer; None where they do not belong there."""
    if device.type == "cpu" or (device.type == "cuda" and not leaves_room(images.nbytes, device)):
        return None
    return images.to(device)


def leaves_room(size: int, device: torch.device) -> bool:
    """Whether so many bytes are less than a quarter of a GPU's free memory: the rest is for the network's work."""
    free, _ = torch.cuda.mem_get_info(device)
    return size < free // 4


class _Upload:
    """Copies batches to a GPU, in a thread and a stream of their own, so that neither the loop nor the GPU waits.

    The copy is made from pinned memory: only from there does it run beside the GPU's other work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ssole-upload")

    def begin(self, load: Callable[[], Images]) -> Callable[[], Images]:
        """Start to load and copy a batch; the result waits for it, and makes the current stream wait for the copy."""
        future = self._thread.submit(self._copy, load)

        def ready() -> Images:
            flat, images, copied = future.result()
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            flat.record_stream(stream)  # its memory is not to be used again before this stream is done with it
            return images

        return ready

    def _copy(self, load: Callable[[], Images]) -> tuple[torch.Tensor, Images, torch.cuda.Event]:
        batch = load()
        parts = [batch] if isinstance(batch, torch.Tensor) else batch
        pinned, starts = pack(parts, pin_memory=True)
        with torch.cuda.stream(self._stream):
            flat = pinned.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        images = unpack(flat, starts, parts)
        return flat, images[0] if isinstance(batch, torch.Tensor) else images, copied


def pack(parts: Sequence[torch.Tensor], *, pin_memory: bool) -> tuple[torch.Tensor, list[int]]:
    """The bytes of tensors of any shape and dtype in one, to be copied at once; and where each begins."""
    *starts, end = [0, *accumulate(-(-part.nbytes // _ALIGN) * _ALIGN for part in parts)]
    flat = torch.empty(end, dtype=torch.uint8, pin_memory=pin_memory)
    for start, part in zip(starts, parts, strict=True):
        flat[start : start + part.nbytes] = part.flatten().view(torch.uint8)
    return flat, starts


def unpack(flat: torch.Tensor, starts: Sequence[int], like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What :func:`pack` packed, without a copy; `like` has the shapes and dtypes."""
    return [
        flat[start : start + part.nbytes].view(part.dtype).view(part.shape)
        for start, part in zip(starts, like, strict=True)
    ]
