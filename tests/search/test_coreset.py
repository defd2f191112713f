"""Greedy k-center against a naive one, its guarantee against the best choice, and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from ssole.search import coreset, nearest
from ssole.search.coreset import k_center
from ssole.search.nearest import Rows, scores, unit_rows


def naive(rows: Rows, count: int, chosen: list[int]) -> list[int]:
    distance = np.linalg.norm(rows[:, None].astype(float) - rows[None].astype(float), axis=2)
    given = len(chosen)
    if not chosen:
        chosen = [int(np.linalg.norm(rows / 1.0 - rows.mean(0) / np.linalg.norm(rows.mean(0)), axis=1).argmin())]
    while len(chosen) < given + count:
        chosen = [*chosen, int(distance[:, chosen].min(axis=1).argmax())]
    return chosen[given:]


def test_the_choice_is_that_of_the_definition() -> None:
    rows = unit_rows(torch.randn(60, 5))
    chosen, similarity, worst = k_center(rows, 12)
    assert chosen.tolist() == naive(rows, 12, [])
    assert np.isnan(similarity[0])
    cosine = rows @ rows.T
    for number in range(1, 12):
        np.testing.assert_allclose(similarity[number], cosine[chosen[number], chosen[:number]].max(), atol=1e-6)
    np.testing.assert_allclose(worst, cosine[:, chosen].max(axis=1).min(), atol=1e-6)
    assert k_center(rows, 5)[0].tolist() == chosen[:5].tolist()


def test_those_given_are_not_chosen_again() -> None:
    rows = unit_rows(torch.randn(60, 5))
    given = np.array([3, 17, 44])
    chosen, similarity, _ = k_center(rows, 57, given=given)
    assert chosen[:20].tolist() == naive(rows, 20, given.tolist())
    assert sorted([*chosen, *given]) == list(range(60))
    assert np.isfinite(similarity).all()


def test_all_rows_are_read_once_for_those_given_and_once_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Rows) -> torch.Tensor:
        calls.append(len(arguments[1]))
        return scores(*arguments)

    for module in (coreset, nearest):
        monkeypatch.setattr(module, "scores", counted)
    k_center(unit_rows(torch.randn(60, 5)), 3, given=np.arange(20))
    assert calls == [20, 1, 1, 1]


def test_no_choice_is_twice_as_good() -> None:
    rows = unit_rows(torch.randn(14, 3))
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    best = min(distance[:, list(chosen)].min(axis=1).max() for chosen in combinations(range(14), 4))
    assert distance[:, k_center(rows, 4)[0]].min(axis=1).max() <= 2 * best


def test_copies_come_last_and_in_order() -> None:
    rows = unit_rows(torch.eye(4)[[0, 0, 1, 2, 1, 3]])
    chosen = k_center(rows, 6)[0].tolist()
    assert sorted(chosen[:4]) == [0, 2, 3, 5]
    assert chosen[4:] == [1, 4]
