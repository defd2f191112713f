"""Linear probe: a linear classifier of frozen features.

Multinomial logistic regression with an l2 penalty, the objective of scikit-learn's ``LogisticRegression``:
over weights W (F, C) and biases b (C,), where c is the inverse penalty (their ``C``) and x is standardised:

    mean_n [ logsumexp(x_n W + b) - (x_n W + b)_{y_n} ]  +  |W|² / (2 N c)

The objective is convex, so it has one minimum, and L-BFGS finds it. Features of a network are strongly correlated,
which costs plain L-BFGS hundreds of steps. So the solver uses coordinates in which the objective is nearly round: the
principal axes of x, each divided by the square root of an estimate of the curvature along it. The minimum is the same.

With two classes, scikit-learn has a single vector of weights, the difference of the two here: c is then half its ``C``.

Shape suffixes: N images, F features, C classes, K principal axes: the smaller of N and F.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels, exact_float32
from ssole.evaluation.datasets import stratified_split
from ssole.progress import Advance, progress_bar

C_GRID = tuple(10.0 ** (power / 2) for power in range(-10, 5))
"""Inverse penalties tried by default: 1e-5 to 100 in half decades."""
VALIDATION_SHARE = 0.1
"""Share of each training class on which the inverse penalty is chosen."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Fitted linear probe; ``weight`` and ``bias`` apply to features as they are (standardisation is folded in)."""

    weight: Tensor
    """(C, F) float64. The row of a class without training images is zero."""
    bias: Tensor
    """(C,) float64, -inf for a class without training images."""
    c: float
    """Inverse penalty of the fit."""
    converged: bool
    """Whether the gradient fell below the tolerance before the limit on iterations, in the final fit."""
    iterations: int
    """L-BFGS iterations, the sweep included."""
    validation: dict[float, float]
    """Accuracy on the held-out part of train by inverse penalty; empty when only one was given."""

    def scores(self, features: Tensor) -> Tensor:
        """Class probabilities (N, C), float64, of features (N, F)."""
        check_features(features, "features")
        return _logits(features, self.weight, self.bias).softmax(1)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    *,
    c: float | Sequence[float] = C_GRID,
    num_classes: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    progress: bool = False,
) -> LinearProbe:
    """Linear probe, fitted with the inverse penalty that is best on a held-out part of train.

    Values of ``c`` are tried in ascending order on 90 % of every class; each fit starts from the solution of the last.
    The value that is best on the other 10 % (the smallest of equals) is fitted on all of train. Arguments that are not
    as below are a ValueError.

    Args:
        train_features: (N, F), floating point, finite; the fit runs on their device, in float32 (float64 if they are).
        train_labels: (N,) integers in [0, C), of at least two classes.
        c: inverse penalties to choose from, or a single one, above 0 and finite.
        num_classes, seed: C, by default the largest label + 1; seed of the stratified hold-out.
        tolerance: largest entry of the preconditioned gradient at convergence.
        max_iterations: limit for each fit.
    """
    check_features(train_features, "train features")
    labels_N, classes = check_labels(train_labels, len(train_features), num_classes)
    grid = tuple(sorted(float(value) for value in (c if isinstance(c, Iterable) else (c,))))
    if not grid or not all(0 < value < math.inf for value in grid):
        raise ValueError(f"inverse penalties are {grid}; they must be above 0 and finite")
    present, labels_N = labels_N.to(train_features.device).unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"all {len(labels_N)} labels are {present.item()}: a classifier needs at least two classes")
    limits = (tolerance, max_iterations)
    with progress_bar("linear probe", len(grid) + 1, enabled=progress) as advance:
        validation, iterations = _validate(train_features, labels_N, grid, seed, limits, advance)
        best = max(grid, key=lambda value: (validation.get(value, 0.0), -value))
        final = _Logistic(train_features, labels_N)
        iterations += final.solve(best, *limits)
    weight_CF, bias_C = final.classifier()
    return LinearProbe(
        weight=weight_CF.new_zeros(classes, weight_CF.shape[1]).index_copy(0, present, weight_CF),
        bias=bias_C.new_full((classes,), -torch.inf).index_copy(0, present, bias_C),
        c=best,
        converged=final.converged,
        iterations=iterations,
        validation=validation,
    )


