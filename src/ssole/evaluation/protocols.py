"""Whole protocols: from a model and data to accuracies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssole.errors import DataError
from ssole.evaluation.checks import check_labels
from ssole.evaluation.features import Images, as_store, extract
from ssole.evaluation.knn import accuracy, knn_classify
from ssole.precision import Precision

if TYPE_CHECKING:
    from ssole.data.sources import Source


def knn_evaluator(
    train: Images | Source,
    test: Images | Source,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    k: Sequence[int] = (20,),
    tau: float = 0.07,
    max_train: int | None = None,
    max_test: int | None = None,
    batch_size: int = 512,
    precision: Precision = "auto",
    seed: int = 0,
) -> Callable[[nn.Module], dict[str, float]]:
    """A callable for the training loop: backbone -> {"knn20": top-1 accuracy in [0, 1]}, an entry for each k.

    It runs where the backbone's parameters are and leaves the backbone as it found it, training modes included.
    ``max_train`` and ``max_test`` bound the cost by a fixed random subset (a function of ``seed``); such a figure draws
    a curve, and is not the one to report.

    Raises:
        DataError: without labels.
        ValueError: when a k exceeds the number of training images; both at once, not at the first evaluation.
    """
    memory, memory_labels = _part(train, max_train, seed, "train")
    queries, query_labels = _part(test, max_test, seed, "test")
    if max(k) > len(memory):
        raise ValueError(f"k is {tuple(k)} and there are {len(memory)} training images: pass a smaller k")
    classes = int(max(memory_labels.max(), query_labels.max())) + 1

    def evaluate_knn(backbone: nn.Module) -> dict[str, float]:
        memory_features, query_features = (
            extract(
                backbone,
                images,
                image_size=image_size,
                mean=mean,
                std=std,
                batch_size=batch_size,
                precision=precision,
                progress=False,
            )
            for images in (memory, queries)
        )
        place = next(backbone.parameters()).device
        scores = knn_classify(
            memory_features.to(place), memory_labels, query_features.to(place), k=k, tau=tau, num_classes=classes
        )
        return {f"knn{one}": accuracy(scores[one], query_labels) for one in k}

    return evaluate_knn


class _Subset:
    """Some images of a store, by position."""

    def __init__(self, images: Images, positions: Tensor) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def get(self, indices: Tensor) -> Tensor | list[Tensor]:
        return self.images.get(self.positions[indices])


def _part(images: Images | Source, limit: int | None, seed: int, what: str) -> tuple[Images, Tensor]:
    """A store (or ``limit`` random images of it) and its labels."""
    store = as_store(images)
    labels = getattr(store, "labels", None)
    if labels is None:
        raise DataError(f"the {what} images have no labels, which kNN accuracy needs")
    labels, _ = check_labels(torch.as_tensor(labels), len(store), None)
    if limit is None or limit >= len(store):
        return store, labels
    positions = torch.randperm(len(store), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    return _Subset(store, positions), labels[positions]
