"""Supervised cross-entropy on the same views, the upper bound that self-supervised losses are compared with.

Shape suffixes: B images, V views, D embedding dimensions, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssole import distributed
from ssole.losses.base import EmbeddingLoss, check_count, check_embeddings

UNKNOWN = -1


class SupervisedTerms(NamedTuple):
    """Terms of the supervised loss: scalar tensors. Only the total has a gradient."""

    total: Tensor
    """Loss: mean cross-entropy of the views of images with a label."""
    accuracy: Tensor
    """Share of these views whose class is predicted."""


class SupervisedLoss(EmbeddingLoss[SupervisedTerms]):
    """Mean cross-entropy of a linear classifier on the embeddings of every view.

    The classifier, `head`, is part of the loss: its parameters must be given to the optimizer, and start equal on all
    processes. Their gradient is that of the global batch on every process.

    Args:
        classes: number of classes, at least 2.
        dims: number of embedding dimensions D.
        check_input: whether to look for NaN, infinity and labels out of range, for which an accelerator must wait.
    """

    needs_labels = True

    def __init__(self, *, classes: int, dims: int, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.classes = check_count("classes", classes, 2)
        self.head = nn.Linear(check_count("dims", dims, 1), classes)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss of embeddings `z`, a scalar in float32, or in float64 for float64.

        Args:
            z: (B, V, D), of any floating dtype, B and V at least 2.
            labels: (B,) int64 in [0, classes), or -1 for unknown. Images of unknown class are left out; the loss is 0
                where all are.

        Raises:
            ValueError: wrong shape or dtype, NaN or infinity, labels missing or out of range.
        """
        return self.terms(z, labels).total

    def terms(self, z: Tensor, labels: Tensor | None = None) -> SupervisedTerms:
        """Named terms of the loss, with the arguments and errors of `forward`."""
        check_embeddings(z)
        with torch.autocast(z.device.type, enabled=False):
            z_BVD = self._global_batch(z)
            labels_B = self._all_labels(labels, z)
            weight, bias = self.head.weight.to(z_BVD.dtype), self.head.bias.to(z_BVD.dtype)
            logits_BVK = functional.linear(z_BVD, weight, bias)
            labels_BV = labels_B[:, None].expand(z_BVD.shape[:2])
            known = (labels_BV != UNKNOWN).sum().clamp(min=1)
            summed = functional.cross_entropy(
                logits_BVK.flatten(0, 1), labels_BV.flatten(), ignore_index=UNKNOWN, reduction="sum"
            )
            accuracy = (logits_BVK.detach().argmax(-1) == labels_BV).sum().to(z_BVD.dtype) / known
            return SupervisedTerms(summed / known, accuracy)

    def _all_labels(self, labels: Tensor | None, z: Tensor) -> Tensor:
        """Labels of the global batch, after checks of them and of the width of `z`."""
        if labels is None:
            raise ValueError("SupervisedLoss needs the labels of the images, int64 (B,), as a second argument")
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
        if labels.shape != z.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({z.shape[0]},), got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if z.shape[2] != self.head.in_features:
            raise ValueError(
                f"embeddings must have dims={self.head.in_features} dimensions, got shape {tuple(z.shape)}"
            )
        labels_B = distributed.gather(labels)
        if self.check_input and not torch.compiler.is_compiling():  # all, so that all processes raise the same error
            wrong = labels_B[(labels_B < UNKNOWN) | (labels_B >= self.classes)]
            if len(wrong):
                raise ValueError(
                    f"{len(wrong)} labels are outside -1 (unknown) to {self.classes - 1}, such as {int(wrong[0])}"
                )
        return labels_B
