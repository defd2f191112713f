"""Nearest rows against a float64 brute force: ties, blocks, half precision, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssole.search import nearest
from ssole.search.nearest import Rows, nearest_rows, rounding, scores, unit_rows


def brute_force(rows: Rows, queries: Rows, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All products in float64, and a stable sort."""
    products = np.array([[float((row * query).sum()) for row in rows.astype(float)] for query in queries.astype(float)])
    index = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, index, axis=1), index


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(nearest, "_BLOCK", 70)  # 7 rows of 10 features
        monkeypatch.setattr(nearest, "_SCORE_BYTES", 4 * 60 * 3)  # 3 queries


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
