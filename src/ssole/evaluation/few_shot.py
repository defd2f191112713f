"""Few-shot classification: nearest class mean from a few labelled images of every class.

SimpleShot (Wang et al. 2019, arXiv:1911.04623), the variant CL2N: features minus their mean over the train images,
scaled to unit length; a test image gets the class whose mean of the drawn images is nearest. Every episode has all
classes.

Shape suffixes: N training images, Q test images, C classes, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels, exact_float32
from ssole.evaluation.datasets import shuffled_classes
from ssole.progress import progress_bar

EPISODES = 20
INTERVAL = 2.093 / EPISODES**0.5
"""Half of the 95 % interval of a mean over the episodes, in standard deviations: Student's t of 19."""


def few_shot_accuracies(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: int,
    episodes: int = EPISODES,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Accuracy on all test images in each episode, which draws ``shots`` training images of every class at random.

    Features are (N, F) and (Q, F), floating point and finite; labels are (N,) and (Q,) integers. A test image of
    a class that train lacks counts as wrong. A class of fewer images is a ValueError.
    """
    check_features(train_features, "train features")
    check_features(test_features, "test features")
    labels_N, _ = check_labels(train_labels, len(train_features), None)
    present, labels_N, counts = labels_N.cpu().unique(return_inverse=True, return_counts=True)
    if shots < 1 or shots > int(counts.min()):
        raise ValueError(f"{shots} images of every class are to be drawn, and the smallest has {int(counts.min())}")
    truth_Q = check_labels(test_labels, len(test_features), None)[0].cpu()
    generator, accuracies = torch.Generator().manual_seed(seed), []
    with exact_float32(train_features.device), progress_bar(f"{shots}-shot", episodes, enabled=progress) as advance:
        mean_F = train_features.mean(0)
        train_NF, test_QF = (F.normalize(x.float() - mean_F, dim=1) for x in (train_features, test_features))
        for _ in range(episodes):
            drawn = torch.stack([members[:shots] for members in shuffled_classes(labels_N, generator)])  # (C, shots)
            centre_CF = train_NF[drawn.to(train_NF.device)].mean(1)
            nearest_Q = (test_QF @ centre_CF.T - centre_CF.square().sum(1) / 2).argmax(1).cpu()
            accuracies.append(int((present[nearest_Q] == truth_Q).sum()) / len(truth_Q))
            advance()
    return accuracies
