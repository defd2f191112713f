"""Time of a query among a million images, exact, in float32 and float16; faiss's exact search beside it if installed.

    python benchmarks/search.py --out benchmarks/results/search.json

Random features (1,000,000 x 512) lie in a temporary folder of 3 GB (TMPDIR names another place) and in the page cache
when they are searched. Queries are random features too. Contestants take turns, and every figure has all rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from measure import Rates, installed, save, take_turns
from ssole.search.index import DESCRIPTION, FEATURES, FORMAT, IMAGES, Index


def main() -> None:
    args = options(__doc__, images=1_000_000, features=512).parse_args()
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(0)
    rows = unit(random.standard_normal((args.images, args.features), dtype=np.float32))
    queries = unit(random.standard_normal((64, args.features), dtype=np.float32))
    with tempfile.TemporaryDirectory() as folder:
        indices = {name: write_index(Path(folder) / name, rows, name) for name in ("float32", "float16")}
        searches: dict[str, Callable[[NDArray[np.float32]], Any]] = {
            f"ssole, {name}": lambda some, index=index: index.nearest(some, args.k) for name, index in indices.items()
        }
        if installed("faiss"):
            searches["faiss, IndexFlatIP"] = faiss_flat(rows, args)
        one = {name: (lambda search=search: timed(search, queries[:1])) for name, search in searches.items()}
        many = {name: (lambda search=search: timed(search, queries)) for name, search in searches.items()}
        seconds = {"1 query": take_turns(one, args.rounds), "64 queries": take_turns(many, max(1, args.rounds // 5))}
        started = time.perf_counter()
        indices["float32"].select(10, progress=False)
        selecting = (time.perf_counter() - started) / 10
    for title, rates in seconds.items():
        show(title, rates)
    print(f"choosing an image (select): {selecting:.2f} s")
    if args.out is not None:
        shape = {"images": args.images, "features": args.features, "k": args.k, "threads": args.threads}
        figures = {**shape, "seconds": seconds, "seconds of select, an image": selecting}
        save(args.out, figures, packages=["torch", "numpy", "faiss-cpu"])


def options(description: str | None, *, images: int, features: int) -> argparse.ArgumentParser:
    """Command line of a benchmark of searches, with its default numbers of images and features."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--features", type=int, default=features)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def write_index(folder: Path, rows: NDArray[np.float32], dtype: str) -> Index:
    """Index of features alone, without a backbone."""
    folder.mkdir()
    np.save(folder / FEATURES, rows.astype(dtype))
    parquet.write_table(pa.table({"id": [f"{i}.jpg" for i in range(len(rows))]}), folder / IMAGES)
    shape = {"images": rows.shape[0], "features": rows.shape[1]}
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, **shape, "backbone": "", "data": "random"}))
    return Index(folder)


def faiss_flat(rows: NDArray[np.float32], args: argparse.Namespace) -> Callable[[NDArray[np.float32]], Any]:
    import faiss

    faiss.omp_set_num_threads(args.threads)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda some: index.search(some, args.k)


def timed(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    search(queries)
    return time.perf_counter() - started


def show(title: str, rates: Rates) -> None:
    print(f"\n{title}")
    for name, values in rates.items():
        print(f"  {name:20} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
