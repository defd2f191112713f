"""Thumbnails: depth, channels, size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssole.data.thumbnail import thumbnail


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_three_channels_are_shown_or_one(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
    found = np.asarray(thumbnail(image, 96))
    assert found.shape == (6, 9, 3)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], image[channel if channels >= 3 else 0])


def test_sixteen_bits_become_eight() -> None:
    image = torch.tensor([[[0, 255, 256, 65535]]], dtype=torch.int32).to(torch.uint16)
    assert np.asarray(thumbnail(image, 96))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_large_images_shrink_and_keep_their_shape() -> None:
    assert thumbnail(torch.zeros(3, 200, 400, dtype=torch.uint8), 96).size == (96, 48)
