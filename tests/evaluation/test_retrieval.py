"""Retrieval against scikit-learn's average precision, by hand, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssole.evaluation import retrieval
from ssole.evaluation.retrieval import retrieval_figures


def test_average_precision_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", 500)  # several blocks
    features, labels = torch.randn(60, 5), torch.arange(60) % 4
    unit = torch.nn.functional.normalize(features, dim=1)
    cosine = (unit @ unit.T).numpy()
    others = [np.arange(60) != i for i in range(60)]
    same = [(labels == labels[i]).numpy() for i in range(60)]
    precision = [average_precision_score(same[i][others[i]], cosine[i][others[i]]) for i in range(60)]
    found = [same[i][others[i]][np.argsort(-cosine[i][others[i]])] for i in range(60)]
    figures, queries = retrieval_figures(features, labels)
    assert queries == 60
    assert figures["retrieval_map"] == pytest.approx(np.mean(precision), rel=1e-6)
    for k in (1, 5, 10):
        assert figures[f"recall{k}"] == pytest.approx(np.mean([row[:k].any() for row in found]))


def test_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.25, 0.45])
    features, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 1, 0, 1])
    # ranks of the other image of the class: 2, 3, 3, 2
    figures, _ = retrieval_figures(features, labels, recall_at=(1, 2, 3))
    assert figures.pop("retrieval_map") == pytest.approx((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert figures == {"recall1": 0, "recall2": 0.5, "recall3": 1}


def test_an_image_alone_in_its_class_is_no_query() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert retrieval_figures(features, torch.tensor([0, 0, 1])) == (
        {"retrieval_map": 1, "recall1": 1, "recall5": 1, "recall10": 1},
        2,
    )
    with pytest.raises(ValueError, match="no two of the 3 images are of one class"):
        retrieval_figures(features, torch.arange(3))


def test_many_queries_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "QUERIES", 30)
    assert retrieval_figures(torch.randn(100, 4), torch.arange(100) % 2)[1] == 30
