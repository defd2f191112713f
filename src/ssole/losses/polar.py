"""G^(1/2) and G^(-1/2) by matrix products only: no host synchronization, and fast wherever matrix products are.

The odd quintic p(s) = a s + b s^3 + c s^5 closest to 1 on [l, u] sends singular values in [l, u] to [1 - e, 1 + e]; the
one closest to 1 on that interval comes next, and so on (Amsel, Persson, Musco and Gower, "The Polar Express", 2025, and
the optimality of such greedy compositions there). In terms of G, with Y -> G^(1/2) and Z -> G^(-1/2), one step is

    R = Z Y,     T = a I + b R + c R^2,     Y <- Y T,     Z <- T Z          (from Y = G, Z = I)

This coupled order is the stable one (Higham, "Functions of Matrices", 2008, section 6.4).

What is certified, before seeing any data: singular values down to `_SMALLEST` of the bound on the largest one arrive at
1 within 1e-12. Smaller ones arrive at slope * s, with slope 8 / _SMALLEST: a soft version of the cutoff of the
minimum-norm subgradient. Rounding errors are amplified by no more than that slope, to 1e-9 in G^(-1/2) A.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Smallest singular value, relative to the bound on the largest, that is brought to 1. float64 Gram matrices hold
# nothing below 1e-8.
_SMALLEST = 1e-6
_CONVERGED = 1e-12


def polar_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """tr(G^(1/2)), (N,), and G^(-1/2), (N, k, k), of float64 positive semidefinite matrices."""
    # The largest eigenvalue is at most each of these norms. Zero matrices stay zero: for them any bound will do.
    row_sums_N = g_Nkk.abs().sum(-1).amax(-1)
    frobenius_N = torch.linalg.vector_norm(g_Nkk, dim=(-2, -1))
    bound_N11 = torch.minimum(row_sums_N, frobenius_N)[:, None, None]
    bound_N11 = torch.where(bound_N11 > 0, bound_N11, 1)
    y_Nkk = g_Nkk / bound_N11
    z_Nkk = torch.eye(g_Nkk.shape[-1], dtype=g_Nkk.dtype, device=g_Nkk.device).expand_as(g_Nkk)
    for a, b, c in _STEPS:
        r_Nkk = z_Nkk @ y_Nkk
        # This is T - a I: the products below add a times their other factor.
        t_Nkk = torch.baddbmm(r_Nkk, r_Nkk, r_Nkk, beta=b, alpha=c)
        y_Nkk, z_Nkk = torch.baddbmm(y_Nkk, y_Nkk, t_Nkk, beta=a), torch.baddbmm(z_Nkk, t_Nkk, z_Nkk, beta=a)
    root_N11 = bound_N11.sqrt()
    trace_N = y_Nkk.diagonal(dim1=-2, dim2=-1).sum(-1) * root_N11[:, 0, 0]
    return trace_N, (z_Nkk + z_Nkk.mT) / (2 * root_N11)


def quintics(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """Coefficients (a, b, c) of the successive quintics that bring [smallest, 1] to 1 within `_CONVERGED`."""
    steps, low, high = [], smallest, 1.0
    while 1 - low > _CONVERGED:
        a, b, c, error = best_quintic(low, high)
        steps.append((a, b, c))
        low, high = 1 - error, 1 + error
    return tuple(steps)


def best_quintic(low: float, high: float) -> tuple[float, float, float, float]:
    """The odd quintic closest to 1 on [low, high], as (a, b, c), and its largest error, by Remez exchange.

    The error of the best one reaches its maximum with alternating sign at four points, both ends and two between, where
    p' = 0.
    """
    if high - low < 1e-3 * high:
        # Here Remez is ill-conditioned, and the Taylor choice is as good: its error is 2.5 (s - 1)^3 to first order.
        return 15 / 8, -10 / 8, 3 / 8, 4 * (high - 1) ** 3
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(100):
        points = zip((low, inner, outer, high), (1, -1, 1, -1), strict=True)
        system = np.array([[s, s**3, s**5, sign] for s, sign in points])
        a, b, c, error = np.linalg.solve(system, np.ones(4)).tolist()
        spread = math.sqrt(9 * b * b - 20 * a * c)
        last = inner, outer
        inner, outer = math.sqrt((-3 * b - spread) / (10 * c)), math.sqrt((-3 * b + spread) / (10 * c))
        if abs(inner - last[0]) + abs(outer - last[1]) < 1e-14 * high:
            break
    return a, b, c, error


_STEPS = quintics(_SMALLEST)  # a constant of a few milliseconds; computed here because torch.compile cannot trace it
