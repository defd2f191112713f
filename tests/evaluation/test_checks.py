"""The context of exact products, whatever precision the caller has set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssole.evaluation.checks import exact_float32

NEW = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this setting came with torch 2.9")


def legacy(value: str) -> Callable[[], None]:
    return lambda: torch.set_float32_matmul_precision(value)


def new(place: Any, value: str) -> Callable[[], None]:
    return lambda: setattr(place, "fp32_precision", value)


@pytest.fixture
def settings() -> Any:
    """Function from nothing to the caller's settings, which the test may change."""
    places = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None), torch.backends)

    def now() -> list[str]:
        if hasattr(torch.backends, "fp32_precision"):
            return [place.fp32_precision for place in places]
        return [torch.get_float32_matmul_precision()]

    before = now()
    yield now
    if hasattr(torch.backends, "fp32_precision"):
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value  # type: ignore[union-attr]
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "begin",
    [
        legacy("highest"),
        legacy("high"),
        legacy("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        pytest.param(new(torch.backends.cuda.matmul, "tf32"), marks=NEW),
        pytest.param(new(getattr(torch.backends.mkldnn, "matmul", None), "bf16"), marks=NEW),
        pytest.param(new(torch.backends, "tf32"), marks=NEW),
    ],
    ids=["highest", "high", "medium", "allow_tf32", "cuda", "mkldnn", "root"],
)
@pytest.mark.filterwarnings("ignore:Please use the new API")
def test_products_are_exact_whatever_the_caller_has_set(
    begin: Callable[[], None], device: str, settings: Callable[[], list[str]]
) -> None:
    begin()
    before = settings()
    with exact_float32(torch.device(device)):
        inside = settings()
        product = torch.full((64, 64), 1 + 2.0**-20) @ torch.eye(64)
    assert settings() == before
    assert inside[0 if device == "cuda" else len(inside) // 2] in ("ieee", "highest")
    if device == "cpu":
        assert (product == 1 + 2.0**-20).all()
