"""What a loss may return, and what training makes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ssole.losses import SSOLELoss
from ssole.losses.terms import named_terms

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
        (None, "Returns must return a scalar tensor.* got a NoneType"),
    ],
)
def test_anything_else_is_an_error_that_says_what_came(output: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        named_terms(Returns(output), Z)
