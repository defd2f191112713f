"""The LeJEPA loss: views agree, and embeddings are distributed as an isotropic Gaussian.

Shape suffixes: B images, V views, D embedding dimensions, S slices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssole import distributed
from ssole.losses.base import EmbeddingLoss, check_count, check_number


class LeJEPATerms(NamedTuple):
    """Terms of the LeJEPA loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: (1 - sigreg_weight) * invariance + sigreg_weight * sigreg."""
    invariance: Tensor
    """Mean squared deviation of views from their mean."""
    sigreg: Tensor
    """Mean Epps-Pulley statistic of the slices: 1.06 on average for Gaussian embeddings, of the order of B at
    collapse."""


class LeJEPALoss(EmbeddingLoss[LeJEPATerms]):
    r"""Invariance to the mean of views, and SIGReg, sketched isotropic Gaussian regularisation.

        invariance = mean over images, views and dimensions of (z_v - mean over views of z)^2
        sigreg     = mean over views and slices a of B * integral of |phi_a(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt
        total      = (1 - sigreg_weight) * invariance + sigreg_weight * sigreg

    phi_a(t) = mean over images of exp(i t <a, z>) is the empirical characteristic function of a slice, the embeddings
    along a random unit vector a. The integral runs over [-domain, domain], by the trapezoidal rule. Source: Balestriero
    and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics" (arXiv 2511.08544, 2025).
    The mean here is that of all views; the paper takes that of the large crops where there are small ones too.

    Slices are drawn anew in each call, from torch's global generator, which training seeds from the run's seed and the
    step, the same on all processes. Processes agree on the slices also where their generators differ.

    Args:
        sigreg_weight: weight of SIGReg, in [0, 1]; invariance has the rest.
        slices: number of random directions.
        knots: number of points of the trapezoidal rule, at least 2.
        domain: largest t of the integral, above 0.
        check_input: whether to look for NaN and infinity, for which an accelerator must wait.
    """

    def __init__(
        self,
        *,
        sigreg_weight: float = 0.05,
        slices: int = 1024,
        knots: int = 17,
        domain: float = 5.0,
        check_input: bool = True,
    ) -> None:
        super().__init__(check_input=check_input)
        if not 0 <= sigreg_weight <= 1:
            raise ValueError(f"sigreg_weight must be in [0, 1], got {sigreg_weight}")
        self.sigreg_weight = sigreg_weight
        self.slices = check_count("slices", slices, 1)
        self.knots = check_count("knots", knots, 2)
        self.domain = check_number("domain", domain, positive=True)

    def _terms(self, z_BVD: Tensor) -> LeJEPATerms:
        invariance = (z_BVD - z_BVD.mean(1, keepdim=True)).square().mean()
        sigreg = self._sigreg(z_BVD)
        total = (1 - self.sigreg_weight) * invariance + self.sigreg_weight * sigreg
        return LeJEPATerms(total, invariance, sigreg)

    def _sigreg(self, z_BVD: Tensor) -> Tensor:
        # The sum over processes of Gaussian vectors is Gaussian, and the same on all of them.
        slices_DS = distributed.all_reduce(torch.randn(z_BVD.shape[2], self.slices, device=z_BVD.device))
        lengths_S: Tensor = torch.linalg.vector_norm(slices_DS, dim=0)
        x_BVS = z_BVD @ (slices_DS / lengths_S).to(z_BVD.dtype)
        step = 2 * self.domain / (self.knots - 1)
        statistic = x_BVS.new_zeros(())
        # Real embeddings have the same integrand at -t as at t, and none at t = 0.
        for knot in range(self.knots // 2):
            t = self.domain - knot * step
            angles_BVS = x_BVS * t
            gaussian = math.exp(-t * t / 2)
            errors_VS = (angles_BVS.cos().mean(0) - gaussian).square() + angles_BVS.sin().mean(0).square()
            weight = (1 if knot == 0 else 2) * step * gaussian
            statistic = statistic + weight * errors_VS.mean()
        return statistic * len(z_BVD)
