"""Photographs that the tests of views share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def photos() -> torch.Tensor:
    """uint8 (8, 3, 64, 80): pieces of real photographs."""
    from sklearn.datasets import load_sample_images

    pieces = [
        image[40 * k : 40 * k + 64, 50 * k : 50 * k + 80] for image in load_sample_images().images for k in range(4)
    ]
    return torch.stack([torch.from_numpy(piece.copy()).permute(2, 0, 1) for piece in pieces])
