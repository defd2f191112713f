"""nuclear_norm: value, gradient, precision, dtypes and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gradient, polar_factor, relative, with_condition

from ssole import losses
from ssole.losses import nuclear_norm
from ssole.losses.nuclear import _Gram, _NuclearNorms

SHAPES = [(1, 5), (5, 1), (2, 7), (7, 2), (3, 3), (4, 9), (9, 4), (10, 10)]


@pytest.fixture(autouse=True, params=["small", "large"])
def products(request, monkeypatch):
    """Both ways to choose the precision of products, so that small input also runs as large input does."""
    if request.param == "large":
        monkeypatch.setattr(losses.kernels, "_SMALL", 0)


def by_gram(x: torch.Tensor) -> torch.Tensor:
    return _NuclearNorms.apply(x[None], _Gram())[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("route", [nuclear_norm, by_gram])
def test_value_and_gradient_against_svd(shape, route):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert route(x).item() == pytest.approx(torch.linalg.svdvals(x).sum().item(), rel=1e-12)
    assert relative(gradient(route, x), polar_factor(x)) < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape):
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(nuclear_norm, (x,))
    assert torch.autograd.gradcheck(lambda y: _NuclearNorms.apply(y, _Gram()), (x,))


@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("shape", [(2, 6), (3, 200), (24, 24), (64, 200), (200, 64)])
def test_float32_gradient_holds_up_to_condition_1e4(kappa, shape):
    x = with_condition(*shape, kappa).float()
    assert relative(gradient(nuclear_norm, x), gradient(nuclear_norm, x.double())) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = x.clone().requires_grad_()
    value = nuclear_norm(leaf)
    value.sum().backward()
    assert value.dtype == expected_dtype
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(value.double(), torch.linalg.svdvals(x.double()).sum(-1), rtol=1e-6, atol=0)
    assert relative(leaf.grad, polar_factor(x.double())) < max(1e-6, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 4), (2, 5), (3, 4), (6, 6), (12, 5)])
def test_rank_deficient_gradient_is_the_minimum_norm_one(dtype, shape):
    generator = torch.Generator().manual_seed(4)
    x = torch.ones(shape[0], 1) * torch.randint(-4, 5, (1, shape[1]), generator=generator)  # rank one, exact in float32
    x = x.to(dtype)
    got = gradient(nuclear_norm, x)
    assert relative(got, x / x.norm()) < 1e-6
    assert got.norm().item() == pytest.approx(1.0, rel=1e-6)  # any null mode would add to it


@pytest.mark.parametrize("shape", [(1, 4), (2, 5), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_matrix(shape, dtype):
    x = torch.zeros(shape, dtype=dtype)
    assert nuclear_norm(x).item() == 0
    assert torch.equal(gradient(nuclear_norm, x), x)


def test_batches_transposes_and_strides_agree():
    x = torch.randn(4, 3, 5, 9, generator=torch.Generator().manual_seed(5))
    whole = nuclear_norm(x)
    assert whole.shape == (4, 3)
    one_by_one = torch.stack([torch.stack([nuclear_norm(m) for m in row]) for row in x])
    torch.testing.assert_close(whole, one_by_one, rtol=1e-6, atol=0)
    torch.testing.assert_close(nuclear_norm(x.mT), whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(nuclear_norm(x.transpose(0, 1)), whole.T, rtol=1e-6, atol=0)


def test_many_matrices_are_taken_in_parts(monkeypatch):
    x = torch.randn(11, 5, 9, generator=torch.Generator().manual_seed(6))
    whole, its_gradient = nuclear_norm(x), gradient(lambda y: nuclear_norm(y).sum(), x)
    monkeypatch.setattr(losses.kernels, "_CHUNK", 100)  # two matrices at a time, the last alone
    torch.testing.assert_close(nuclear_norm(x), whole)
    torch.testing.assert_close(gradient(lambda y: nuclear_norm(y).sum(), x), its_gradient)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 200, 230), (3, 230, 200), (1, 130, 400)])
def test_large_matrices(shape, threads):
    """Products run by blocks, and factorizations in several threads."""
    torch.set_num_threads(threads)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    assert relative(gradient(lambda y: nuclear_norm(y).sum(), x), polar_factor(x.double())) < 1e-5
    torch.testing.assert_close(nuclear_norm(x).double(), torch.linalg.svdvals(x.double()).sum(-1), rtol=1e-6, atol=0)
    assert torch.get_num_threads() == threads


def test_autocast_changes_nothing():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(7))
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nuclear_norm(leaf)
        value.backward()
    assert torch.equal(value, nuclear_norm(x))
    assert torch.equal(leaf.grad, gradient(nuclear_norm, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differentiating_twice_raises(dtype):
    x = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    (first,) = torch.autograd.grad(nuclear_norm(x), x, create_graph=True)
    torch.testing.assert_close(first.detach(), gradient(nuclear_norm, x))
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.square().sum().backward()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3), r"\(3,\)"),
        (torch.ones(0, 3), r"empty.*\(0, 3\)"),
        (torch.ones(2, 3, 0), r"empty.*\(2, 3, 0\)"),
        (torch.ones(2, 3, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_bad_input_is_quoted(x, message):
    with pytest.raises(ValueError, match=message):
        nuclear_norm(x)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.sampled_from([1.0, 1e-20, 1e20, 1e-35]),
    st.booleans(),
)
def test_scaling_and_triangle_inequality(m, n, seed, scale, double):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(m, n, generator=generator, dtype=torch.float64 if double else torch.float32) for _ in range(2))
    assert nuclear_norm(a + b) <= nuclear_norm(a) + nuclear_norm(b) + 1e-5
    assert nuclear_norm(a) >= a.norm() * (1 - 1e-6)
    torch.testing.assert_close(
        nuclear_norm(a * scale), torch.linalg.svdvals((a * scale).double()).sum().to(a.dtype), rtol=1e-5, atol=1e-44
    )
    assert gradient(nuclear_norm, a * scale).isfinite().all()
