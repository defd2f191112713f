"""Linear probe trained by SGD: the linear protocol of the literature, on features that are computed once.

A linear layer from zero on standardised features (He et al. 2022, arXiv:2111.06377, appendix A.1, put a batch
normalisation without parameters there), 100 epochs of SGD with momentum 0.9, batches of 256, no weight decay, a cosine
schedule to 0 (Caron et al. 2021, arXiv:2104.14294; Chen et al. 2021, arXiv:2011.10566, use the like). The learning rate
is the best of seven on a tenth of the training images. Unlike there, the features are those of whole images, without
random crops; so the figure can be a little lower than with them.

Shape suffixes: N images, B images of a batch, F features, C classes, R learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels, exact_float32
from ssole.evaluation.datasets import shuffled_batches, stratified_split
from ssole.evaluation.linear import VALIDATION_SHARE, feature_moments
from ssole.progress import Advance, progress_bar

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates tried, for batches of 256; in proportion for smaller ones."""
EPOCHS, BATCH, MOMENTUM = 100, 256, 0.9


@dataclass(frozen=True, kw_only=True)
class SgdProbe:
    """Linear layer after training; it takes features as they are (standardisation is folded in)."""

    weight: Tensor
    """(C, F) float32."""
    bias: Tensor
    """(C,) float32."""
    rate: float
    """Learning rate of the final training."""
    validation: dict[float, float]
    """Accuracy on the held-out part of train by learning rate; empty when only one was given."""

    def scores(self, features: Tensor) -> Tensor:
        """Class probabilities (N, C) float64 of features (N, F)."""
        check_features(features, "features")
        with exact_float32(features.device):
            return F.linear(features.float(), self.weight, self.bias).softmax(1, dtype=torch.float64)


def sgd_probe(
    train_features: Tensor,
    train_labels: Tensor,
    *,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    num_classes: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SgdProbe:
    """Linear layer trained by SGD, at the learning rate that is best on a held-out part of train.

    All rates are tried at once on 90 % of every class, in equal batches. The one that is best on the other 10 % (the
    smallest of equals) is then trained on all of train. Arguments that are not as below are a ValueError.

    Args:
        train_features: (N, F), floating point, finite; training runs on their device, in float32.
        train_labels: (N,) integers in [0, C), of at least two classes.
        rates, epochs: learning rates to choose from, above 0, and passes over the images.
        num_classes, seed: C, by default the largest label + 1; seed of the hold-out and of the batches.
    """
    check_features(train_features, "train features")
    labels_N, classes = check_labels(train_labels, len(train_features), num_classes)
    if not rates or min(rates) <= 0:
        raise ValueError(f"learning rates are {tuple(rates)}; they must be above 0")
    labels_N = labels_N.to(train_features.device)
    if len(labels_N.unique()) < 2:
        raise ValueError(f"all {len(labels_N)} labels are {int(labels_N[0])}: a classifier needs at least two classes")
    features_NF = train_features.float()
    mean_F, std_F = (moment_F.float() for moment_F in feature_moments(features_NF))
    input_NF = (features_NF - mean_F) / std_F
    validation: dict[float, float] = {}
    with progress_bar("SGD probe", epochs * (1 + (len(rates) > 1)), enabled=progress) as advance:
        if len(rates) > 1:
            fit, held = (part.to(input_NF.device) for part in stratified_split(labels_N, VALIDATION_SHARE, seed=seed))
            weight_RCF, bias_RC = _train(input_NF[fit], labels_N[fit], classes, rates, epochs, seed, advance)
            predicted_RH = torch.baddbmm(bias_RC[:, None], input_NF[held].expand(len(rates), -1, -1), weight_RCF.mT)
            right_R = (predicted_RH.argmax(2) == labels_N[held]).float().mean(1)
            validation = dict(zip(rates, right_R.tolist(), strict=True))
        best = max(rates, key=lambda rate: (validation.get(rate, 0.0), -rate))
        weight_RCF, bias_RC = _train(input_NF, labels_N, classes, [best], epochs, seed, advance)
    weight_CF = weight_RCF[0] / std_F
    return SgdProbe(weight=weight_CF, bias=bias_RC[0] - weight_CF @ mean_F, rate=best, validation=validation)


def _train(
    input_NF: Tensor, labels_N: Tensor, classes: int, rates: Sequence[float], epochs: int, seed: int, advance: Advance
) -> tuple[Tensor, Tensor]:
    """Weights (R, C, F) and biases (R, C) after training at each rate."""
    count, batch = len(input_NF), min(BATCH, len(input_NF))
    per_epoch, generator = count // batch, torch.Generator().manual_seed(seed)
    steps = per_epoch * epochs
    rate_R1 = input_NF.new_tensor(list(rates))[:, None] * batch / BATCH
    weight_RCF = input_NF.new_zeros(len(rates), classes, input_NF.shape[1])
    bias_RC = input_NF.new_zeros(len(rates), classes)
    speeds = torch.zeros_like(weight_RCF), torch.zeros_like(bias_RC)
    with exact_float32(input_NF.device):
        for step, chosen in enumerate(shuffled_batches(count, batch, steps, generator)):
            rows = chosen.to(input_NF.device)
            input_BF, labels_B = input_NF[rows], labels_N[rows]
            error_RBC = torch.baddbmm(bias_RC[:, None], input_BF.expand(len(rates), -1, -1), weight_RCF.mT).softmax(2)
            error_RBC[:, torch.arange(batch, device=rows.device), labels_B] -= 1
            error_RBC /= batch
            gradients = error_RBC.mT @ input_BF, error_RBC.sum(1)  # of the mean cross-entropy of the batch
            now_R1 = rate_R1 * (1 + math.cos(math.pi * step / steps)) / 2
            for value, speed, gradient in zip((weight_RCF, bias_RC), speeds, gradients, strict=True):
                speed.mul_(MOMENTUM).add_(gradient)
                value.sub_(now_R1.view(-1, *[1] * (value.ndim - 1)) * speed)
            if (step + 1) % per_epoch == 0:
                advance()
    return weight_RCF, bias_RC
