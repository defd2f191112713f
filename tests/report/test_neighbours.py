"""Neighbours and pairs against brute force and by hand, and the confusions of a case made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ssole.report.neighbours import confusions, sample_neighbours, similar_pairs
from ssole.report.sample import Part


def part(after: Tensor) -> Part:
    return Part(subset=None, after=after, before=after.flip(0))  # type: ignore[arg-type]


def test_few_images() -> None:
    assert [len(after) for _, after, _ in sample_neighbours(part(torch.randn(3, 4)), 6)] == [2, 2, 2]


def test_pairs_are_found_once_and_only_if_alike() -> None:
    axes = torch.eye(6)
    features = torch.stack([axes[0], axes[1], axes[2], axes[0] + 0.01 * axes[3], axes[1] + 0.05 * axes[4], axes[5]])
    pairs = similar_pairs(part(features), 5)
    assert [(one, two) for one, two, _ in pairs] == [(0, 3), (1, 4)]
    assert pairs[0][2] > pairs[1][2]
    assert similar_pairs(part(features), 1) == pairs[:1]


# Confusions


def sample(train: list[int], test: list[int], looks: list[int]) -> Any:
    """Sample whose train images are one axis a class, and whose test images look like the given classes."""
    axes = torch.eye(10)
    return SimpleNamespace(
        train=_Sized(after=axes[train], labels=torch.tensor(train)),
        test=_Sized(after=axes[looks], labels=torch.tensor(test)),
        name_of=lambda label: f"class {label}",
    )


class _Sized(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


def test_matrix_accuracy_and_mistakes() -> None:
    found = confusions(sample([2, 2, 5, 5, 7, 7], [2, 2, 5, 5, 5, 7], [2, 5, 5, 7, 7, 7]), 6)
    assert found is not None
    assert found["matrix"]["names"] == ["class 2", "class 5", "class 7"]
    assert [counts for _, counts, _ in found["matrix"]["rows"]] == [[1, 1, 0], [0, 1, 2], [0, 0, 1]]
    assert [(row["name"], row["count"]) for row in found["rows"]] == [("class 5", 3), ("class 2", 2), ("class 7", 1)]
    assert [row["share"] for row in found["rows"]] == [1 / 3, 1 / 2, 1]
    assert (found["accuracy"], found["count"], found["k"]) == (0.5, 6, 6)
    assert found["mistakes"] == [
        {"true": "class 5", "predicted": "class 7", "count": 2, "images": [3, 4]},
        {"true": "class 2", "predicted": "class 5", "count": 1, "images": [1]},
    ]


def test_without_a_mistake_there_is_none() -> None:
    found = confusions(sample([1, 3], [1, 3], [1, 3]), 6)
    assert found is not None
    assert found["mistakes"] == []
    assert found["accuracy"] == 1.0


def test_without_test_images() -> None:
    assert confusions(SimpleNamespace(train=None, test=None), 6) is None  # type: ignore[arg-type]
