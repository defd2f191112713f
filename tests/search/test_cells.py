"""Cells: all of them are brute force, a few find groups that lie apart, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssole
from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.search import cells, search
from ssole.search.cells import Cells, make_cells, nearest_in_cells
from ssole.search.index import CELLS, Index
from ssole.search.rows import Rows, nearest_rows, unit_rows
from ssole.training.run import Run

faiss = pytest.importorskip("faiss", reason="the extra search is not installed")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """600 rows in 30 groups of which some are copies of each other."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 12, generator=generator).repeat_interleave(20, 0)
    found = unit_rows(centres + 0.1 * torch.randn(600, 12, generator=generator))
    found[7] = found[300]
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_with_all_cells_the_result_is_that_of_brute_force(rows: Rows, dtype: Any) -> None:
    given = rows.astype(dtype)
    made = make_cells(given)
    assert len(made.centres) == 98  # about 4 roots of 600
    np.testing.assert_allclose(np.linalg.norm(made.centres, axis=1), 1, atol=1e-5)
    queries = np.concatenate([unit_rows(torch.randn(5, 12)), rows[[7, 300]]])
    for found, expected in zip(
        nearest_in_cells(given, made, queries, 9, probed=98), nearest_rows(given, queries, 9), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    own = np.array([7, 300])
    left = nearest_in_cells(given, made, given[own], 599, probed=1, leave_out=own)  # more cells, until there are enough
    for found, expected in zip(left, nearest_rows(given, given[own], 599, leave_out=own), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_row_is_in_the_cell_of_its_nearest_centre(rows: Rows) -> None:
    made = make_cells(rows)
    nearest = (rows @ made.centres.T).max(axis=1)
    for cell in range(len(made.centres)):
        members = made.rows[made.starts[cell] : made.starts[cell + 1]]
        np.testing.assert_allclose(rows[members] @ made.centres[cell], nearest[members], atol=1e-5)
    assert sorted(made.rows.tolist()) == list(range(600))


def test_a_few_cells_find_neighbours_that_lie_together(rows: Rows) -> None:
    made = make_cells(rows)
    assert len(made.near(rows[0], 1, 8)) < 150
    found, expected = nearest_in_cells(rows, made, rows[::20], 10, probed=8)[1], nearest_rows(rows, rows[::20], 10)[1]
    shares = [len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shares) > 0.95


def test_an_index_with_cells(index: Index, run: Run, photos: Path, tmp_path: Path) -> None:
    divided = ssole.index(run, photos, tmp_path / "divided", cells="always", precision="float32", progress=False)
    assert index.cells is None
    assert divided.cells is not None
    assert (tmp_path / "divided" / CELLS).is_file()
    for query in ("dog/003.png", photos / "cat" / "004.png"):
        whole, exact = index.search(query, 5), divided.search(query, 5, exact=True)
        found = divided.search(query, 5)  # of 30 images there are 22 cells, fewer than are looked into
        assert found.ids == exact.ids == whole.ids
        np.testing.assert_allclose(found.similarity, whole.similarity, atol=1e-6)
    near = divided.nearest(index.features[:3].astype(np.float32), 2)
    np.testing.assert_array_equal(near[1], index.nearest(index.features[:3].astype(np.float32), 2)[1])


def test_large_indices_have_cells_where_faiss_is_installed(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "CELLS_ABOVE", 20)
    assert ssole.index(run, photos, tmp_path / "a", progress=False).cells is not None
    assert ssole.index(run, photos, tmp_path / "b", cells="never", progress=False).cells is None
    monkeypatch.setattr(cells, "find_spec", lambda _: None)
    assert ssole.index(run, photos, tmp_path / "c", progress=False).cells is None
    with pytest.raises(ConfigError, match=r"cells are made by faiss: pip install 'ssole\[search\]'"):
        ssole.index(run, photos, tmp_path / "d", cells="always", progress=False)
    assert not (tmp_path / "d").exists()
    assert Index(tmp_path / "a").search("dog/003.png", 1).ids  # to search needs no faiss


def spoiled(made: Cells, **changes: Any) -> Cells:
    return Cells(**{"centres": made.centres, "rows": made.rows, "starts": made.starts} | changes)


def test_damaged_cells_are_named(run: Run, photos: Path, tmp_path: Path) -> None:
    made = ssole.index(run, photos, tmp_path / "index", cells="always", progress=False).cells
    assert made is not None
    for number, changes in enumerate(
        [
            {"rows": made.rows[:-1]},
            {"rows": np.zeros_like(made.rows)},
            {"starts": made.starts[::-1].copy()},
            {"starts": made.starts[:-1]},
            {"centres": made.centres[:, :-1]},
            {"centres": made.centres.astype(np.float64)},
        ]
    ):
        folder = shutil.copytree(tmp_path / "index", tmp_path / str(number))
        spoiled(made, **changes).save(folder / CELLS)
        with pytest.raises(
            DataError, match=r"damaged, make it anew .*cells\.safetensors cannot be read \(it holds no cells of 30"
        ):
            Index(folder)
    (folder / CELLS).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"damaged, .*cells\.safetensors cannot be read"):
        Index(folder)
