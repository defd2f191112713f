"""Inverse roots: the table of steps, matrix products alone, and closed forms up to 3 x 3."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from oracle import gradient, polar_factor, relative, with_condition

from ssole import losses
from ssole.losses import SSOLELoss, roots
from ssole.losses.roots import POLAR_STEPS, frobenius_root, inverse_root, polar_root

SMALLEST, CONVERGED = 1e-6, 1e-12


def best_quintic(low: float, high: float) -> tuple[float, float, float, float]:
    """Odd quintic closest to 1 on [low, high], as (a, b, c), and its largest error, by Remez exchange.

    The error of the best one reaches its maximum with alternating sign at four points: both ends, and two points
    between where p' = 0.
    """
    if high - low < 1e-3 * high:
        # Here Remez is ill-conditioned, and the Taylor choice is as good: its error is 2.5 (s - 1)^3 to first order.
        return 15 / 8, -10 / 8, 3 / 8, 4 * (high - 1) ** 3
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(100):
        points = zip((low, inner, outer, high), (1, -1, 1, -1), strict=True)
        system = np.array([[s, s**3, s**5, sign] for s, sign in points])
        a, b, c, error = np.linalg.solve(system, np.ones(4)).tolist()
        half_distance = math.sqrt(9 * b * b - 20 * a * c)
        last = inner, outer
        inner, outer = math.sqrt((-3 * b - half_distance) / (10 * c)), math.sqrt((-3 * b + half_distance) / (10 * c))
        if abs(inner - last[0]) + abs(outer - last[1]) < 1e-14 * high:
            break
    return a, b, c, error


def quintics(smallest: float) -> list[tuple[float, float, float]]:
    """Coefficients (a, b, c) of the successive quintics that bring [smallest, 1] to 1 within `CONVERGED`."""
    steps, low, high = [], smallest, 1.0
    while 1 - low > CONVERGED:
        a, b, c, error = best_quintic(low, high)
        steps.append((a, b, c))
        low, high = 1 - error, 1 + error
    return steps


def test_the_table_of_steps_is_what_the_solver_finds():
    np.testing.assert_allclose(POLAR_STEPS, quintics(SMALLEST), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.0), (0.05, 1.9), (0.5, 1.5), (0.9, 1.1)])
def test_best_quintic_equioscillates(low, high):
    a, b, c, error = best_quintic(low, high)
    s = torch.linspace(low, high, 200_001, dtype=torch.float64)
    deviation = 1 - (a * s + b * s**3 + c * s**5)
    assert deviation.abs().max().item() == pytest.approx(error, rel=1e-3)
    # Chebyshev: four alternating extremes of equal size make it the best.
    signs = torch.sign(deviation[deviation.abs() > error * (1 - 1e-3)])
    assert [sign for sign, _ in itertools.groupby(signs.tolist())] == [1, -1, 1, -1]


def test_steps_bring_every_singular_value_to_one():
    s = torch.logspace(-6, 0, 100_001, dtype=torch.float64)
    for a, b, c in POLAR_STEPS:
        s = a * s + b * s**3 + c * s**5
    assert (s - 1).abs().max() < 1e-11
    assert len(POLAR_STEPS) <= 13


@pytest.mark.parametrize("k", [3, 7, 40])
@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e4, 1e6])
def test_against_eigh(k, kappa):
    x = with_condition(k, 2 * k, kappa)
    g = (x @ x.mT)[None]
    trace, root = polar_root(g)
    assert trace.item() == pytest.approx(torch.linalg.svdvals(x).sum().item(), rel=1e-9)
    assert torch.equal(root, root.mT)
    # Forming G alone costs 1e-16 kappa^2.
    assert relative(root[0] @ x, polar_factor(x)) < 1e-11 + 1e-15 * kappa**2


def test_null_modes_stay_out_and_zero_stays_zero():
    x = torch.ones(5, 8, dtype=torch.float64)
    g = torch.stack([x @ x.mT, torch.zeros(5, 5, dtype=torch.float64)])
    trace, root = polar_root(g)
    assert trace[1] == 0
    assert root.isfinite().all()
    assert relative(root[0] @ x, x / x.norm()) < 1e-8


def test_loss_by_matrix_products_gives_the_same(monkeypatch):
    z = torch.randn(24, 6, 32, generator=torch.Generator().manual_seed(0))
    value, its_gradient = SSOLELoss()(z), gradient(SSOLELoss(), z)
    taken = []

    def route(g):
        taken.append(g.shape)
        return polar_root(g) if g.shape[-1] > 3 else inverse_root(g)

    for module in (losses.nuclear, losses.ssole):
        monkeypatch.setattr(module, "inverse_root", route)
    torch.testing.assert_close(SSOLELoss()(z), value, rtol=1e-7, atol=0)
    assert relative(gradient(SSOLELoss(), z), its_gradient) < 1e-6
    assert (6, 24, 24) in taken
    assert (24, 5, 5) in taken


@pytest.mark.parametrize("size", [1, 2, 3, 4, 130])
@pytest.mark.parametrize("root", [inverse_root, frobenius_root, polar_root])
def test_nan_stays_nan(size, root, monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", lambda g: (g[..., 0], g.clone()))  # as a LAPACK that raises no error
    norms, _ = root(torch.full((2, size, size), torch.nan, dtype=torch.float64))
    assert norms.isnan().all()


def test_large_batches_have_a_loss_in_inference_mode():
    z = torch.randn(130, 2, 150)
    expected = SSOLELoss()(z)
    with torch.inference_mode():
        assert SSOLELoss()(z) == expected


def test_threads_are_as_before_after_an_error_in_one(monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(roots, "_root_eigh_in_this_thread", fail)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(torch.linalg.LinAlgError):
            inverse_root(torch.eye(130, dtype=torch.float64).expand(2, -1, -1))
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:  # a new thread takes the setting that was made last
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


# --- closed forms


def with_singular_values(values: list[float], n: int = 64, columns: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (n, k, columns) with these singular values in random directions, and their exact polar factors."""
    generator, k = torch.Generator().manual_seed(0), len(values)
    left, right = (
        torch.linalg.qr(torch.randn(n, rows, k, generator=generator, dtype=torch.float64)).Q for rows in (k, columns)
    )
    s = torch.tensor(values, dtype=torch.float64)
    return (left * s) @ right.mT, (left * (s > 0)) @ right.mT


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, 0.25],
        [1, 1, 1],
        [1, 1, 0.5],
        [1, 0.5, 0.5],
        [1, 1 - 1e-7, 1 - 2e-7],
        [1, 1 - 1e-15, 1 - 3e-15],
        [1, 1 - 1e-9, 1e-5],
        [1, 1e-5, 1e-5 * (1 + 1e-7)],
        [1, 1e-3, 1e-6],
        [1, 1, 1e-6],
        [1, 1e-6, 1e-6],
        [1, 0.5, 0],
        [1, 1, 0],
        [1, 1e-3, 0],
        [1, 0, 0],
        [1, 0.3],
        [1, 1],
        [1, 1e-6],
        [1, 0],
        [1],
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-35, 1e37])
def test_closed_forms_against_exact_factors(values: list[float], scale: float):
    x, polar = with_singular_values(values)
    x = scale * x
    norms, root = inverse_root(x @ x.mT)
    kappa = max(values) / min(value for value in values if value > 0)
    torch.testing.assert_close(norms, torch.full_like(norms, scale * sum(values)), rtol=1e-13 + 1e-15 * kappa, atol=0)
    errors = torch.linalg.vector_norm(root @ x - polar, dim=(1, 2))
    assert errors.max() < 1e-13 + 1e-15 * kappa**2  # forming G alone costs 1e-16 kappa^2


@pytest.mark.parametrize("k", [1, 2, 3])
def test_closed_forms_of_zero_and_of_diagonal_matrices(k: int):
    g = torch.stack([torch.zeros(k, k), torch.eye(k), torch.diag(torch.tensor([4.0, 9.0, 0.0])[:k])]).double()
    norms, root = inverse_root(g)
    assert norms.tolist() == pytest.approx([0, k, [2, 5, 5][k - 1]])
    expected = torch.stack([g[0], g[1], torch.diag(torch.tensor([1 / 2, 1 / 3, 0.0])[:k]).double()])
    torch.testing.assert_close(root, expected)
