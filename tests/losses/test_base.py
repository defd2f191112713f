"""What every loss promises, which embeddings are refused, and the terms that training makes of what a loss returns.

Promised are terms, precision, symmetries, exact gradients, errors, one graph, and no look at values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracle import embeddings, gradient, relative
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ssole.losses import LOSSES, SSOLELoss
from ssole.losses.base import (
    EmbeddingError,
    EmbeddingLoss,
    check_embeddings,
    check_rows,
    frobenius_squares,
    named_terms,
    to_unit_length,
)

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
        ("vicreg", {"variance_weight": "25"}, "variance_weight must be a number, got '25'"),
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


def test_counts_may_be_numpys():
    assert repr(LOSSES["lejepa"](slices=np.int64(8))) == repr(LOSSES["lejepa"](slices=8))


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
    torch.testing.assert_close(to_unit_length((expected * scale).float()).double(), expected, rtol=1e-5, atol=1e-6)


# Checks of embeddings


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (
            torch.ones(4, 8),
            r"embeddings must have shape \(B images, V views, D dimensions\), got \(4, 8\); "
            r"stack views with torch\.stack\(\.\.\., dim=1\)",
        ),
        (torch.ones(1, 2, 3, 4), r"embeddings must have shape .*, got \(1, 2, 3, 4\); .*"),
        ([[1.0]], r"embeddings must be a torch\.Tensor, got list"),
        (
            torch.ones(4, 2, 8, dtype=torch.int32),
            r"embeddings must be of a floating-point dtype, got torch\.int32; convert them with \.float\(\)",
        ),
        (torch.ones(4, 2, 8, dtype=torch.complex64), r"embeddings must be of a .*, got torch\.complex64; .*"),
        (torch.ones(0, 2, 8), r"embeddings are empty: got shape \(0, 2, 8\)"),
        (torch.ones(4, 0, 8), r"embeddings are empty: got shape \(4, 0, 8\)"),
        (torch.ones(4, 1, 8), r"embeddings need at least 2 views of each image, got 1 \(shape \(4, 1, 8\)\)"),
    ],
)
def test_what_is_no_batch_of_embeddings_is_quoted(z: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_embeddings(z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_smallest_batch_passes(dtype: torch.dtype) -> None:
    check_embeddings(torch.full((1, 2, 1), math.nan, dtype=dtype))  # the shape alone is looked at


@pytest.mark.parametrize("zero_is_error", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 4), (15, 4), (4,)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_place_of_a_bad_value_is_found(shape: tuple[int, ...], bad: float, zero_is_error: bool) -> None:
    for place in range(math.prod(shape)):
        z = torch.ones(shape)
        z.view(-1)[place] = bad
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape))
        counts = "1 NaN and 0" if math.isnan(bad) else "0 NaN and 1"
        with pytest.raises(EmbeddingError) as raised:
            check_rows(z, zero_is_error=zero_is_error)
        said = f"embeddings of shape {shape} hold {counts} infinite values, at index {index}; look for the step"
        assert str(raised.value).startswith(said)


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ""), (4, " and 1 more"), (9, " and 6 more")])
def test_three_places_are_listed(count: int, more: str) -> None:
    z = torch.ones(10, 2, 3)
    z[:count, 1, 2] = math.inf
    listed = ", ".join(str((i, 1, 2)) for i in range(min(count, 3)))
    with pytest.raises(EmbeddingError) as raised:
        check_rows(z, zero_is_error=True)
    assert f"0 NaN and {count} infinite values, at index {listed}{more}; " in str(raised.value)


def test_zero_rows_are_an_error_only_where_rows_are_scaled() -> None:
    z = torch.ones(4, 2, 3)
    z[1, 0] = z[3, 1] = 0
    check_rows(z, zero_is_error=False)
    with pytest.raises(EmbeddingError) as raised:
        check_rows(z, zero_is_error=True)
    assert str(raised.value) == (
        "2 of 8 embeddings are zero vectors (shorter than 1e-36) and cannot be scaled to unit length, "
        "at index (1, 0), (3, 1): look for a dead projector"
    )
    z[1, 0, 2] = z[3, 1, 0] = 1e-30  # a single value is enough
    check_rows(z, zero_is_error=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_length_of_a_row_counts_and_not_its_largest_value(dtype: torch.dtype) -> None:
    """Of 100 values of 0.5e-36, none is above the limit; the row is five times as long."""
    row = torch.full((1, 100), 0.5e-36, dtype=dtype)
    check_rows(row, zero_is_error=True)
    with pytest.raises(EmbeddingError, match=r"^1 of 1 embeddings are zero vectors .* at index \(0,\)"):
        check_rows(row / 6, zero_is_error=True)


def test_large_and_small_values_that_are_finite_pass() -> None:
    for value in (torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max, 1e-35):
        check_rows(torch.full((2, 2, 3), value), zero_is_error=True)


def test_nothing_is_checked_while_it_is_compiled() -> None:
    """A check of values would break the graph."""

    def checked(z: Tensor) -> Tensor:
        check_rows(z, zero_is_error=True)
        return z * 2

    compiled = torch.compile(checked, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


# Named terms


Z = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0))


class Returns(nn.Module):
    """A loss that returns what it is told to."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, z: Tensor) -> Any:
        return self.output(z) if callable(self.output) else self.output


