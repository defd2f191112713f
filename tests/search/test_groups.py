"""Near duplicates and outliers against brute force and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssole.search import nearest
from ssole.search.groups import near_duplicates, outliers
from ssole.search.nearest import Rows, unit_rows


def naive_groups(rows: Rows, least: float) -> list[list[int]]:
    cosine = rows.astype(float) @ rows.astype(float).T
    kept: dict[int, list[int]] = {}
    for row in range(len(rows)):
        first = next((one for one in kept if cosine[one, row] >= least), None)
        kept.setdefault(row if first is None else first, []).append(row)
    return [group for group in kept.values() if len(group) > 1]


@pytest.mark.parametrize("block", [1, 2**28])
@pytest.mark.parametrize("least", [0.5, 0.9])
def test_groups_are_those_of_brute_force(least: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SCORE_BYTES", block)
    rows = unit_rows(torch.randn(80, 3))
    groups = near_duplicates(rows, least)
    assert [group.tolist() for group, _ in groups] == naive_groups(rows, least)
    assert len(groups) > 3
    for group, similarity in groups:
        np.testing.assert_allclose(similarity, rows[group] @ rows[group[0]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_copies_are_found_at_a_threshold_of_one_whatever_rounding_does_to_their_length(dtype: Any) -> None:
    rows = unit_rows(torch.randn(50, 33, generator=torch.Generator().manual_seed(0))).astype(dtype)
    groups = near_duplicates(np.concatenate([rows, np.zeros((3, 33), dtype), rows]), 1.0)
    assert [group.tolist() for group, _ in groups] == [[row, row + 53] for row in range(50)]


def test_exact_copies_at_the_largest_threshold() -> None:
    rows = unit_rows(torch.eye(3)[[0, 1, 0, 2, 1, 0]])
    assert [group.tolist() for group, _ in near_duplicates(rows, 1.0)] == [[0, 2, 5], [1, 4]]
    assert near_duplicates(unit_rows(torch.eye(3))) == []


def test_a_copy_of_a_copy_that_is_unlike_the_first_begins_a_group() -> None:
    angles = torch.tensor([0.0, 20.0, 40.0, 60.0]).deg2rad()
    rows = unit_rows(torch.stack([angles.cos(), angles.sin()], dim=1))
    assert [group.tolist() for group, _ in near_duplicates(rows, 0.93)] == [[0, 1], [2, 3]]


def test_outliers_are_those_of_brute_force() -> None:
    rows = unit_rows(torch.randn(50, 6))
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -2)
    mean = np.sort(cosine, axis=1)[:, -10:].mean(axis=1)
    found, similarity = outliers(rows, 7)
    assert found.tolist() == mean.argsort()[:7].tolist()
    np.testing.assert_allclose(similarity, np.sort(mean)[:7], atol=1e-6)


def test_few_rows() -> None:
    assert outliers(unit_rows(torch.ones(1, 3)), 5)[0].tolist() == []
    assert outliers(unit_rows(torch.eye(2)), 5)[0].tolist() == [0, 1]
    assert near_duplicates(unit_rows(torch.ones(1, 3))) == []