def _validate(
    features_NF: Tensor, labels_N: Tensor, grid: Sequence[float], seed: int, limits: tuple[float, int], advance: Advance
) -> tuple[dict[float, float], int]:
    """Accuracy by inverse penalty on a held-out part, and the number of iterations of all fits."""
    if len(grid) == 1:
        return {}, 0
    fit, held = (part.to(labels_N.device) for part in stratified_split(labels_N, VALIDATION_SHARE, seed=seed))
    trial = _Logistic(features_NF[fit], labels_N[fit])
    validation, iterations = {}, 0
    for value in grid:
        iterations += trial.solve(value, *limits)
        validation[value] = trial.accuracy(features_NF[held], labels_N[held])
        advance()
    return validation, iterations


class _Logistic:
    """Objective of the probe on some images, and its current solution.

    ``solution_GC`` (K + 1, C) holds the weights in principal axes; the last row is the bias.
    """

    def __init__(self, features_NF: Tensor, labels_N: Tensor) -> None:
        features_NF = features_NF.to(torch.promote_types(features_NF.dtype, torch.float32))
        with exact_float32(features_NF.device):
            self.mean_F, self.std_F = feature_moments(features_NF)
            standard_NF = (features_NF - self.mean_F.to(features_NF.dtype)) / self.std_F.to(features_NF.dtype)
            variance_K, self.axes_FK = _principal_axes(standard_NF)
            self.inputs_NK = standard_NF @ self.axes_FK.to(standard_NF.dtype)
        self.labels_N1 = labels_N[:, None]
        self.variance_G = torch.cat([variance_K.clamp_min(0), variance_K.new_ones(1)])  # 1: the bias's constant input
        self.classes = int(labels_N.max()) + 1
        # Columns are padded to a multiple of 16: products of so few columns then run 2 to 4 times as fast.
        self.padded = -(-self.classes // 16) * 16
        self.solution_GC = variance_K.new_zeros(len(self.variance_G), self.classes)
        self.converged = False

    def solve(self, c: float, tolerance: float, max_iterations: int) -> int:
        """Move the solution to the minimum for inverse penalty ``c``, and return the number of iterations.

        At convergence the curvature is near 1, so the objective is within about F C tolerance² / 2 of its minimum. That
        holds for coordinates measured at the solution: those measured far from it may not be round there.
        """
        done = more = self._descend(c, tolerance, max_iterations)
        while more and self.converged and done < max_iterations:
            more = self._descend(c, tolerance, max_iterations - done)
            done += more
        return done

    def _descend(self, c: float, tolerance: float, max_iterations: int) -> int:
        """Move the solution until the gradient vanishes in coordinates measured at the start; number of iterations."""
        penalty_G1 = torch.full_like(self.variance_G, 1 / (len(self.labels_N1) * c))[:, None]
        penalty_G1[-1] = 0
        # The diagonal of the Hessian is about (mean of p (1 - p)) x variance + penalty. The mean is clamped to that of
        # one undecided image in a million, which keeps the scale of the bias finite.
        probability_NC = self._forward(self.solution_GC)[1]
        curvature_C = (probability_NC * (1 - probability_NC)).mean(0, dtype=torch.float64).clamp_min(1e-6)
        scale_GC = (self.variance_G[:, None] * curvature_C + penalty_G1).rsqrt()

        # SciPy's L-BFGS-B does as well by itself, but its BLAS keeps a second pool of threads spinning beside torch's,
        # which made each step of a small problem 20 times as slow.
        point_GC = (self.solution_GC / scale_GC).requires_grad_()
        solver = torch.optim.LBFGS(
            [point_GC],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=1.0,  # the objective is in units of the tolerance
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        # torch's solver ignores a step when the inner product of its changes of gradient and point is below 1e-10, and
        # would crawl towards a tight tolerance.
        def objective() -> float:
            weight_GC = point_GC.detach() * scale_GC
            loss, gradient_GC = self._loss(weight_GC)
            point_GC.grad = (gradient_GC + penalty_G1 * weight_GC) * scale_GC / tolerance
            return float(loss + (penalty_G1 * weight_GC.square()).sum() / 2) / tolerance

        solver.step(objective)
        objective()  # gradient at the solution; the line search may have tried another point last
        self.solution_GC = point_GC.detach() * scale_GC
        self.converged = point_GC.grad is not None and bool(point_GC.grad.abs().max() <= 1)
        return int(solver.state[point_GC]["n_iter"])

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weights (C, F) and biases (C,) for features as they are, float64."""
        weight_CF = (self.axes_FK @ self.solution_GC[:-1]).T / self.std_F
        return weight_CF, self.solution_GC[-1] - weight_CF @ self.mean_F

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy of the current solution on other images."""
        return int((_logits(features, *self.classifier()).argmax(1) == labels).sum()) / len(labels)

    def _forward(self, weight_GC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (float64 scalar) and class probabilities (N, C) of weights (K + 1, C)."""
        with exact_float32(weight_GC.device):
            padded_GP = F.pad(weight_GC, (0, self.padded - self.classes)).to(self.inputs_NK.dtype)
            logits_NC = torch.addmm(padded_GP[-1], self.inputs_NK, padded_GP[:-1])[:, : self.classes]
            log_NC = logits_NC.log_softmax(1)
            return -log_NC.gather(1, self.labels_N1).mean(dtype=torch.float64), log_NC.exp_()

    def _loss(self, weight_GC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and its gradient (K + 1, C), both float64."""
        loss, residual_NC = self._forward(weight_GC)
        residual_NC.scatter_add_(1, self.labels_N1, residual_NC.new_full((1, 1), -1.0).expand_as(self.labels_N1))
        with exact_float32(weight_GC.device):
            padded_NP = F.pad(residual_NC, (0, self.padded - self.classes))
            gradient_KC = (padded_NP.T @ self.inputs_NK)[: self.classes].T
        gradient_GC = torch.cat([gradient_KC.double(), residual_NC.sum(0, dtype=torch.float64)[None]])
        return loss, gradient_GC / len(residual_NC)


def _principal_axes(standard_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (K,) along the principal axes (F, K) of standardised features, both float64.

    With fewer images than features, the axes span the images alone. The weights at the minimum lie in that span:
    a part outside of it changes no logit and adds to the penalty.
    """
    images, features = standard_NF.shape
    if images >= features:
        variance_F, axes_FF = torch.linalg.eigh((standard_NF.T @ standard_NF).double() / images)
        return variance_F, axes_FF
    # With X^T = Q R, the covariance is Q (R R^T / N) Q^T. Q is orthonormal whatever the rank of X.
    basis_FN, triangle_NN = torch.linalg.qr(standard_NF.T.double())
    variance_N, rotation_NN = torch.linalg.eigh(triangle_NN @ triangle_NN.T / images)
    return variance_N, basis_FN @ rotation_NN


def _logits(features_NF: Tensor, weight_CF: Tensor, bias_C: Tensor) -> Tensor:
    """Logits (N, C) float64, computed in blocks to bound the memory of the float64 copy."""
    blocks = [torch.addmm(bias_C, block.double(), weight_CF.T) for block in torch.split(features_NF, 8192)]
    return torch.cat(blocks)


def feature_moments(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (F,) float64 of each feature; the deviation of a constant feature is set to 1."""
    mean_F = features_NF.mean(0, dtype=torch.float64)
    std_F = (features_NF - mean_F.to(features_NF.dtype)).square().mean(0, dtype=torch.float64).sqrt()
    # Below this, the feature is constant and varies by rounding alone.
    rounding = 8 * torch.finfo(features_NF.dtype).eps * mean_F.abs()
    return mean_F, std_F.where(std_F > rounding, 1.0)
