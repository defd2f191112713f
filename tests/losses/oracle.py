"""Independent SSOLE oracle in float64: SVDs and the plain formulas, without any line of the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polar_factor(x: Tensor) -> Tensor:
    """Polar factor U V^T over the non-zero singular values: the minimum-norm subgradient of the nuclear norm."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * (s > 1e-11 * s[..., :1])[..., None, :]) @ vh


def norm(x: Tensor) -> Tensor:
    """Nuclear norm as tr(P^T X) with P constant, which has the same value and gradient."""
    return (polar_factor(x.detach()) * x).sum((-2, -1))


def kernel_norm(x: Tensor, temperature: float) -> Tensor:
    """tr K^(1/2) by eigenvalues, with the kernel written as its definition."""
    k = (torch.exp(x @ x.mT / temperature) - 1) / (math.exp(1 / temperature) - 1)
    return torch.linalg.eigvalsh(k).clamp(min=0).sqrt().sum(-1)


def oracle_terms(
    z: Tensor,
    weight: float = 0.6,
    gamma: float = 0.5,
    *,
    normalize: bool = True,
    temperature: float | None = None,
) -> dict[str, Tensor]:
    z = z.double()
    if normalize:
        z = z / z.norm(dim=-1, keepdim=True)
    b, v, _ = z.shape
    n = norm(z - z.mean(1, keepdim=True))
    views = z.transpose(0, 1)
    r = norm(views) if temperature is None else kernel_norm(views, temperature)
    c1 = ((b / r) ** 2 - 1) / (b - 1)
    c2 = (b * torch.cos(torch.asin(r / b) - math.asin(1 / math.sqrt(b))) ** 2 - 1) / (b - 1)
    low, high = (n / (v - 1)).square().mean(), (gamma * c1 + (1 - gamma) * c2).mean()
    return {
        "total": low + weight * high,
        "low_rank": low,
        "high_rank": high,
        "mean_low_nuclear": n.mean(),
        "mean_high_nuclear": r.mean(),
    }


def gradient(loss, z: Tensor) -> Tensor:
    leaf = z.detach().clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def embeddings(
    b: int, v: int, d: int, *, seed: int = 0, spread: float = 0.5, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Embeddings (b, v, d), not normalized: images in random directions, views around them."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(b, 1, d, generator=g, dtype=torch.float64)
    return (common + spread * torch.randn(b, v, d, generator=g, dtype=torch.float64)).to(dtype)


def with_condition(m: int, n: int, kappa: float, *, seed: int = 0) -> Tensor:
    """Float64 matrix (m, n) with singular values spaced geometrically from 1 to 1 / kappa."""
    g = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u = torch.linalg.qr(torch.randn(m, k, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64)).Q
    return (u * torch.logspace(0, -math.log10(kappa), k, dtype=torch.float64)) @ v.mT
