"""Confusions of kNN on the features: accuracy of each class, the matrix, and the most frequent mistakes."""

from __future__ import annotations

from typing import Any

import torch

from ssole.evaluation.accuracy import confusion_matrix
from ssole.evaluation.knn import knn_classify
from ssole.report.sample import Sample

_K = 20
_EXAMPLES = 4
_MATRIX = 20  # classes of the largest matrix that is shown


def confusions(sample: Sample, most: int) -> dict[str, Any] | None:
    """Classes that kNN gives to a sample's test images, as the template shows them; None without labels.

    `rows` are the accuracies of classes, worst first. `matrix` is None if it is too large to read. `mistakes` has at
    most `most` entries, the most frequent first, each with the rows of a few test images.
    """
    if sample.test is None or not len(sample.test) or not len(sample.train):
        return None
    k = min(_K, len(sample.train))
    votes = knn_classify(sample.train.after, sample.train.labels, sample.test.after, k=(k,))[k]
    true, predicted = sample.test.labels, votes.argmax(1).cpu()
    labels = torch.cat([true, predicted]).unique()
    true_row, predicted_row = torch.searchsorted(labels, true), torch.searchsorted(labels, predicted)
    matrix = confusion_matrix(predicted_row, true_row, len(labels))
    names, counts, totals = [sample.name_of(label) for label in labels.tolist()], matrix.tolist(), matrix.sum(1)
    rows = [
        {"name": names[i], "share": counts[i][i] / total, "count": total}
        for i, total in enumerate(totals.tolist())
        if total
    ]
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
