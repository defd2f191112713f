"""Cells: groups of similar rows, so that a query among very many rows need look at a few groups only.

k-means by faiss divides the rows, as for its inverted lists (Douze et al. 2024, arXiv:2401.08281). A query looks into
the cells whose centres are most similar to it, and compares itself there exactly, as
:func:`ssole.search.rows.nearest_rows` does. Rows of other cells are missed; with all cells, nothing is.

Shape suffixes: N rows, Q queries, F features, K neighbours, C cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.base import evenly_spaced
from ssole.files import write_tensors_atomically
from ssole.progress import progress_bar
from ssole.search.rows import Rows, nearest_rows, scores

CELLS_ABOVE = 1_000_000
"""Images above which an index gets cells: an exact query among so many takes a quarter of a second on two cores."""
PROBED = 128
"""Cells that a query looks into."""
_TRAINED, _ROUNDS = 64, 10  # rows a cell that k-means learns from, and its iterations
_BLOCK = 2**24  # numbers that are converted and assigned at once


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Division of rows into cells."""

    centres: NDArray[np.float32]
    """(C, F) unit rows."""
    rows: NDArray[np.int64]
    """(N,) all rows, those of a cell together."""
    starts: NDArray[np.int64]
    """(C + 1,) where each cell begins in `rows`, and the end."""

    def near(self, query_F: Rows, least: int, probed: int) -> NDArray[np.int64]:
        """Rows of the `probed` cells nearest to a query, in order; of more cells if these have fewer than `least`."""
        order = scores(self.centres, query_F[None])[0].sort(descending=True, stable=True).indices.numpy()
        counts = np.diff(self.starts)[order].cumsum()
        order = order[: max(probed, int(np.searchsorted(counts, least)) + 1)]
        found = [self.rows[self.starts[cell] : self.starts[cell + 1]] for cell in order]
        return np.sort(np.concatenate(found))

    def save(self, path: Path) -> None:
        """Write the cells to a safetensors file."""
        arrays: dict[str, NDArray[Any]] = {"centres": self.centres, "rows": self.rows, "starts": self.starts}
        write_tensors_atomically(
            path, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )

    @classmethod
    def load(cls, path: Path, shape: tuple[int, int]) -> Cells:
        """Cells of a file, for rows (N, F) of this shape; `ValueError` if it holds no cells of such rows."""
        from safetensors.numpy import load_file

        centres, rows, starts = map(load_file(path).__getitem__, ("centres", "rows", "starts"))
        whole = (
            [str(array.dtype) for array in (centres, rows, starts)] == ["float32", "int64", "int64"]
            and (centres.ndim, rows.shape, starts.shape) == (2, shape[:1], (len(centres) + 1,))
            and (centres.shape[1], starts[0], starts[-1]) == (shape[1], 0, len(rows))
            and bool((np.diff(starts) >= 0).all())
            and np.array_equal(np.sort(rows), np.arange(len(rows)))
        )
        if not whole:
            raise ValueError(f"it holds no cells of {shape[0]:,} rows of {shape[1]} features")
        return cls(centres=centres, rows=rows, starts=starts)


def faiss_installed() -> bool:
    """Whether faiss is there, which cells are made with."""
    return find_spec("faiss") is not None


def make_cells(rows_NF: Rows, *, progress: bool = False) -> Cells:
    """Cells of unit rows, about four times the root of their number. Needs faiss."""
    import faiss

    count, features = rows_NF.shape
    cells = max(1, min(count, round(4 * math.sqrt(count))))
    sample = np.asarray(rows_NF[evenly_spaced(count, _TRAINED * cells)], dtype=np.float32)
    sizes = {"min_points_per_centroid": 1, "max_points_per_centroid": _TRAINED}
    means = faiss.Kmeans(features, cells, niter=_ROUNDS, spherical=True, seed=0, **sizes)
    size, cell_N = max(1, _BLOCK // features), np.empty(count, dtype=np.int64)
    with progress_bar("dividing images into cells", count, enabled=progress) as advance:
        means.train(sample)
        for start in range(0, count, size):
            block_BF = np.ascontiguousarray(rows_NF[start : start + size], dtype=np.float32)
            cell_N[start : start + len(block_BF)] = means.index.search(block_BF, 1)[1][:, 0]
            advance(len(block_BF))
    starts = np.concatenate([[0], np.bincount(cell_N, minlength=cells).cumsum()]).astype(np.int64)
    centres = np.asarray(means.centroids, dtype=np.float32)
    return Cells(centres=centres, rows=np.argsort(cell_N, kind="stable"), starts=starts)


def nearest_in_cells(
    rows_NF: Rows,
    cells: Cells,
    queries_QF: Rows,
    k: int,
    *,
    probed: int = PROBED,
    leave_out: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nearest rows of each query among those of its nearest cells. Arguments and result as `nearest_rows`."""
    similarity = np.empty((len(queries_QF), k))
    index = np.empty((len(queries_QF), k), dtype=np.int64)
    for number, query_F in enumerate(queries_QF):
        near = cells.near(query_F, k + 1, probed)
        if leave_out is not None:
            near = near[near != leave_out[number]]
        similarity[number], order = nearest_rows(rows_NF[near], query_F[None], k)
        index[number] = near[order]
    return similarity, index
