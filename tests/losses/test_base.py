"""What every loss promises: terms, precision, symmetries, exact gradients, errors, one graph, no look at values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracle import embeddings, gradient, relative
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ssole.losses import LOSSES
from ssole.losses.base import EmbeddingLoss, frobenius_squares, unit_rows

B, V, D = 9, 3, 4
LABELS = torch.tensor([0, 1, 2, -1, 2, 1, 0, -1, 1])
NAMES = ["simclr", "barlow-twins", "vicreg", "frossl", "mmcr", "w-mse", "lejepa", "supervised"]
OPTIONS = {
    "simclr": {"temperature": 0.5},
    "mmcr": {"local_weight": 0.3},
    "lejepa": {"slices": 16, "sigreg_weight": 0.3},
    "supervised": {"classes": 3, "dims": D},
}
WITH_UNIT_ROWS = ["simclr", "mmcr"]


def create(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return LOSSES[name](**OPTIONS.get(name, {}), **options)


def with_fixed_draws(name: str, labels: torch.Tensor = LABELS, **options: object) -> Callable[..., torch.Tensor]:
    """The loss as a function of embeddings alone: the same random draws in every call."""
    loss = create(name, **options)

    def value(z: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        return loss(z, labels) if getattr(loss, "needs_labels", False) else loss(z)

    return value


def terms_of(name: str, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = create(name)
    torch.manual_seed(2)
    return loss.terms(z, LABELS) if getattr(loss, "needs_labels", False) else loss.terms(z)


def test_names():
    assert list(LOSSES) == ["ssole", "ole", *NAMES]
    assert all(issubclass(LOSSES[name], EmbeddingLoss) for name in NAMES)
    assert [name for name in NAMES if LOSSES[name].needs_labels] == ["supervised"]


@pytest.mark.filterwarnings("ignore:The high-rank term has")
@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_scalars_by_name_with_the_total_first(name):
    z = embeddings(B, V, D).requires_grad_()
    terms = terms_of(name, z)
    assert terms._fields[0] == "total"
    assert len(terms) >= 2
    assert all(term.shape == () and term.dtype == torch.float64 for term in terms)
    assert terms.total.requires_grad
    assert torch.equal(with_fixed_draws(name)(z), terms.total)


@pytest.mark.parametrize("name", NAMES)
def test_central_differences(name):
    """For two of the images, all images being alike."""
    loss, others = with_fixed_draws(name), embeddings(B - 2, V, D, seed=1)
    assert torch.autograd.gradcheck(lambda z: loss(torch.cat([z, others])), (embeddings(2, V, D).requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(B, V, D), (8, 2, 40)])
def test_float32_is_close_to_float64(name, shape):
    if shape[2] > D and name in ("w-mse", "supervised"):
        pytest.skip("needs few dimensions")
    z = embeddings(*shape)
    loss = with_fixed_draws(name)
    torch.testing.assert_close(loss(z.float()).double(), loss(z), rtol=1e-5, atol=1e-6)
    assert relative(gradient(loss, z.float()), gradient(loss, z)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input(name, dtype):
    z = embeddings(B, V, D, dtype=dtype)
    loss = with_fixed_draws(name)
    assert loss(z).dtype == torch.float32
    torch.testing.assert_close(loss(z), loss(z.float()))
    its_gradient = gradient(loss, z)
    assert its_gradient.dtype == dtype
    assert relative(its_gradient, gradient(loss, z.float())) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    z = embeddings(B, V, D, dtype=torch.float32)
    loss = with_fixed_draws(name)
    leaf = z.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(leaf)
    value.backward()
    assert torch.equal(value, loss(z))
    assert torch.equal(leaf.grad, gradient(loss, z))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_images_and_views_does_not_matter(name):
    z = embeddings(B, V, D)
    images, views = torch.randperm(B), torch.randperm(V)
    loss = with_fixed_draws(name)
    reordered = with_fixed_draws(name, LABELS[images])
    g = gradient(loss, z)
    for moved_loss, moved, expected in ((reordered, z[images], g[images]), (loss, z[:, views], g[:, views])):
        assert moved_loss(moved).item() == pytest.approx(loss(z).item(), rel=1e-9)
        assert relative(gradient(moved_loss, moved), expected) < 1e-8


@pytest.mark.parametrize("name", [name for name in NAMES if name != "supervised"])
def test_signs_matter(name):
    """Opposite views are as far apart as views can be."""
    z = embeddings(B, 2, D, spread=0.1)
    opposite = torch.stack([z[:, 0], -z[:, 1]], 1)
    assert with_fixed_draws(name)(opposite) > with_fixed_draws(name)(z) + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_as_one_graph(name):
    z = embeddings(B, V, D, dtype=torch.float32)
    loss = create(name)
    arguments = (LABELS,) if name == "supervised" else ()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = z.clone().requires_grad_()
    torch.manual_seed(2)
    value = compiled(leaf, *arguments)
    value.backward()
    torch.compiler.reset()
    expected = with_fixed_draws(name)
    torch.testing.assert_close(value, expected(z), rtol=1e-6, atol=1e-6)
    assert relative(leaf.grad, gradient(expected, z)) < 1e-5


@pytest.mark.usefixtures("fake_cuda_tensors")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("name", NAMES)
def test_without_the_check_no_value_is_read(name):
    """Fake tensors of an accelerator have no values: reading one, for which a real one would wait, raises."""
    with FakeTensorMode(), torch.device("cuda"):
        z, loss = torch.empty(B, V, D), create(name, check_input=False)
        value = loss(z, torch.empty(B, dtype=torch.int64)) if name == "supervised" else loss(z)
        assert value.shape == ()
        with pytest.raises(DataDependentOutputException):
            value.item()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_the_device_without_synchronizing(name):
    z = embeddings(B, V, D, dtype=torch.float32)
    on_device = z.cuda().requires_grad_()
    loss = create(name, check_input=False).cuda()
    arguments = (on_device, LABELS.cuda()) if name == "supervised" else (on_device,)
    loss(*arguments).backward()  # libraries initialize
    on_device.grad = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(*arguments)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if name != "lejepa":  # whose slices are those of the device's generator
        torch.testing.assert_close(value.cpu(), with_fixed_draws(name)(z), rtol=1e-5, atol=1e-5)
        assert relative(on_device.grad.cpu(), gradient(with_fixed_draws(name), z)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.ones((2, 2, D)), "ndarray"),
        (torch.ones(4, D), r"\(4, 4\)"),
        (torch.ones(4, 1, D), r"2 views.*got 1"),
        (torch.ones(1, 2, D), r"Loss needs at least 2 images.*got 1"),
        (torch.ones(0, 2, D), r"empty.*\(0, 2, 4\)"),
        (torch.ones(4, 2, D, dtype=torch.int64), "torch.int64"),
    ],
)
def test_bad_input_is_quoted(name, z, message):
    with pytest.raises(ValueError, match=message):
        create(name).terms(z)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bad_values_are_counted_and_located(name, dtype):
    z = embeddings(B, V, D, dtype=dtype)
    z[1, 0, 2] = z[3, 1, 0] = math.nan
    z[2, 1, 1] = -math.inf
    with pytest.raises(
        ValueError, match=r"2 NaN and 1 infinite values, at index \(1, 0, 2\), \(2, 1, 1\), \(3, 1, 0\)"
    ):
        with_fixed_draws(name)(z)
    z = embeddings(B, V, D, dtype=dtype)
    z[1, 0] = 0
    if name in WITH_UNIT_ROWS:
        with pytest.raises(ValueError, match=r"1 of 27 embeddings are zero vectors"):
            with_fixed_draws(name)(z)
    else:
        assert gradient(with_fixed_draws(name), z).isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("w-mse", "supervised")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["equal", "duplicated", "opposite", "dead dimension"])
def test_degenerate_input_stays_finite(name, dtype, kind):
    z = embeddings(6, 2, 9, dtype=dtype)
    if kind == "equal":
        z = torch.ones_like(z)
    elif kind == "duplicated":
        z[1] = z[0]
    elif kind == "opposite":
        z[:, 1] = -z[:, 0]
    else:
        z[..., 3] = 0
    loss = with_fixed_draws(name)
    assert loss(z).isfinite()
    assert gradient(loss, z).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simclr", {"temperature": 0.0}, "temperature.*above 0.*0.0"),
        ("barlow-twins", {"redundancy_weight": -1.0}, "redundancy_weight.*-1"),
        ("vicreg", {"covariance_weight": math.inf}, "covariance_weight.*inf"),
        ("vicreg", {"invariance_weight": math.nan}, "invariance_weight.*nan"),
        ("frossl", {"invariance_weight": -1.0}, "invariance_weight.*-1"),
        ("mmcr", {"local_weight": -1.0}, "local_weight.*-1"),
        ("w-mse", {"subset_size": 1}, "subset_size.*at least 2.*1"),
        ("w-mse", {"iterations": 0.5}, "iterations.*integer.*0.5"),
        ("w-mse", {"shrinkage": 1.0}, r"shrinkage.*\[0, 1\).*1.0"),
        ("lejepa", {"sigreg_weight": 1.5}, r"sigreg_weight.*\[0, 1\].*1.5"),
        ("lejepa", {"knots": 1}, "knots.*at least 2.*1"),
        ("lejepa", {"domain": 0.0}, "domain.*above 0.*0.0"),
        ("supervised", {"classes": 1, "dims": 4}, "classes.*at least 2.*1"),
    ],
)
def test_bad_options_are_quoted(name, options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](**options)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_keywords_and_show_in_repr(name):
    with pytest.raises(TypeError):
        LOSSES[name](1.0)
    shown = repr(create(name))
    assert all(f"{option}={value}" in shown for option, value in OPTIONS.get(name, {}).items() if name != "supervised")


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4)])
def test_frobenius_squares(shape):
    z = torch.randn(shape, dtype=torch.float64)
    expected = torch.stack([torch.linalg.matrix_norm(x.T @ x).square() for x in z])
    torch.testing.assert_close(frobenius_squares(z), expected)


@pytest.mark.parametrize("scale", [2e-36, 1e-20, 1.0, 1e20, 1e37])
def test_unit_rows_of_any_length(scale):
    z = torch.randn(5, 8, dtype=torch.float64)
    expected = z / z.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit_rows((expected * scale).float()).double(), expected, rtol=1e-5, atol=1e-6)
