"""Norms by the routes of accelerators, run on the CPU: the same values and gradients, and exact zeros."""

from __future__ import annotations

import pytest
import torch
from oracle import embeddings, gradient, oracle_terms, polar_factor, relative

from ssole.losses import SSOLELoss, nuclear
from ssole.losses.base import EmbeddingError
from ssole.losses.device import ImagesAndViews, Wide
from ssole.losses.nuclear import _NuclearNorms
from ssole.losses.ssole import helmert


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss takes the route of accelerators."""

    def route(z, contrasts, *, normalize, root, view_root):
        return _NuclearNorms.apply(z, ImagesAndViews(Wide(normalize, contrasts, root), view_root))

    monkeypatch.setattr("ssole.losses.ssole.image_and_view_norms", route)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("views", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_against_the_oracle(views: int, normalize: bool):
    z = embeddings(10, views, 12, dtype=torch.float32)
    if not normalize:
        z = 0.9 * torch.nn.functional.normalize(z, dim=-1)
    terms = SSOLELoss(normalize=normalize).terms(z)
    for name, value in oracle_terms(z, normalize=normalize).items():
        torch.testing.assert_close(getattr(terms, name).double(), value, rtol=1e-6, atol=1e-7)
    expected = gradient(lambda x: oracle_terms(x, normalize=normalize)["total"], z.double())
    assert relative(gradient(SSOLELoss(normalize=normalize), z), expected) < 1e-6


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("temperature", [0.2, 4.0])
def test_the_loss_with_a_temperature(temperature: float):
    z, loss = embeddings(10, 3, 12, dtype=torch.float32), SSOLELoss(temperature=temperature)
    expected = gradient(lambda x: oracle_terms(x, temperature=temperature)["total"], z.double())
    torch.testing.assert_close(loss(z).double(), oracle_terms(z, temperature=temperature)["total"])
    assert relative(gradient(loss, z), expected) < 1e-6


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("views", [2, 3, 5])
def test_the_frobenius_norm(views: int):
    z, loss = embeddings(10, views, 12, dtype=torch.float32), SSOLELoss(low_rank_norm="frobenius")
    torch.testing.assert_close(loss(z).double(), loss(z.double()))  # in float64 on the CPU, as the formula says
    assert relative(gradient(loss, z), gradient(loss, z.double())) < 1e-6


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("views", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
def test_equal_views_have_norm_zero_and_no_gradient(views: int, norm):
    image = torch.randn(6, 1, 16, generator=torch.Generator().manual_seed(0)).expand(-1, views, -1)
    loss = SSOLELoss(form="raw", high_rank_weight=0.0, low_rank_norm=norm)
    assert loss(image) == 0
    assert torch.equal(gradient(loss, image), torch.zeros(6, views, 16))


@pytest.mark.usefixtures("as_on_a_device")
def test_bad_rows_are_named():
    z = torch.ones(4, 2, 8)
    z[1, 1, 3] = torch.nan
    with pytest.raises(EmbeddingError, match=r"1 NaN .* index \(1, 1, 3\)"):
        SSOLELoss()(z)
    with pytest.raises(EmbeddingError, match="1 of 8 embeddings are zero"):
        SSOLELoss()(torch.ones(4, 2, 8).index_fill(0, torch.tensor([2]), 1) * (torch.arange(8).view(4, 2, 1) != 5))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("contrasts", [True, False])
def test_one_matrix_route(normalize: bool, contrasts: bool):
    x = embeddings(7, 5, 9)
    h = helmert(x) if contrasts else None

    def expected(x: torch.Tensor) -> torch.Tensor:
        u = torch.nn.functional.normalize(x, dim=-1) if normalize else x
        u = u if h is None else h @ u
        return (polar_factor(u.detach()) * u).sum()

    def by_rows(x: torch.Tensor) -> torch.Tensor:
        return _NuclearNorms.apply(x, Wide(normalize, h)).sum()

    torch.testing.assert_close(by_rows(x), expected(x))
    assert relative(gradient(by_rows, x), gradient(expected, x)) < 1e-10
    torch.testing.assert_close(by_rows(x), nuclear.unit_norms(x, h, normalize=normalize).sum())
