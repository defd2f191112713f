"""Confusions of a case made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ssole.report.confusions import confusions


def sample(train: list[int], test: list[int], looks: list[int]) -> Any:
    """Sample whose train images are one axis a class, and whose test images look like the given classes."""
    axes = torch.eye(10)
    return SimpleNamespace(
        train=_Sized(after=axes[train], labels=torch.tensor(train)),
        test=_Sized(after=axes[looks], labels=torch.tensor(test)),
    )


class _Sized(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


def test_matrix_accuracy_and_mistakes() -> None:
    found = confusions(sample([2, 2, 5, 5, 7, 7], [2, 2, 5, 5, 5, 7], [2, 5, 5, 7, 7, 7]), 6)
    assert found is not None
    assert found.labels == [2, 5, 7]
    assert found.matrix.tolist() == [[1, 1, 0], [0, 1, 2], [0, 0, 1]]
    assert found.accuracy == 0.5
    assert [(one.true, one.predicted, one.count, one.rows) for one in found.mistakes] == [
        (5, 7, 2, [3, 4]),
        (2, 5, 1, [1]),
    ]
    assert found.k == 6


def test_without_a_mistake_there_is_none() -> None:
    found = confusions(sample([1, 3], [1, 3], [1, 3]), 6)
    assert found is not None
    assert found.mistakes == []
    assert found.accuracy == 1.0


def test_without_test_images() -> None:
    assert confusions(SimpleNamespace(train=None, test=None), 6) is None  # type: ignore[arg-type]
