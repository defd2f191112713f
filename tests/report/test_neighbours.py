"""Neighbours, outliers and pairs against brute force and by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ssole.report.neighbours import outliers, sample_neighbours, similar_pairs
from ssole.report.sample import Part


def part(after: Tensor) -> Part:
    return Part(subset=None, after=after, before=after.flip(0))  # type: ignore[arg-type]


def test_few_images() -> None:
    assert [len(after) for _, after, _ in sample_neighbours(part(torch.randn(3, 4)), 6)] == [2, 2, 2]


def test_the_image_apart_is_the_first_outlier() -> None:
    features = torch.tensor([[1.0, 0.01 * i] for i in range(12)] + [[0.0, -1.0]])
    (first, value), *_ = outliers(part(features), 3)
    assert first == 12
    assert value < 0


def test_pairs_are_found_once_and_only_if_alike() -> None:
    axes = torch.eye(6)
    features = torch.stack([axes[0], axes[1], axes[2], axes[0] + 0.01 * axes[3], axes[1] + 0.05 * axes[4], axes[5]])
    pairs = similar_pairs(part(features), 5)
    assert [(one, two) for one, two, _ in pairs] == [(0, 3), (1, 4)]
    assert pairs[0][2] > pairs[1][2]
    assert similar_pairs(part(features), 1) == pairs[:1]
