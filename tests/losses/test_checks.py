"""Checks of embeddings: what is refused, in which words, and what passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssole.losses.checks import EmbeddingError, check_embeddings, check_rows


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
