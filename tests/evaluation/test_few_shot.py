"""Few-shot accuracy against scikit-learn's nearest centroid, closed cases, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from ssole.evaluation.few_shot import EPISODES, INTERVAL, few_shot_accuracies

LABELS = torch.arange(90) % 3


def clouds(seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(3, 5)[LABELS] + spread * torch.randn(90, 5, generator=generator)


def test_all_images_as_shots_are_a_nearest_centroid_classifier() -> None:
    train, test = clouds(0, 0.6) + 2, clouds(1, 0.6) + 2
    values = few_shot_accuracies(train, LABELS, test, LABELS, shots=30, episodes=2)
    x, queries = (normalize((part - train.mean(0)).numpy()) for part in (train, test))
    expected = NearestCentroid().fit(x, LABELS.numpy()).score(queries, LABELS.numpy())
    assert values == [pytest.approx(expected)] * 2
    assert 0.5 < expected < 1


def test_episodes_differ_and_more_shots_are_better() -> None:
    train, test = clouds(0, 0.6), clouds(1, 0.6)
    one, ten = (few_shot_accuracies(train, LABELS, test, LABELS, shots=shots) for shots in (1, 10))
    assert len(one) == EPISODES
    assert np.std(one) > np.std(ten) > 0
    assert np.mean(one) < np.mean(ten)
    assert (
        one
        == few_shot_accuracies(train, LABELS, test, LABELS, shots=1)
        != few_shot_accuracies(train, LABELS, test, LABELS, shots=1, seed=1)
    )


def test_labels_need_not_be_consecutive() -> None:
    train, labels = torch.eye(3)[[0, 0, 1, 1]] + 0.0, torch.tensor([7, 7, 2, 2])
    assert few_shot_accuracies(train, labels, train, labels, shots=1, episodes=3) == [1.0] * 3


def test_a_class_without_training_images_is_never_found() -> None:
    train, labels = torch.eye(3)[[0, 0, 1, 1]] + 0.0, torch.tensor([0, 0, 2, 2])
    assert few_shot_accuracies(train, labels, train, torch.tensor([0, 0, 1, 1]), shots=1, episodes=2) == [0.5] * 2


def test_the_interval_is_that_of_students_t() -> None:
    assert pytest.approx(t.ppf(0.975, EPISODES - 1) / EPISODES**0.5, rel=1e-3) == INTERVAL


def test_more_shots_than_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="31 images of every class are to be drawn, and the smallest has 30"):
        few_shot_accuracies(clouds(0, 1), LABELS, clouds(1, 1), LABELS, shots=31)
    with pytest.raises(ValueError, match="test features hold NaN"):
        few_shot_accuracies(clouds(0, 1), LABELS, clouds(1, 1) / 0 * 0, LABELS, shots=1)
