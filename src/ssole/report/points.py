"""Map of the features: a point for each image in two dimensions, and the columns that colour the points."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssole.errors import DataError
from ssole.evaluation.knn import nearest
from ssole.report.sample import RunSample

LANDMARKS = 2000
"""Points that t-SNE places; others lie between the three landmarks that they are most similar to."""
MAX_NAMES = 19
"""Values of a column with a colour of their own; the rarer ones share one."""
_BINS = 8  # ranges of a column of numbers
_CLUSTERS = 10  # clusters of images without labels
_TEMPERATURE = 0.05  # of the softmax by which the nearest landmarks are weighted


@dataclass(frozen=True, kw_only=True)
class Colouring:
    """Column of values that points are coloured by."""

    name: str
    names: list[str]
    """Name of each code in the legend, 20 at most."""
    codes: NDArray[np.uint8]
    """(N,) indices of `names`."""


class Table(NamedTuple):
    """Headings and rows of a CSV file."""

    path: Path
    heading: list[str]
    rows: list[list[str]]


def place(features: Tensor) -> NDArray[np.float32]:
    """Points (N, 2) of features (N, F), so that similar images lie close: t-SNE by cosine similarity.

    More than LANDMARKS points: a random choice of that many is placed by t-SNE, and every other point at the mean of
    its three most similar landmarks, weighted by similarity. The result is the same every time on one machine. Equal
    features are all at one point, and fewer than five points on a line.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(features)
    if count < 5:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    unit = F.normalize(features.float(), dim=1)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:LANDMARKS].sort().values
    landmarks = unit[chosen].numpy()
    if np.ptp(landmarks, axis=0).max() <= 1e-6:  # equal but for rounding: t-SNE would divide by their spread
        return np.zeros((count, 2), dtype=np.float32)
    landmarks = PCA(min(50, *landmarks.shape), random_state=0).fit_transform(landmarks)
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(landmarks).astype(np.float32)
    points = np.empty((count, 2), dtype=np.float32)
    points[chosen.numpy()] = found
    rest = np.setdiff1d(np.arange(count), chosen.numpy())
    if len(rest):
        similarity, index = nearest(unit[chosen], unit[rest], 3)
        weight = torch.softmax(similarity / _TEMPERATURE, dim=1).numpy()[..., None]
        points[rest] = (found[index.numpy()] * weight).sum(1)
    return points


def colourings(sample: RunSample, table: Path | Table | None) -> list[Colouring]:
    """Columns to colour a sample by: its labels, clusters of its features, and those of a CSV file."""
    found = []
    if sample.labelled:
        labels = sample.train.labels.tolist()
        found.append(_by_value("label", [sample.name_of(label) for label in labels]))
    found.append(_clusters(sample))
    if table is not None:
        table = read_table(table) if isinstance(table, Path) else table
        found += _read_columns(table, [sample.train.id(row) for row in range(len(sample.train))])
    return found


def _clusters(sample: RunSample) -> Colouring:
    from sklearn.cluster import MiniBatchKMeans

    features = F.normalize(sample.train.after.float(), dim=1).numpy()
    classes = len(sample.train.labels.unique()) if sample.labelled else _CLUSTERS
    count = min(classes, MAX_NAMES, len(features))
    codes = MiniBatchKMeans(count, n_init=3, random_state=0).fit_predict(features)
    return _by_value("cluster", [f"cluster {code + 1:02}" for code in codes])


def read_table(path: Path) -> Table:
    """Table in a CSV file, which may be a pipe; a DataError for any other file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            heading, *rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: an empty file, or bytes that are no text
        raise DataError(f"{path} is not a CSV file with a line of headings: {error}") from None
    return Table(path, heading, rows)


def _read_columns(table: Table, ids: list[str]) -> list[Colouring]:
    """Columns of a table whose first column names images."""
    path, heading, rows = table
    by_id = {row[0]: row for row in rows if row}
    if not any(name in by_id for name in ids):
        example = next(iter(by_id), "nothing")
        raise DataError(
            f"the first column of {path} names none of the images: it has {example!r}, and the images are called like "
            f"{ids[0]!r}"
        )
    columns = []
    for number, name in enumerate(heading[1:], start=1):
        values = [by_id[one][number] if one in by_id and number < len(by_id[one]) else "" for one in ids]
        columns.append(_by_number(name, values) or _by_value(name, [value or "unknown" for value in values]))
    return columns


def _by_value(name: str, values: Sequence[str]) -> Colouring:
    """Colouring by text: the most frequent values in alphabetical order, then the others together."""
    counts = Counter(values)
    kept = sorted(value for value, _ in counts.most_common(MAX_NAMES))
    others = len(counts) - len(kept)
    number = {value: code for code, value in enumerate(kept)}
    codes = np.array([number.get(value, len(kept)) for value in values], dtype=np.uint8)
    return Colouring(name=name, names=kept + ([f"{others} others"] if others else []), codes=codes)


def _by_number(name: str, values: Sequence[str]) -> Colouring | None:
    """Colouring by number, in ranges of equally many images.

    None if a value is no number, or if there are 19 different ones or fewer, each of which gets a colour of its own.
    """
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None
    finite = numbers[np.isfinite(numbers)]
    if len(np.unique(finite)) <= MAX_NAMES:
        return None
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, _BINS + 1)))
    codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    names = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    missing = ~np.isfinite(numbers)
    codes[missing] = len(names)
    return Colouring(name=name, names=names + (["unknown"] if missing.any() else []), codes=codes.astype(np.uint8))