class Pair(NamedTuple):
    total: Tensor
    part: Tensor


def test_a_scalar_is_the_total() -> None:
    assert named_terms(Returns(lambda z: z.square().mean()), Z) == {"loss": Z.square().mean()}


@pytest.mark.parametrize("name", ["total", "loss"])
def test_named_terms_come_with_the_total_first(name: str) -> None:
    terms = named_terms(Returns({"part": torch.tensor(1.0), name: torch.tensor(3.0)}), Z)
    assert list(terms) == ["loss", "part"]
    assert float(terms["loss"]) == 3


def test_a_named_tuple() -> None:
    terms = named_terms(Returns(Pair(torch.tensor(3.0), torch.tensor(1.0))), Z)
    assert {name: float(term) for name, term in terms.items()} == {"loss": 3, "part": 1}


def test_a_loss_that_keeps_its_terms_as_modules() -> None:
    loss = Returns(lambda z: z.mean())
    loss.terms = nn.ModuleList([SSOLELoss()])
    assert named_terms(loss, Z) == {"loss": Z.mean()}


class Plus(SSOLELoss):
    """A loss that adds to its parent's by a `forward` of its own."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + 100


def test_what_a_forward_or_a_hook_adds_is_trained() -> None:
    assert named_terms(Plus(), Z)["loss"] == SSOLELoss()(Z) + 100
    hooked = SSOLELoss()
    hooked.register_forward_hook(lambda module, inputs, output: output + 10)
    assert named_terms(hooked, Z)["loss"] == SSOLELoss()(Z) + 10


def test_a_method_called_terms_may_be_for_something_else() -> None:
    class Other(Returns):
        def terms(self) -> list[str]:
            return []

    assert named_terms(Other(lambda z: z.mean()), Z) == {"loss": Z.mean()}


def test_a_loss_that_does_not_depend_on_the_embeddings() -> None:
    with pytest.raises(ValueError, match=r"^what Returns returns does not depend on the embeddings"):
        named_terms(Returns(torch.tensor(1.0)), Z.clone().requires_grad_())


def test_terms_of_ssole() -> None:
    terms = named_terms(SSOLELoss(), Z)
    assert list(terms) == ["loss", "low_rank", "high_rank", "mean_low_nuclear", "mean_high_nuclear"]
    assert torch.equal(terms["loss"], SSOLELoss()(Z))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda z: z.square().mean(-1), r"got a tensor of shape \(6, 2\)"),
        ({"part": torch.tensor(1.0)}, r"the total as 'total' or 'loss' .* got \{part: a tensor of shape \(\)\}"),
        ({"total": torch.tensor(1.0), "loss": torch.tensor(2.0)}, r"\(not both\) .* got \{total: .*, loss: .*\}"),
        ({"loss": torch.tensor(1.0), "lr": torch.tensor(1.0)}, "none as .*lr"),
        ({"loss": 1.0}, r"got \{loss: a float\}"),
        ({"loss": torch.tensor(1.0), 1: torch.tensor(1.0)}, r"by name.* got \{loss: .*, 1: a tensor of shape \(\)\}"),
        (torch.tensor(1j), r"not complex.* got a complex tensor of shape \(\)"),
        (None, "Returns must return a scalar tensor.* got a NoneType"),
    ],
)
def test_anything_else_is_an_error_that_says_what_came(output: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        named_terms(Returns(output), Z)
