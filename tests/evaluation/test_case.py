"""Case of an evaluation: features and probe that are computed once, and notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coloured import Damaged, case_of, coloured

from ssole.data.arrays import ArraySource
from ssole.evaluation import case as module
from ssole.evaluation.linear import C_GRID, LinearProbe, linear_probe


class Counted:
    """Function from decoded images to features: the mean of each channel. It counts its calls."""

    def __init__(self, scale: float = 1.0) -> None:
        self.calls, self.scale = list[str](), scale

    def __call__(self, images: Any) -> torch.Tensor:
        self.calls.append(images.store.source.name)
        rows = [images.get(torch.tensor([i]))[0].float().mean((1, 2)) for i in range(len(images))]
        return self.scale * torch.stack(rows)


def test_features_and_probe_are_computed_once() -> None:
    count = Counted()
    case = case_of(count, coloured(60, seed=0), coloured(30, seed=1))
    assert count.calls == []  # not before they are needed
    assert case.probe is case.probe
    assert count.calls == ["coloured-0"]
    for _ in range(2):
        features, labels = case.test
        assert (features.shape, labels.tolist()) == ((30, 3), [0, 1, 2] * 10)
        assert len(case.train[0]) == 60
    assert count.calls == ["coloured-0", "coloured-1"]
    assert case.classes == 3


def test_the_probe_is_that_of_the_train_features() -> None:
    case = case_of(Counted(), coloured(60, seed=0, noise=6), coloured(30, seed=1))
    means = torch.from_numpy(coloured(60, seed=0, noise=6).images).float().mean((1, 2))
    expected = linear_probe(means, torch.arange(60) % 3, num_classes=3, seed=0)
    torch.testing.assert_close(case.probe.scores(means), expected.scores(means))
    assert case.probe.c == expected.c


def test_images_that_cannot_be_read_are_left_out_with_their_labels() -> None:
    """The feature in the row of an unreadable image is that of the next one."""
    whole = coloured(60, seed=0)
    labels = np.where(np.arange(60) == 7, 2, whole.labels)  # a label that the image itself does not have
    case = case_of(
        Counted(), Damaged(whole.images, labels, classes=whole.classes, name="damaged"), coloured(30, seed=1)
    )
    features, found = case.train
    kept = [i for i in range(60) if i != 7]
    assert found.tolist() == whole.labels[kept].tolist()
    expected = torch.from_numpy(whole.images).float().mean((1, 2))[kept]
    torch.testing.assert_close(features, expected)
    assert case.notes == ["1 training images of damaged cannot be read: left out."]


def test_equal_features_are_told_of_train_alone_and_only_with_labels() -> None:
    case = case_of(Counted(0.0), coloured(60, seed=0), coloured(30, seed=1))
    _ = case.train, case.test
    assert case.notes == ["mine: all features are equal; the representation has collapsed."]
    unlabelled = case_of(Counted(0.0), ArraySource(coloured(60, seed=0).images))
    assert len(unlabelled.train[0]) == 60
    assert unlabelled.notes == []


@pytest.mark.parametrize("c", [C_GRID[0], C_GRID[3], C_GRID[-1]])
@pytest.mark.parametrize("converged", [True, False])
def test_a_probe_at_an_end_of_its_range_or_before_its_end_is_told(
    c: float, converged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(features: torch.Tensor, labels: torch.Tensor, **_: object) -> LinearProbe:
        weight, bias = torch.zeros(3, features.shape[1]), torch.zeros(3)
        return LinearProbe(weight=weight, bias=bias, c=c, converged=converged, iterations=1, validation={})

    monkeypatch.setattr(module, "linear_probe", found)
    case = case_of(Counted(), coloured(60, seed=0), coloured(30, seed=1))
    assert case.probe.c == c
    expected = [] if converged else ["mine: the linear probe did not converge; its accuracy may be too low."]
    if c != C_GRID[3]:
        expected.append(f"mine: the linear probe chose C = {c:g}, an end of the range tried.")
    assert case.notes == expected
