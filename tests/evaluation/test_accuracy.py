"""Accuracies and confusions against scikit-learn, and the rules for ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)
from torch.nn import functional as F

from ssole.evaluation import accuracy as module
from ssole.evaluation.accuracy import accuracy, classified


def test_figures_are_those_of_scikit_learn() -> None:
    labels = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(0)).clamp(max=6)
    scores = torch.rand(200, 7) + torch.nn.functional.one_hot(labels, 7) * 0.4
    predicted = scores.argmax(1)
    outcome = classified("it", scores, labels)
    assert outcome.scores["it"].value == pytest.approx(accuracy_score(labels, predicted))
    six = labels < 6
    assert six.all()  # class 6 has no test image
    assert outcome.scores["it_top5"].value == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(7)))
    details = outcome.details["it"]
    assert details["confusion"] == confusion_matrix(labels, predicted, labels=range(7)).tolist()
    per_class = recall_score(labels.numpy(), predicted.numpy(), labels=range(6), average=None)
    assert details["per_class"] == [*(pytest.approx(value) for value in per_class), None]
    assert outcome.scores["it_macro"].value == pytest.approx(per_class.mean())


def test_many_classes_have_no_confusion_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CONFUSED", 2)
    assert classified("it", torch.eye(3), torch.arange(3)).details == {"it": {"per_class": [1.0, 1.0, 1.0]}}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_macro_accuracy_of_unequal_classes_is_balanced() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    scores = torch.eye(2)[torch.zeros(100, dtype=torch.int64)]
    outcome = classified("it", scores, labels)
    assert outcome.scores["it"].value == 0.9
    assert outcome.scores["it_macro"].value == balanced_accuracy_score(labels, scores.argmax(1)) == 0.5
    assert outcome.scores["it_macro"].std == 0
    assert "it_top5" not in outcome.scores


def test_accuracy_ranks_equal_scores_by_class_and_gives_nothing_for_no_votes() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert accuracy(scores, torch.tensor([0, 2, 1])) == pytest.approx(2 / 3)
    assert accuracy(scores, torch.tensor([1, 0, 1])) == 0
    assert accuracy(scores, torch.tensor([1, 1, 1]), top=2) == pytest.approx(2 / 3)
    assert accuracy(scores, torch.tensor([2, 0, 2]), top=3) == pytest.approx(1 / 3)


def test_accuracy_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import top_k_accuracy_score

    scores, labels = torch.rand(200, 9), torch.randint(9, (200,))
    for top in (1, 5):
        expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=top, labels=range(9))
        assert accuracy(scores, labels, top=top) == pytest.approx(expected)


def test_the_error_of_the_macro_accuracy_is_unbiased_for_classes_of_few_images() -> None:
    """The mean of the estimated variances is the variance of the accuracies, over many results of classes of two."""
    share, variances, means = 0.7, [], []
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(2)
    for _ in range(4000):
        right = torch.rand(8, generator=generator) < share
        predicted = torch.where(right, labels, (labels + 1) % 4)
        score = classified("it", F.one_hot(predicted, 4).double(), labels).scores["it_macro"]
        means.append(score.value)
        variances.append(score.std**2)  # type: ignore[operator]
    assert np.mean(variances) == pytest.approx(share * (1 - share) / 8, rel=0.03)
    assert np.var(means) == pytest.approx(np.mean(variances), rel=0.1)


def test_a_class_of_one_image_has_the_variance_of_the_mean() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    score = classified("it", F.one_hot(torch.tensor([0, 1, 2, 0]), 4).double(), labels).scores["it_macro"]
    assert score.value == 0.75
    assert score.std == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
