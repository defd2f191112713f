"""Batches of images on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ssole.data.loader import ImageStore
from ssole.training.plan import Plan

Images = torch.Tensor | list[torch.Tensor]
"""uint8 (B, 3, H, W), or B tensors (3, h, w) of different sizes."""


class Feed:
    """Batches of decoded images, in the order of a plan."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self._store, self._device = store, device
        # small sets live in the accelerator's memory, so that a step needs no transfer
        self._images = store.images.to(device) if store.images is not None and device.type != "cpu" else None

    def batches(self, plan: Plan, start: int) -> Iterator[tuple[int, int, torch.Tensor, Images]]:
        """(step, epoch, ids (B,), images) from step `start` on; the next batch is decoded while one trains."""
        upcoming = plan.batches(start)
        current = next(upcoming, None)
        while current is not None:
            following = next(upcoming, None)
            if following is not None:
                self._store.prefetch(following[2])
            yield *current, self._get(current[2])
            current = following

    def _get(self, ids: torch.Tensor) -> Images:
        if self._images is not None:
            return self._images[ids.to(self._device)]
        batch = self._store.get(ids)
        if isinstance(batch, torch.Tensor):
            return batch.to(self._device)
        return [image.to(self._device) for image in batch]
