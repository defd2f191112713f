"""Nearest neighbours in feature space: of sample images, pairs that look the same, and kNN's confusions."""

from __future__ import annotations

from typing import Any

import torch

from ssole.data.base import evenly_spaced
from ssole.evaluation.accuracy import confusion_matrix
from ssole.evaluation.knn import knn_classify, nearest_others
from ssole.report.sample import Part, RunSample
from ssole.search.rows import NEAR_DUPLICATE

SHOWN = 6
"""Neighbours shown of an image."""
_K = 20  # neighbours that classify a test image
_EXAMPLES = 4  # test images shown of a mistake
_MATRIX = 20  # classes of the largest matrix that is shown


def sample_neighbours(part: Part, count: int) -> list[tuple[int, list[int], list[int]]]:
    """`count` evenly spaced images, each with its nearest others after and before training, best first, by row."""
    queries = torch.tensor(evenly_spaced(len(part), count))
    after, before = (nearest_others(features, queries, SHOWN)[1] for features in (part.after, part.before))
    return list(zip(queries.tolist(), after.tolist(), before.tolist(), strict=True))


def similar_pairs(part: Part, count: int) -> list[tuple[int, int, float]]:
    """Most similar pairs of images, each image in one pair at most, with their cosine similarity, highest first."""
    if len(part) < 2:
        return []
    similarity, index = nearest_others(part.after, torch.arange(len(part)), 1)
    used: set[int] = set()
    found: list[tuple[int, int, float]] = []
    for row in similarity[:, 0].argsort(descending=True, stable=True).tolist():
        value, twin = float(similarity[row, 0]), int(index[row, 0])
        if value < NEAR_DUPLICATE or len(found) == count:
            break
        if row not in used and twin not in used:
            used |= {row, twin}
            found.append((min(row, twin), max(row, twin), value))
    return found


def confusions(sample: RunSample, most: int) -> dict[str, Any] | None:
    """Classes that kNN gives to a sample's test images, as the template shows them; None without labels.

    `rows` are the accuracies of classes, worst first. `matrix` is None if it is too large to read. `mistakes` has at
    most `most` entries, the most frequent first, each with the rows of a few test images.
    """
    if sample.test is None or not len(sample.test) or not len(sample.train):
        return None
    k = min(_K, len(sample.train))
    votes = knn_classify(sample.train.after, sample.train.labels, sample.test.after, k=(k,))[k]
    true, predicted = sample.test.labels, votes.argmax(1).cpu()
    labels, row = torch.cat([true, predicted]).unique(return_inverse=True)
    true_row, predicted_row = row.chunk(2)
    matrix = confusion_matrix(predicted_row, true_row, len(labels))
    names, counts, totals = [sample.name_of(label) for label in labels.tolist()], matrix.tolist(), matrix.sum(1)
    present = ((i, total) for i, total in enumerate(totals.tolist()) if total)
    rows = [{"name": names[i], "share": counts[i][i] / total, "count": total} for i, total in present]
    wrong = matrix - torch.diag(matrix.diagonal())
    mistakes = []
    for cell in wrong.flatten().argsort(descending=True, stable=True)[:most].tolist():
        i, j = divmod(cell, len(labels))
        if not wrong[i, j]:
            break
        images = ((true_row == i) & (predicted_row == j)).nonzero()[:_EXAMPLES, 0].tolist()
        mistakes.append({"true": names[i], "predicted": names[j], "count": int(wrong[i, j]), "images": images})
    shown = {"names": names, "rows": list(zip(names, counts, totals.clamp(min=1).tolist(), strict=True))}
    return {
        "k": k,
        "accuracy": float((true == predicted).float().mean()),
        "count": len(true),
        "rows": sorted(rows, key=lambda row: row["share"]),
        "matrix": shown if len(labels) <= _MATRIX else None,
        "mistakes": mistakes,
    }
