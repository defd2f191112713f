"""Shared parts of the metrics: checks of features and labels, and exact float32 products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ssole.runtime import exact_matrix_products


class NotFiniteError(ValueError):
    """Error for features that hold NaN or infinity."""


def check_features(features: Tensor, what: str) -> None:
    """Check that features are a non-empty, floating-point (N, F), or a ValueError; ``what`` names them in the message.

    NaN or infinity is a NotFiniteError, whose message has the number of such rows and the first.
    """
    _require_tensor(features, what)
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"{what} have shape {tuple(features.shape)} and dtype {features.dtype}; a floating-point (N, F) is needed"
        )
    if not features.numel():
        raise ValueError(f"{what} have shape {tuple(features.shape)}: there is nothing to evaluate")
    if torch.isfinite(features).all():
        return
    bad = (~torch.isfinite(features).all(1)).nonzero()[:, 0]
    raise NotFiniteError(
        f"{what} hold NaN or infinity in {len(bad)} of {len(features)} rows, the first being row {bad[0].item()}: "
        "the model's weights have diverged, or its input was not normalised as in training"
    )


def check_labels(labels: Tensor, length: int, num_classes: int | None) -> tuple[Tensor, int]:
    """Labels of ``length`` images as int64, and the number of classes.

    Another length, a floating-point dtype, or a label outside [0, num_classes) is a ValueError.
    """
    _require_tensor(labels, "labels")
    if labels.shape != (length,) or labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; one integer for each of the {length} "
            "images is needed"
        )
    labels = labels.long()
    lowest, highest = labels.min().item(), labels.max().item()
    classes = num_classes if num_classes is not None else int(highest) + 1
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels range from {lowest} to {highest}; they must be in [0, {classes})")
    return labels, classes


def _require_tensor(given: object, what: str) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} are a {type(given).__name__}; a tensor is needed: torch.as_tensor makes one")


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Context of full float32 products without gradients; the caller's precision settings are ignored inside.

    TF32 or bfloat16 similarities would reorder close neighbours, and stop a solver far from its tolerance.
    """
    with exact_matrix_products(device), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
