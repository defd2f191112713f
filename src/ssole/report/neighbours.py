"""Neighbours in feature space: of sample images before and after training, outliers, and pairs that look the same."""

from __future__ import annotations

import torch

from ssole.evaluation.knn import nearest_others
from ssole.report.sample import Part
from ssole.search import rows

SHOWN = 6
"""Neighbours shown of an image."""


def sample_neighbours(part: Part, count: int) -> list[tuple[int, list[int], list[int]]]:
    """`count` evenly spaced images, each with its nearest others after and before training, best first, by row."""
    queries = torch.linspace(0, len(part) - 1, min(count, len(part))).long()
    after, before = (nearest_others(features, queries, SHOWN)[1] for features in (part.after, part.before))
    return list(zip(queries.tolist(), after.tolist(), before.tolist(), strict=True))


def outliers(part: Part, count: int) -> list[tuple[int, float]]:
    """Images that are least similar to their ten nearest others, with that mean cosine similarity, lowest first."""
    chosen, mean = rows.outliers(rows.unit_rows(part.after), count)
    return list(zip(chosen.tolist(), mean.tolist(), strict=True))


def similar_pairs(part: Part, count: int) -> list[tuple[int, int, float]]:
    """Most similar pairs of images, each image in one pair at most, with their cosine similarity, highest first."""
    if len(part) < 2:
        return []
    similarity, index = nearest_others(part.after, torch.arange(len(part)), 1)
    used: set[int] = set()
    found: list[tuple[int, int, float]] = []
    for row in similarity[:, 0].argsort(descending=True, stable=True).tolist():
        value, twin = float(similarity[row, 0]), int(index[row, 0])
        if value < rows.NEAR_DUPLICATE or len(found) == count:
            break
        if row not in used and twin not in used:
            used |= {row, twin}
            found.append((min(row, twin), max(row, twin), value))
    return found
