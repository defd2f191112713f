"""Accuracy of a classifier's scores: top 1, top 5, the mean over classes, each class, and the confusion matrix.

Shape suffixes: Q test images, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssole.evaluation.results import Outcome, Score

MOST_CONFUSED = 1000
"""Largest number of classes with a confusion matrix, because the JSON of more would take gigabytes."""


def accuracy(scores: Tensor, labels: Tensor, *, top: int = 1) -> float:
    """Accuracy: share of rows whose label is among the ``top`` best scores of (Q, C).

    Equal scores rank by class index. A class with a score of 0 is no prediction and never counts as right.
    """
    label_Q1 = labels.to(scores.device).long()[:, None]
    own_Q1 = scores.gather(1, label_Q1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < label_Q1
    rank_Q = ((scores > own_Q1) | ((scores == own_Q1) & earlier)).sum(1)
    return int(((rank_Q < top) & (own_Q1[:, 0] > 0)).sum()) / len(labels)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts (C, C) int64 by true class (row) and predicted class (column), of int64 labels (Q,) in [0, C)."""
    cells = labels * classes + predicted
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def classified(name: str, scores: Tensor, labels: Tensor) -> Outcome:
    """Outcome of a classifier: its accuracies under ``name``, and the accuracy and confusions of each class.

    The macro accuracy is the mean of the accuracies of the classes that have test images. Its error is that of
    independent binomial counts, without bias: p (1 - p) / (n - 1) for a class of n images with accuracy p. A class with
    one image has the variance of the mean accuracy.

    Scores (Q, C) are not below 0; see :func:`accuracy`. Probabilities should be float64, where few become 0. Labels
    (Q,) are integers in [0, C).
    """
    classes, predicted, labels = scores.shape[1], scores.argmax(1).cpu(), labels.cpu().long()
    counts = labels.bincount(minlength=classes)
    right = labels[predicted == labels].bincount(minlength=classes)
    images_C = counts[counts > 0]
    share_C = right[counts > 0] / images_C
    mean = float(share_C.mean())
    variance_C = torch.where(images_C > 1, share_C * (1 - share_C) / (images_C - 1).clamp(min=1), mean * (1 - mean))
    error = math.sqrt(float(variance_C.sum())) / len(share_C)
    found = {name: Score.accuracy(accuracy(scores, labels), len(labels))}
    found[f"{name}_macro"] = Score(value=mean, std=error, n=len(labels))
    if classes > 5:
        found[f"{name}_top5"] = Score.accuracy(accuracy(scores, labels, top=5), len(labels))
    per_class = [int(r) / int(n) if n else None for r, n in zip(right, counts, strict=True)]
    details: dict[str, Any] = {"per_class": per_class}
    if classes <= MOST_CONFUSED:
        details["confusion"] = confusion_matrix(predicted, labels, classes).tolist()
    return Outcome(scores=found, details={name: details})
