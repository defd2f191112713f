"""Searches among unit rows against brute force, naive versions and by hand: ties, blocks, half precision, files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssole.search import rows as module
from ssole.search.rows import Rows, k_center, near_duplicates, nearest_rows, outliers, rounding, scores, unit_rows


def brute_force(rows: Rows, queries: Rows, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All products in float64, and a stable sort."""
    products = np.array([[float((row * query).sum()) for row in rows.astype(float)] for query in queries.astype(float)])
    index = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, index, axis=1), index


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(module, "_BLOCK", 70)  # 7 rows of 10 features
        monkeypatch.setattr(module, "_SCORE_BYTES", 4 * 60 * 3)  # 3 queries


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_neighbours_are_those_of_brute_force(dtype: type[np.float32] | type[np.float16]) -> None:
    rows: Rows = unit_rows(torch.randn(60, 10)).astype(dtype)
    queries = unit_rows(torch.randn(8, 10))
    similarity, index = nearest_rows(rows, queries, 9)
    expected, order = brute_force(rows, queries, 9)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(similarity, expected)


@pytest.mark.usefixtures("blocks")
def test_equal_rows_come_in_order_of_their_index() -> None:
    few = unit_rows(torch.randn(4, 10))
    rows = few[torch.randint(4, (60,)).numpy()]
    similarity, index = nearest_rows(rows, unit_rows(torch.randn(5, 10)), 40)
    for values, order in zip(similarity, index, strict=True):
        assert [*zip(-values, order, strict=True)] == sorted(zip(-values, order, strict=True))


def test_what_rounding_could_have_hidden_is_found() -> None:
    """Rows whose cosines to the query differ by less than float32 can tell."""
    angles = torch.acos(0.5 + torch.randperm(200).double() * 1e-9)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = nearest_rows(rows.numpy(), np.array([[1.0, 0.0]], dtype=np.float32), 5)[1]  # type: ignore[arg-type]
    assert found.tolist() == [rows[:, 0].argsort(descending=True)[:5].tolist()]


def test_products_stay_within_the_bound() -> None:
    for features in (2, 64, 2048):
        rows, queries = unit_rows(torch.rand(50, features)), unit_rows(torch.rand(20, features))
        exact = queries.astype(np.float64) @ rows.astype(np.float64).T
        assert np.abs(scores(rows, queries).numpy() - exact).max() <= rounding(rows) / 2


@pytest.mark.usefixtures("blocks")
def test_a_row_that_is_left_out_is_not_found_but_its_copies_are() -> None:
    rows = unit_rows(torch.ones(8, 10))
    similarity, index = nearest_rows(rows, rows, 7, leave_out=np.arange(8))
    assert index.tolist() == [[other for other in range(8) if other != row] for row in range(8)]
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_rows_of_a_file_give_the_same(tmp_path: Path) -> None:
    rows = unit_rows(torch.randn(60, 10))
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    for found, expected in zip(nearest_rows(mapped, rows[:3], 7), nearest_rows(rows, rows[:3], 7), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_zero_rows_are_similar_to_nothing() -> None:
    rows = unit_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(rows, [[0, 0], [0.6, 0.8]], atol=1e-7)
    assert nearest_rows(rows, rows[:1], 2)[0].tolist() == [[0.0, 0.0]]


def test_nan_is_an_error_that_names_the_row() -> None:
    rows = unit_rows(torch.randn(6, 3))
    rows[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity, .*; the first such row is 4"):
        nearest_rows(rows, rows[:2], 2)


# Near duplicates and outliers


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
    monkeypatch.setattr(module, "_SCORE_BYTES", block)
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


def test_the_image_apart_is_the_first_outlier() -> None:
    features = torch.tensor([[1.0, 0.01 * i] for i in range(12)] + [[0.0, -1.0]])
    found, similarity = outliers(unit_rows(features), 3)
    assert found[0] == 12
    assert similarity[0] < 0


def test_groups_and_outliers_of_few_rows() -> None:
    assert outliers(unit_rows(torch.ones(1, 3)), 5)[0].tolist() == []
    assert outliers(unit_rows(torch.eye(2)), 5)[0].tolist() == [0, 1]
    assert near_duplicates(unit_rows(torch.ones(1, 3))) == []


# Coreset


def naive_choice(rows: Rows, count: int, chosen: list[int]) -> list[int]:
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
    assert chosen.tolist() == naive_choice(rows, 12, [])
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
    assert chosen[:20].tolist() == naive_choice(rows, 20, given.tolist())
    assert sorted([*chosen, *given]) == list(range(60))
    assert np.isfinite(similarity).all()


def test_all_rows_are_read_once_for_those_given_and_once_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Rows) -> torch.Tensor:
        calls.append(len(arguments[1]))
        return scores(*arguments)

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
