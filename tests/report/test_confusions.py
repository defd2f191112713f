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
