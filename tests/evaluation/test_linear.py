"""The linear probe against scikit-learn, and its choice of the penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssole.evaluation import linear
from ssole.evaluation.datasets import stratified_split
from ssole.evaluation.linear import LinearProbe, linear_probe


def problem(
    n: int = 600, f: int = 10, classes: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    """Correlated features of very different scales, with overlapping classes."""
    labels = torch.randint(classes, (n,))
    features = 0.6 * torch.randn(classes, f)[labels] + torch.randn(n, f)
    mixed = features @ torch.randn(f, f) * torch.logspace(-2, 2, f) + 5
    return mixed.double(), labels


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_fit_is_that_of_scikit_learn(c: float, classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = problem(classes=classes)
    probe = linear_probe(x, y, c=c, tolerance=1e-8)
    standard = StandardScaler().fit_transform(x.numpy())
    # For two classes scikit-learn fits the difference w of the weights and penalises |w|²; a softmax penalises w/2 and
    # -w/2, which is half of that.
    theirs = LogisticRegression(C=2 * c if classes == 2 else c, tol=1e-10, max_iter=10_000)
    reference = theirs.fit(standard, y.numpy())
    assert probe.converged
    np.testing.assert_allclose(probe.scores(x).numpy(), reference.predict_proba(standard), atol=1e-5)


def test_classes_that_can_be_told_apart_are_fitted_to_the_minimum() -> None:
    """There the curvature at the solution is far from that at the start of the fit."""
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    x, y, c, tolerance = torch.tensor(digits[:1000]).float(), torch.tensor(labels[:1000]), 100.0, 1e-4
    probe, exact = linear_probe(x, y, c=c), linear_probe(x.double(), y, c=c, tolerance=1e-8)
    std = x.double().std(0, correction=0)

    def objective(one: LinearProbe) -> float:
        loss = torch.nn.functional.cross_entropy(x.double() @ one.weight.T + one.bias, y)
        return float(loss + (one.weight * std).square().sum() / (2 * len(x) * c))

    assert probe.converged
    assert objective(probe) - objective(exact) < x.shape[1] * 10 * tolerance**2 / 2
    assert torch.equal(probe.scores(x).argmax(1), exact.scores(x).argmax(1))


@pytest.mark.parametrize(("n", "f"), [(600, 10), (20, 50)])
def test_the_gradient_of_the_plain_objective_vanishes(n: int, f: int) -> None:
    x, y = problem(n, f)
    probe = linear_probe(x, y, c=0.1, tolerance=1e-9)
    mean, std = x.mean(0), x.std(0, correction=0)
    weight = (probe.weight * std).requires_grad_()
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    logits = (x - mean) / std @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, y) + weight.square().sum() / (2 * len(x) * 0.1)
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-8


def all_axes(standard: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    variance, axes = torch.linalg.eigh((standard.T @ standard).double() / len(standard))
    return variance, axes


@pytest.mark.parametrize(
    ("dtype", "tolerance", "c", "atol"),
    [
        (torch.float64, 1e-8, 1e-3, 1e-10),
        (torch.float64, 1e-8, 1.0, 1e-8),
        (torch.float64, 1e-7, 100.0, 1e-5),  # closer than that, rounding decides
        (torch.float32, 1e-4, 1.0, 1e-4),
    ],
)
@pytest.mark.parametrize(("n", "f", "distinct"), [(30, 50, 30), (30, 30, 30), (29, 30, 29), (30, 50, 10)])
def test_fewer_images_than_features_come_to_the_same_fit(
    n: int,
    f: int,
    distinct: int,
    dtype: torch.dtype,
    tolerance: float,
    c: float,
    atol: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = problem(n, f)
    x[:, 0] = 3.0  # a constant feature
    x = x[torch.arange(n) % distinct].to(dtype)  # repeated images lower the rank
    probe = linear_probe(x, y, c=c, tolerance=tolerance)
    monkeypatch.setattr(linear, "_principal_axes", all_axes)
    reference = linear_probe(x, y, c=c, tolerance=tolerance)
    assert probe.converged
    assert reference.converged
    for images in (x, x + torch.randn(n, f) * x.std(0)):
        np.testing.assert_allclose(probe.scores(images).numpy(), reference.scores(images).numpy(), rtol=0, atol=atol)


def test_no_decomposition_is_larger_than_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, plain = [], torch.linalg.eigh

    def eigh(matrix: torch.Tensor) -> Any:
        shapes.append(tuple(matrix.shape))
        return plain(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    linear_probe(*problem(30, 50), c=1.0)
    assert shapes == [(30, 30)]


def test_float32_comes_to_the_same_probabilities() -> None:
    x, y = problem()
    wide, narrow = linear_probe(x, y, c=1.0, tolerance=1e-6), linear_probe(x.float(), y, c=1.0)
    assert narrow.converged
    np.testing.assert_allclose(narrow.scores(x.float()).numpy(), wide.scores(x).numpy(), atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_half_precision_are_fitted_in_float32(dtype: torch.dtype) -> None:
    x, y = problem(3)
    half, single = linear_probe(x.to(dtype), y, c=1.0), linear_probe(x.to(dtype).float(), y, c=1.0)
    assert half.converged
    assert torch.equal(half.weight, single.weight)


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    x, y = problem()
    moved = x * torch.logspace(-3, 3, x.shape[1]) + torch.randn(x.shape[1])
    plain, other = (linear_probe(one, y, c=(0.01, 1.0), tolerance=1e-6) for one in (x, moved))
    assert plain.c == other.c
    np.testing.assert_allclose(other.scores(moved).numpy(), plain.scores(x).numpy(), atol=1e-5)


def test_the_penalty_is_chosen_on_held_out_training_images() -> None:
    x, y = problem()
    grid = (1e-4, 1e-2, 1.0)
    probe = linear_probe(x, y, c=grid, seed=3)
    kept, held = stratified_split(y, 0.1, seed=3)
    for c in grid:
        scores = linear_probe(x[kept], y[kept], c=c, tolerance=1e-6).scores(x[held])
        assert probe.validation[c] == pytest.approx((scores.argmax(1) == y[held]).double().mean().item(), abs=0.02)
    best = max(probe.validation.values())
    assert probe.c == min(c for c in grid if probe.validation[c] == best)
    refit = linear_probe(x, y, c=probe.c)
    np.testing.assert_allclose(probe.scores(x).numpy(), refit.scores(x).numpy(), atol=1e-6)


def test_labels_that_mean_nothing_ask_for_a_strong_penalty() -> None:
    x = torch.randn(400, 50)
    noise, clean = (linear_probe(x, y, c=(1e-4, 1.0)) for y in (torch.randint(2, (400,)), (x[:, 0] > 0).long()))
    assert noise.c < clean.c
    assert clean.validation[clean.c] > 0.8


def test_constant_features_give_the_class_shares() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    probe = linear_probe(torch.full((40, 3), 0.1), y, c=1.0)
    np.testing.assert_allclose(probe.scores(torch.zeros(1, 3)).numpy(), [[0.75, 0.25]], atol=1e-3)


def test_a_class_without_training_images_is_never_predicted() -> None:
    x, y = problem(classes=3)
    probe = linear_probe(x, y * 2, c=1.0, num_classes=7)
    scores = probe.scores(x)
    assert scores.shape == (600, 7)
    assert scores[:, [1, 3, 5, 6]].abs().max() == 0
    np.testing.assert_allclose(scores[:, ::2][:, :3].numpy(), linear_probe(x, y, c=1.0).scores(x).numpy(), atol=1e-6)


def test_it_tells_when_it_did_not_converge() -> None:
    x, y = problem()
    assert not linear_probe(x, y, c=1.0, max_iterations=2).converged


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), {}, "all 9 labels are 0"),
        (torch.randn(9, 3), torch.arange(8), {}, "one integer for each of the 9"),
        (torch.randn(9, 3).fill_diagonal_(torch.inf), torch.arange(9), {}, "in 3 of 9 rows, the first being row 0"),
        (torch.randn(9, 3), torch.arange(9), {"c": 0.0}, "must be above 0"),
        (torch.randn(9, 3), torch.arange(9), {"c": ()}, "must be above 0"),
        (torch.randn(9, 3), torch.arange(9), {"c": np.float32("nan")}, "must be above 0 and finite"),
        (torch.randn(9, 3), torch.arange(9), {"c": (1.0, torch.inf)}, "must be above 0 and finite"),
        (torch.randn(9, 3), torch.arange(9), {}, "nothing can be held out: give more images of each class"),
    ],
)
def test_what_cannot_be_fitted_is_named(
    features: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        linear_probe(features, labels, **options)
