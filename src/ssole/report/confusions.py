"""Confusions of kNN on the features: accuracy of each class, the matrix, and the most frequent mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssole.evaluation.accuracy import confusion_matrix
from ssole.evaluation.knn import knn_classify
from ssole.report.sample import Sample

_K = 20
_EXAMPLES = 4


@dataclass(frozen=True)
class Mistake:
    """Images of one class that were taken for another."""

    true: int
    predicted: int
    count: int
    rows: list[int]
    """Test images, by row, a few of them."""


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """What kNN made of the test images of a sample."""

    matrix: Tensor
    """(C, C) counts by true and predicted class, of the classes that occur."""
    labels: list[int]
    """Label of each row of the matrix."""
    accuracy: float
    mistakes: list[Mistake]
    """The most frequent ones first."""
    k: int


def confusions(sample: Sample, most: int) -> Confusions | None:
    """Confusions of a labelled sample, with at most so many mistakes; None without labels."""
    if sample.test is None or not len(sample.test) or not len(sample.train):
        return None
    k = min(_K, len(sample.train))
    votes = knn_classify(sample.train.after, sample.train.labels, sample.test.after, k=(k,))[k]
    true, predicted = sample.test.labels, votes.argmax(1).cpu()
    labels = torch.cat([true, predicted]).unique()
    place = torch.searchsorted(labels, true), torch.searchsorted(labels, predicted)
    matrix = confusion_matrix(place[1], place[0], len(labels))
    wrong = matrix - torch.diag(matrix.diagonal())
    mistakes = []
    for cell in wrong.flatten().argsort(descending=True, stable=True)[:most].tolist():
        i, j = divmod(cell, len(labels))
        if not wrong[i, j]:
            break
        rows = ((place[0] == i) & (place[1] == j)).nonzero()[:_EXAMPLES, 0].tolist()
        mistakes.append(Mistake(int(labels[i]), int(labels[j]), int(wrong[i, j]), rows))
    accuracy = float((true == predicted).float().mean())
    return Confusions(matrix=matrix, labels=labels.tolist(), accuracy=accuracy, mistakes=mistakes, k=k)
