"""SSOLELoss against golden vectors, an independent oracle, central differences, closed cases and bad input."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import embeddings, gradient, oracle_terms, relative

from ssole import losses
from ssole.config import SSOLEConfig
from ssole.losses import SSOLELoss
from ssole.losses.ssole import collapse, mixed_batches

GOLDEN = Path(__file__).parent.parent / "golden" / "ssole_loss.npz"
TERMS = ("total", "low_rank", "high_rank", "mean_low_nuclear", "mean_high_nuclear")
too_many_rows = pytest.mark.filterwarnings("ignore:The high-rank term has")


def orthonormal(rows: int, dims: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64)).Q[:rows]


@pytest.fixture(autouse=True, params=["small", "large"])
def products(request, monkeypatch):
    """Both ways to choose the precision of products, so that small input also runs as large input does."""
    if request.param == "large":
        monkeypatch.setattr(losses.kernels, "_SMALL", 0)


# --- value and gradient


@too_many_rows
@pytest.mark.parametrize("case", range(5))
def test_golden(case):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        assert golden["n_cases"] == 5
        known = {name: torch.from_numpy(golden[f"case{case}_{name}"]) for name in (*TERMS[1:], "total", "z", "grad")}
        weight, gamma = float(golden[f"case{case}_high_rank_weight"]), float(golden[f"case{case}_gamma"])
    loss = SSOLELoss(weight, gamma, normalize=False)  # the rows have unit length; gradients are of the plain formula
    terms = loss.terms(known["z"])
    for name in TERMS:
        torch.testing.assert_close(getattr(terms, name), known[name], rtol=1e-10, atol=0)
    assert relative(gradient(loss, known["z"]), known["grad"]) < 1e-8
    # float32 takes another route, except where rows outnumber dimensions.
    assert relative(gradient(loss, known["z"].float()), known["grad"]) < 1e-5


SHAPES = [(2, 2, 4), (2, 3, 2), (8, 2, 16), (12, 3, 12), (16, 4, 20), (9, 8, 24), (10, 12, 16), (12, 4, 5), (6, 8, 4)]


@too_many_rows
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weight", "gamma"), [(0.6, 0.5), (1.5, 0.0), (0.0, 1.0)])
def test_against_the_oracle(shape, weight, gamma):
    z = embeddings(*shape)
    expected = oracle_terms(z, weight, gamma)
    expected_gradient = gradient(lambda x: oracle_terms(x, weight, gamma)["total"], z)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        loss = SSOLELoss(weight, gamma)
        terms = loss.terms(z.to(dtype))
        for name in TERMS:
            torch.testing.assert_close(
                getattr(terms, name).double(),
                expected[name],
                rtol=tolerance / 10,
                atol=1e-7 if dtype == torch.float32 else 1e-14,
            )
        assert relative(gradient(loss, z.to(dtype)), expected_gradient) < tolerance


@too_many_rows
@pytest.mark.parametrize("shape", [(4, 2, 6), (5, 3, 4), (3, 4, 8)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False},
        {"form": "raw"},
        {"low_rank_features": "raw"},
        {"coupled": True},
        {"detach_mean": True},
        {"temperature": 0.3},
        {"low_rank_norm": "frobenius"},
        {"low_rank_norm": "frobenius", "normalize": False, "form": "raw"},
        {"groupings": 3, "temperature": 0.3},
        {"groupings": 2, "normalize": False, "form": "raw"},
        {"temperature": 2.0, "coupled": True, "gamma": 1.0},
        {"form": "raw", "low_rank_features": "raw", "coupled": True},
    ],
    ids=str,
)
def test_central_differences(shape, options):
    z = embeddings(*shape)
    if not options.get("normalize", True):
        z = 0.7 * z / z.norm(dim=-1, keepdim=True)
    loss = SSOLELoss(**options)
    assert torch.autograd.gradcheck(loss, (z.requires_grad_(),))
    # float32 takes another route.
    assert relative(gradient(loss, z.float()), gradient(loss, z)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 4.0])
def test_temperature_against_the_oracle(shape, temperature):
    z = embeddings(*shape) + 1  # so that images are close enough for small temperatures
    expected = oracle_terms(z, temperature=temperature)
    expected_gradient = gradient(lambda x: oracle_terms(x, temperature=temperature)["total"], z)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        loss = SSOLELoss(temperature=temperature)
        terms = loss.terms(z.to(dtype))
        for name in TERMS:
            torch.testing.assert_close(
                getattr(terms, name).double(),
                expected[name],
                rtol=tolerance,
                atol=1e-6 if dtype.itemsize == 4 else 1e-11,
            )
        assert relative(gradient(loss, z.to(dtype)), expected_gradient) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@too_many_rows
def test_the_frobenius_norm_is_one_minus_the_mean_cosine_of_two_views(shape, dtype):
    z = embeddings(*shape)
    views = shape[1]

    def low_rank(x):
        unit = x.double() / x.double().norm(dim=-1, keepdim=True)
        cosines = torch.stack([(unit[:, v] * unit[:, w]).sum(-1) for v in range(views) for w in range(v)])
        return 1 - cosines.mean()

    loss = SSOLELoss(0.0, low_rank_norm="frobenius")
    terms = loss.terms(z.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert terms.low_rank == pytest.approx(float(low_rank(z)), rel=tolerance)
    n_B = torch.linalg.matrix_norm(torch.nn.functional.normalize(z, dim=-1) - unit_mean(z))
    assert terms.mean_low_nuclear == pytest.approx(float(n_B.mean()), rel=tolerance)
    assert relative(gradient(loss, z.to(dtype)), gradient(low_rank, z)) < tolerance
    if views == 2:  # the deviations of two views have one direction, in which both norms agree
        both = [SSOLELoss(low_rank_norm=norm).terms(z.to(dtype)).total for norm in ("nuclear", "frobenius")]
        torch.testing.assert_close(*both)


def unit_mean(z):
    return torch.nn.functional.normalize(z, dim=-1).mean(1, keepdim=True)


def test_both_norms_agree_at_one_common_cosine():
    cosine, rows = 0.3, orthonormal(5, 12)
    z = (math.sqrt(cosine) * rows[:1] + math.sqrt(1 - cosine) * rows[1:])[None].repeat(2, 1, 1)
    z[1] = z[0] @ orthonormal(12, 12)
    for norm in ("nuclear", "frobenius"):
        assert SSOLELoss(low_rank_norm=norm).terms(z).low_rank == pytest.approx(1 - cosine, rel=1e-12)


def test_a_high_temperature_is_the_published_loss():
    z = embeddings(6, 3, 16)
    errors = [relative(gradient(SSOLELoss(temperature=t), z), gradient(SSOLELoss(), z)) for t in (10.0, 100.0, 1000.0)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-2


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_keeps_both_ends(temperature, dtype):
    loss = SSOLELoss(temperature=temperature)
    equal = torch.ones(6, 2, 4, dtype=dtype, requires_grad=True)
    assert float(loss.terms(equal.detach()).high_rank) == pytest.approx(1, abs=1e-5)
    orthogonal = torch.eye(6, dtype=dtype)[:, None].repeat(1, 2, 1).requires_grad_()
    assert float(loss.terms(orthogonal.detach()).high_rank) == pytest.approx(0, abs=1e-6)
    for z in (equal, orthogonal):
        loss(z).backward()
        assert z.grad.isfinite().all()


def test_temperature_lets_more_images_than_dimensions_spread():
    """On a circle r is at most sqrt(2 B) without a temperature, and there is no warning with one."""
    angles = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    z = torch.stack([angles.cos(), angles.sin()], -1)[:, None].repeat(1, 2, 1)
    norms = [SSOLELoss(temperature=t).terms(z).mean_high_nuclear for t in (1e4, 0.1, 1e-3)]
    assert norms[0] == pytest.approx(math.sqrt(2 * 64), rel=1e-2)
    assert norms[0] < norms[1] < norms[2] < 64.001


@too_many_rows
@pytest.mark.parametrize("shape", [(200, 2, 256), (200, 3, 150)])
def test_large_batch_against_the_oracle(shape):
    z = embeddings(*shape, dtype=torch.float32)
    assert relative(gradient(SSOLELoss(), z), gradient(lambda x: oracle_terms(x)["total"], z.double())) < 1e-5
    expected = gradient(lambda x: oracle_terms(x, temperature=0.2)["total"], z.double())
    assert relative(gradient(SSOLELoss(temperature=0.2), z), expected) < 1e-5


@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("normalize", [True, False])
def test_float32_gradient_holds_up_to_condition_1e4(kappa, normalize):
    b, v, d = 24, 4, 40
    spectrum = torch.logspace(0, -math.log10(kappa), b, dtype=torch.float64)
    common = orthonormal(b, b) @ torch.diag(spectrum) @ orthonormal(b, d)
    z = torch.stack([common @ orthonormal(d, d) for _ in range(v)], 1).float()
    if not normalize:
        z *= b / 2  # rows near unit length, where the formulas have slope
    loss = SSOLELoss(normalize=normalize)
    assert relative(gradient(loss, z), gradient(loss, z.double())) < 1e-4


@pytest.mark.parametrize("v", [2, 3, 4, 8])
@pytest.mark.parametrize("closeness", [1e-2, 1e-4])
def test_float32_gradient_of_views_close_together(v, closeness):
    z = embeddings(6, v, 32, spread=closeness).float()
    loss = SSOLELoss(0.0)
    assert relative(gradient(loss, z), gradient(loss, z.double())) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input(dtype):
    z = embeddings(8, 4, 16, dtype=dtype)
    value = SSOLELoss()(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, SSOLELoss()(z.float()))
    its_gradient = gradient(SSOLELoss(), z)
    assert its_gradient.dtype == dtype
    assert relative(its_gradient, gradient(SSOLELoss(), z.float())) < 2 * torch.finfo(dtype).eps


def test_autocast_changes_nothing():
    z = embeddings(8, 4, 16, dtype=torch.float32)
    leaf = z.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SSOLELoss()(leaf)
        value.backward()
    assert torch.equal(value, SSOLELoss()(z))
    assert torch.equal(leaf.grad, gradient(SSOLELoss(), z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differentiating_twice_raises(dtype):
    z = embeddings(4, 2, 8, dtype=dtype).requires_grad_()
    (first,) = torch.autograd.grad(SSOLELoss()(z), z, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.square().sum().backward()


# --- invariances


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invariances(dtype):
    z = embeddings(10, 4, 12, dtype=dtype)
    loss = SSOLELoss()
    images, views = torch.randperm(10), torch.randperm(4)
    rotation = orthonormal(12, 12).to(dtype)
    lengths = torch.rand(10, 4, 1, dtype=dtype) + 0.1
    g = gradient(loss, z)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for moved, expected in (
        (z[images], g[images]),
        (z[:, views], g[:, views]),
        (z @ rotation, g @ rotation),
        (z * lengths, g / lengths),
    ):
        torch.testing.assert_close(loss(moved), loss(z), rtol=tolerance, atol=0)
        assert relative(gradient(loss, moved), expected) < tolerance
    # The gradient is tangent to the spheres of normalized embeddings.
    assert (g * z).sum(-1).abs().max() < tolerance * g.norm()


# --- closed cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v", [2, 3, 4, 8, 12])
def test_closed_cases(v, dtype):
    eye = torch.eye(8, 16, dtype=dtype)
    spread = SSOLELoss().terms(eye[:, None].expand(-1, v, -1))
    assert spread.high_rank == pytest.approx(0, abs=1e-7)
    assert spread.low_rank == pytest.approx(0, abs=1e-12)  # identical views
    assert spread.mean_high_nuclear == pytest.approx(8, rel=1e-6)
    collapsed = SSOLELoss().terms(torch.ones(8, v, 16, dtype=dtype))
    assert collapsed.high_rank == pytest.approx(1, rel=1e-6)
    assert collapsed.low_rank == pytest.approx(0, abs=1e-12)
    assert collapsed.mean_high_nuclear == pytest.approx(math.sqrt(8), rel=1e-6)


def test_opposite_views_have_low_rank_2():
    z = embeddings(8, 1, 16)
    opposite = torch.cat([z, -z], 1)
    assert SSOLELoss().terms(opposite).low_rank == pytest.approx(2, rel=1e-12)
    assert SSOLELoss(low_rank_features="raw").terms(opposite).low_rank == pytest.approx(
        0, abs=1e-7
    )  # blind to the sign


@pytest.mark.parametrize("v", [2, 3, 4, 8])
@pytest.mark.parametrize("c", [-0.1, 0.0, 0.5, 0.9])
def test_one_common_cosine_gives_one_minus_it(v, c):
    gram = torch.full((v, v), c, dtype=torch.float64).fill_diagonal_(1)
    views = torch.linalg.cholesky(gram) @ orthonormal(v, 10)
    terms = SSOLELoss().terms(torch.stack([views, views @ orthonormal(10, 10)]))
    assert terms.low_rank == pytest.approx(1 - c, rel=1e-12)
    raw = SSOLELoss(low_rank_features="raw").terms(torch.stack([views, views @ orthonormal(10, 10)]))
    assert raw.low_rank == pytest.approx((((1 + (v - 1) * c) ** 0.5 + (v - 1) * (1 - c) ** 0.5) ** 2 - v) / (v * v - v))


@pytest.mark.parametrize("rows", [2, 3, 64, 4096])
def test_collapse_formula_and_its_ends(rows):
    r = torch.linspace(math.sqrt(rows), rows * (1 - 1e-9), 101, dtype=torch.float64, requires_grad=True)
    for gamma in (0.0, 0.3, 1.0):
        c1 = ((rows / r) ** 2 - 1) / (rows - 1)
        c2 = (rows * torch.cos(torch.asin(r / rows) - math.asin(rows**-0.5)) ** 2 - 1) / (rows - 1)
        torch.testing.assert_close(collapse(r, rows, gamma), gamma * c1 + (1 - gamma) * c2, rtol=1e-6, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: collapse(x, rows, 0.4), (r.detach()[1:-20].requires_grad_(),), atol=1e-4)
    beyond = torch.tensor(
        [0.0, 1e-30, rows, rows * (1 + 1e-15), 2 * rows, 1e30], dtype=torch.float64, requires_grad=True
    )
    value = collapse(beyond, rows, 0.5)
    value.sum().backward()
    assert value.isfinite().all()
    assert beyond.grad.isfinite().all()
    assert value[2].item() == pytest.approx(0, abs=1e-12)


def test_float32_gradient_near_the_optimum():
    """c2 has a cone there: its slope does not vanish, although the slope of r does."""
    z = torch.eye(8, 16, dtype=torch.float64)[:, None] + 1e-4 * torch.randn(8, 2, 16, dtype=torch.float64)
    assert (
        relative(gradient(SSOLELoss(), z.float()), gradient(lambda x: oracle_terms(x)["total"], z.float().double()))
        < 1e-3
    )


# --- degenerate but finite


@too_many_rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2, 8), (6, 4, 3), (8, 12, 16), (5, 3, 8)])
@pytest.mark.parametrize("kind", ["equal", "duplicated", "orthonormal", "opposite", "random"])
def test_degenerate_input_stays_finite(kind, shape, dtype):
    b, v, d = shape
    z = torch.randn(shape, dtype=dtype)
    if kind == "equal":
        z = torch.ones(shape, dtype=dtype)
    elif kind == "duplicated":
        z[1] = z[0]
    elif kind == "orthonormal":
        z = torch.eye(b, d, dtype=dtype)[:, None].expand(b, v, d) + (0 if b <= d else 1)
    elif kind == "opposite":
        z[:, 1] = -z[:, 0]
    frobenius = {"low_rank_norm": "frobenius"}
    raw = {"low_rank_features": "raw"}
    for options in ({}, {"form": "raw"}, raw, {"coupled": True}, {"normalize": False}, frobenius):
        loss = SSOLELoss(**options)
        assert loss(z).isfinite()
        assert gradient(loss, z).isfinite().all()


@too_many_rows
@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("v", [2, 3, 4, 5])
def test_views_that_point_the_same_way_stay_finite(v, dtype, norm):
    """Rounding leaves their deviations a Gram matrix whose trace may be negative."""
    one_hot = torch.zeros(16, v, 8).scatter(2, torch.arange(16).remainder(8)[:, None, None].expand(-1, v, 1), 1)
    one_of_many = torch.randn(8, v, 1024)
    for factor in torch.rand(20, 1, v, 1) + 0.1:
        one_of_many[:1] = one_of_many[:1, :1] * factor
        for z in (one_hot * factor, one_of_many):
            terms = SSOLELoss(low_rank_norm=norm).terms(z.to(dtype))
            assert terms.low_rank.isfinite()
            assert gradient(SSOLELoss(low_rank_norm=norm), z.to(dtype)).isfinite().all()
        assert SSOLELoss(low_rank_norm=norm).terms((one_hot * factor).to(dtype)).low_rank < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicated_rows_get_the_minimum_norm_gradient(dtype):
    z = embeddings(6, 2, 16).to(dtype)
    z[1] = z[0]
    g = gradient(SSOLELoss(), z)
    torch.testing.assert_close(g[0], g[1])  # a null mode would give them different gradients
    expected = gradient(lambda x: oracle_terms(x)["total"], z.double())
    assert relative(g, expected) < 1e-5


finite_values = st.one_of(
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -3e38, 1e-7, 0.5]),
)


@too_many_rows
@settings(max_examples=150)
@given(st.data(), st.integers(2, 5), st.integers(2, 5), st.integers(1, 6), st.booleans())
def test_any_finite_input_gives_finite_loss_and_gradient(data, b, v, d, double):
    count = b * v * d
    values = data.draw(st.lists(finite_values, min_size=count, max_size=count))
    z = torch.tensor(values, dtype=torch.float64 if double else torch.float32).reshape(b, v, d)
    z = torch.where(z.double().norm(dim=-1, keepdim=True) <= 1e-36, 1.0, z)  # zero vectors are an error of their own
    loss = SSOLELoss()
    terms = loss.terms(z)
    assert all(term.isfinite() for term in terms)
    assert gradient(loss, z).isfinite().all()
    assert -1e-6 <= terms.low_rank <= v * (1 + 1e-6)
    assert -1e-6 <= terms.high_rank <= 1 + 1e-6


@pytest.mark.parametrize("scale", [2e-36, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("shape", [(4, 2, 8), (4, 5, 8), (6, 4, 3)])
@too_many_rows
def test_scale_does_not_matter_in_float32(shape, scale):
    z = embeddings(*shape)
    small = (z / z.norm(dim=-1, keepdim=True) * scale).float()
    assert (
        relative(gradient(SSOLELoss(), small) * scale, gradient(SSOLELoss(), z / z.norm(dim=-1, keepdim=True))) < 1e-5
    )


# --- ablations


def test_terms_add_up_and_raw_form():
    z = embeddings(6, 3, 16)
    terms = SSOLELoss(1.7).terms(z)
    assert terms.total == pytest.approx(float(terms.low_rank + 1.7 * terms.high_rank))
    raw = SSOLELoss(1.7, form="raw").terms(z)
    assert raw.low_rank == terms.mean_low_nuclear
    assert raw.high_rank == -terms.mean_high_nuclear
    assert raw.total == pytest.approx(float(raw.low_rank + 1.7 * raw.high_rank))


def test_every_term_has_its_gradient():
    z = embeddings(6, 3, 16).requires_grad_()
    terms, raw = SSOLELoss().terms(z), SSOLELoss(form="raw").terms(z)
    for term, same in ((terms.mean_low_nuclear, raw.low_rank), (terms.mean_high_nuclear, -raw.high_rank)):
        (gradient,), (expected,) = (
            torch.autograd.grad(term, z, retain_graph=True),
            torch.autograd.grad(same, z, retain_graph=True),
        )
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_groupings_are_means_over_batches_of_one_view_of_each_image(temperature):
    """The oracle is the loss as published, of embeddings whose views are in the order that the formula says."""
    z, groupings = embeddings(8, 4, 16), 3
    golden, found = (1 + 5**0.5) / 2, []
    for g in range(groupings):
        orders = [[(v + int(4 * (i * g * golden % 1))) % 4 for v in range(4)] for i in range(8)]
        found.append(SSOLELoss(temperature=temperature).terms(torch.stack([z[i, orders[i]] for i in range(8)])))
    terms = SSOLELoss(temperature=temperature, groupings=groupings).terms(z)
    for name in ("high_rank", "mean_high_nuclear", "low_rank"):
        expected = torch.stack([getattr(one, name) for one in found]).mean()
        assert getattr(terms, name) == pytest.approx(float(expected), rel=1e-12)
    assert terms.high_rank != pytest.approx(float(found[0].high_rank), rel=1e-3)


def test_with_groupings_images_meet_in_most_pairs_of_views():
    images, views = 16, 4
    numbers = torch.arange(images * views).view(images, views, 1).double()
    met = {(i, j): set() for i in range(images) for j in range(i)}
    for batch in mixed_batches(numbers, views)[..., 0].long().tolist():
        assert [number // views for number in batch] == list(range(images))
        for i, j in met:
            met[i, j].add((batch[i] % views, batch[j] % views))
    assert sum(map(len, met.values())) / len(met) > 0.7 * views**2


def test_detaching_the_mean_changes_nothing_when_gradients_are_exact():
    z = embeddings(6, 4, 16)
    assert relative(gradient(SSOLELoss(detach_mean=True), z), gradient(SSOLELoss(), z)) < 1e-10
    close = z[:, :1] + 1e-6 * z  # rounding of the mean could be taken for a direction
    for x in (close, close.float()):
        assert relative(gradient(SSOLELoss(detach_mean=True), x), gradient(SSOLELoss(), x)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("views", [2, 3, 4, 6])
@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
def test_equal_views_get_equal_gradients_in_the_raw_form(dtype, views, norm):
    """Deviations are 0 there, and so is the subgradient of minimum norm: rounding must not take its place."""
    z = embeddings(6, 1, 16).to(dtype).expand(6, views, 16).contiguous()
    found = gradient(SSOLELoss(form="raw", low_rank_norm=norm), z)
    assert (found - found.mean(1, keepdim=True)).abs().max() < 1e-6


def test_coupled_sees_images_across_views():
    z = orthonormal(8, 16).reshape(4, 2, 16)
    assert SSOLELoss(coupled=True).terms(z).high_rank == pytest.approx(0, abs=1e-7)
    same = z[:, :1].expand(-1, 2, -1)
    assert SSOLELoss().terms(same).high_rank == pytest.approx(0, abs=1e-7)
    assert SSOLELoss(coupled=True).terms(same).high_rank > 0.05  # it wants views apart


@pytest.mark.parametrize(("v", "share"), [(2, 1.0), (4, 1 / math.sqrt(3))])
def test_reference_gradient_has_the_published_defect(v, share):
    """The reference adds one wrong unit rank-one term, orthogonal to the V - 1 right ones."""
    z = embeddings(6, v, 16)
    z = z / z.norm(dim=-1, keepdim=True)
    exact = SSOLELoss(0.0, normalize=False)
    reference = SSOLELoss(0.0, normalize=False, gradient="reference")
    assert reference(z) == pytest.approx(float(exact(z)), rel=1e-12)
    assert relative(gradient(reference, z), gradient(exact, z)) == pytest.approx(share, rel=1e-6)


# --- errors and warnings


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.ones((2, 2, 2)), "ndarray"),
        (torch.ones(4, 8), r"\(4, 8\)"),
        (torch.ones(1, 2, 3, 4), r"\(1, 2, 3, 4\)"),
        (torch.ones(4, 1, 8), r"2 views.*got 1"),
        (torch.ones(1, 2, 8), r"2 images.*got 1"),
        (torch.ones(0, 2, 8), r"empty.*\(0, 2, 8\)"),
        (torch.ones(4, 2, 0), r"empty.*\(4, 2, 0\)"),
        (torch.ones(4, 2, 8, dtype=torch.int64), "torch.int64"),
        (torch.ones(4, 2, 8, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_bad_input_is_quoted(z, message):
    with pytest.raises(ValueError, match=message):
        SSOLELoss()(z)


@too_many_rows
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 2, 8), (4, 2, 3)])
def test_bad_values_are_counted_and_located(shape, dtype):
    z = torch.randn(shape).to(dtype)
    z[1, 0, 2] = z[3, 1, 0] = math.nan
    z[2, 1, 1] = -math.inf
    with pytest.raises(
        ValueError, match=r"2 NaN and 1 infinite values, at index \(1, 0, 2\), \(2, 1, 1\), \(3, 1, 0\)"
    ):
        SSOLELoss()(z)
    with pytest.raises(ValueError, match="2 NaN"):
        SSOLELoss(normalize=False)(z)
    z = torch.randn(shape).to(dtype)
    z[1, 0] = z[2, 1] = 0
    with pytest.raises(ValueError, match=r"2 of 8 embeddings are zero vectors .* at index \(1, 0\), \(2, 1\)"):
        SSOLELoss()(z)
    assert gradient(SSOLELoss(normalize=False), z).isfinite().all()
    assert SSOLELoss(check_input=False).terms(z.fill_(1)).total.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high_rank_weight": -1.0}, "high_rank_weight.*-1"),
        ({"high_rank_weight": math.inf}, "high_rank_weight.*inf"),
        ({"gamma": 1.5}, r"gamma.*\[0, 1\].*1.5"),
        ({"gamma": math.nan}, "gamma.*nan"),
        ({"form": "cosin"}, "form.*cosine.*'cosin'"),
        ({"low_rank_features": "mean"}, "low_rank_features.*deviations.*'mean'"),
        ({"low_rank_norm": "spectral"}, "low_rank_norm.*nuclear.*frobenius.*'spectral'"),
        ({"low_rank_norm": "frobenius", "low_rank_features": "raw"}, "a constant"),
        ({"groupings": 0}, "groupings must be an integer of at least 1, got 0"),
        ({"groupings": 2, "coupled": True}, "leave out groupings"),
        ({"temperature": 0.0}, "temperature.*0.0"),
        ({"temperature": math.inf}, "temperature.*inf"),
        ({"temperature": 0.1, "normalize": False}, "needs embeddings of unit length"),
        ({"gradient": "svd"}, "gradient.*exact.*'svd'"),
        ({"high_rank_weight": True}, "high_rank_weight must be a number, got True"),
        ({"temperature": torch.nn.Parameter(torch.tensor(0.2))}, "temperature get no gradient: pass numbers"),
    ],
)
def test_bad_options_are_quoted(options, message):
    with pytest.raises(ValueError, match=message):
        SSOLELoss(**options)


def test_more_rows_than_dimensions_warns_once():
    loss = SSOLELoss()
    z = embeddings(8, 2, 4)
    with pytest.warns(UserWarning, match="8 rows but only 4 dimensions"):
        loss(z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(z)


def test_arguments_are_the_fields_of_the_config():
    fields = dataclasses.asdict(SSOLEConfig(high_rank_weight=1.7, coupled=True))
    del fields["name"]
    loss = SSOLELoss(**fields, check_input=False)
    assert {name: getattr(loss, name) for name in fields} == fields
    defaults = {name: value.default for name, value in inspect.signature(SSOLELoss).parameters.items()}
    assert {"name": "ssole"} | defaults == {**dataclasses.asdict(SSOLEConfig()), "normalize": True, "check_input": True}


def test_options_show_in_repr():
    assert "high_rank_weight=0.6" in repr(SSOLELoss())
