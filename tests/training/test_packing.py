"""Packing: every tensor comes back from the bytes of all, whatever its shape and dtype."""

from __future__ import annotations

import torch

from ssole.training.packing import pack, unpack


def test_images_of_any_size_and_depth_travel_together() -> None:
    images = [
        torch.arange(3 * 5 * n).view(3, 5, n).to(dtype) for n in (1, 7, 64) for dtype in (torch.uint8, torch.uint16)
    ]
    flat = pack(images).clone()
    for found, image in zip(unpack(flat, images), images, strict=True):
        assert (found.data_ptr() - flat.data_ptr()) % 64 == 0
        assert found.dtype == image.dtype
        assert torch.equal(found, image)
