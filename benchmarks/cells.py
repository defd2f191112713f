"""Time and recall of a search in an index with cells, beside the exact search, among more than a million images.

    python benchmarks/cells.py --out benchmarks/results/cells.json

Features are random: a hundred images around each of `images / 100` random directions, so that images have neighbours,
as those of a network do. Queries are further images of these groups. Recall is the share of the k nearest images that
the search with cells finds. Everything lies in the page cache when it is searched.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from measure import save, take_turns
from search import options, show, timed, unit, write_index
from ssole.search.cells import make_cells
from ssole.search.index import CELLS, FEATURES, Index

GROUP = 100


def main() -> None:
    parser = options(__doc__, images=2_000_000, features=128)
    parser.add_argument("--queries", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(0)
    groups = unit(random.standard_normal((max(1, args.images // GROUP), args.features), dtype=np.float32))
    rows, queries = (grouped(groups, count, random) for count in (args.images, args.queries))
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "index", rows, "float32")
        del rows
        started = time.perf_counter()
        cells = make_cells(np.load(Path(folder) / "index" / FEATURES, mmap_mode="r"))
        dividing = time.perf_counter() - started
        cells.save(Path(folder) / "index" / CELLS)
        index = Index(Path(folder) / "index")
        found, expected = (index.nearest(queries, args.k, exact=exact)[1] for exact in (False, True))
        searches = {
            "with cells": lambda: timed(lambda some: index.nearest(some, args.k), queries[:1]),
            "exact": lambda: timed(lambda some: index.nearest(some, args.k, exact=True), queries[:1]),
        }
        seconds = take_turns(searches, args.rounds)
    share = recall(found, expected)
    show("1 query", seconds)
    print(f"recall at {args.k}: {share:.3f}; {len(cells.centres):,} cells, made in {dividing:.0f} s")
    if args.out is not None:
        shape = {"images": args.images, "features": args.features, "k": args.k, "threads": args.threads}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        figures = {**shape, "cells": len(cells.centres), "seconds of dividing": dividing, "recall": share}
        save(args.out, {**figures, "median": medians, "seconds": seconds}, packages=["torch", "numpy", "faiss-cpu"])


def grouped(groups: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Unit rows around random groups, whose noise is as long as their direction."""
    noise = random.standard_normal((count, groups.shape[1]), dtype=np.float32) / np.float32(groups.shape[1] ** 0.5)
    noise += groups[random.integers(len(groups), size=count)]
    return unit(noise)


def recall(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Mean share of each row of `expected` that is in the same row of `found`."""
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    return statistics.fmean(shares)


if __name__ == "__main__":
    main()
