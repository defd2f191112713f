"""The claims of docs/theory.md, in float64. Each test has a name that the page gives beside its claim.

Long because it holds all claims of one page.

Shape suffixes: B images, V views, D embedding dimensions.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from oracle import gradient, norm, relative
from torch import Tensor

from ssole import OLELoss, SSOLELoss, nuclear_norm
from ssole.losses.simclr import SimCLRLoss
from ssole.losses.ssole import collapse

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "theory.md"

# More images than dimensions are on purpose here.
pytestmark = pytest.mark.filterwarnings("ignore:The high-rank term has")


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    """The script that draws the pictures of the page."""
    spec = importlib.util.spec_from_file_location("theory", ROOT / "experiments" / "theory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def orthonormal(rows: int, dims: int) -> Tensor:
    return torch.linalg.qr(normal(dims, rows)).Q.mT


def tight_frame(rows: int, dims: int) -> Tensor:
    """Unit rows (rows, dims), rows > dims, with X^T X = (rows / dims) I: cosines and sines of dims / 2 frequencies."""
    angles = 2 * math.pi * torch.outer(torch.arange(rows), torch.arange(1, dims // 2 + 1)).double() / rows
    columns = [angles.cos() * math.sqrt(2), angles.sin() * math.sqrt(2), torch.ones(rows, dims % 2)]
    return torch.cat(columns, dim=1).double() / math.sqrt(dims)


def rows_of_gram(off_diagonal: Tensor) -> Tensor:
    """Unit rows with the cosines of a symmetric matrix (B, B), whose diagonal is ignored."""
    return torch.linalg.cholesky(
        off_diagonal - torch.diag_embed(off_diagonal.diagonal()) + torch.eye(len(off_diagonal))
    )


def small_cosines(images: int, size: float, seed: int = 0) -> Tensor:
    upper = (size * normal(images, images, seed=seed)).triu(1)
    return upper + upper.mT


def twice(rows_BD: Tensor) -> Tensor:
    """Two equal views (B, 2, D)."""
    return torch.stack([rows_BD, rows_BD], dim=1)


def deviations(x: Tensor, dim: int = -2) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def least_ole(images: int, views: int, dims: int, margin: float = 1.0) -> float:
    return margin / views * (1 - math.sqrt(min(1, dims / images)))


# OLE with one class per image


def test_ole_is_zero_whether_views_agree_or_not() -> None:
    assert OLELoss()(orthonormal(12, 16).view(4, 3, 16)).item() == pytest.approx(0, abs=1e-12)
    assert OLELoss()(orthonormal(4, 16)[:, None].expand(4, 3, 16)).item() == pytest.approx(0, abs=1e-12)
    assert OLELoss()(unit(8, 2, 4096)) < 0.001  # random views in many dimensions


def test_ole_is_positive_unless_row_spaces_are_orthogonal() -> None:
    """One cosine between two images, however small, is a positive loss."""
    rows = orthonormal(4, 4)
    rows[1] = F.normalize(rows[1] + 0.01 * rows[0], dim=-1)
    assert OLELoss()(twice(rows)).item() > 1e-6
    assert OLELoss()(normal(5, 1, 4)) > 1e-3  # five images never fit into four dimensions


def test_a_data_set_needs_as_many_dimensions_as_images() -> None:
    """Every pair of images is a batch. One image more than dimensions, wherever it is, is a positive mean."""

    def mean_over_batches(z_MVD: Tensor) -> float:
        pairs = torch.combinations(torch.arange(len(z_MVD)))
        return sum(OLELoss()(z_MVD[pair]).item() for pair in pairs) / len(pairs)

    assert mean_over_batches(twice(orthonormal(4, 4))) == pytest.approx(0, abs=1e-12)
    fifth = [normal(1, 4, seed=seed) for seed in range(20)]
    one_more = [twice(torch.cat([orthonormal(4, 4), row])) for row in fifth]
    vanished = twice(torch.cat([orthonormal(4, 4), torch.zeros(1, 4)]))  # below the margin
    for z_MVD in (*one_more, vanished, twice(tight_frame(5, 4)), *(normal(5, 2, 4, seed=seed) for seed in range(20))):
        assert mean_over_batches(z_MVD) > 1e-3


def test_shrinking_an_image_to_the_margin_never_raises_ole() -> None:
    for seed in range(20):
        z = 3 * normal(6, 3, 4, seed=seed)
        norms = nuclear_norm(z)
        assert norms.min() > 1
        shrunk = z / norms[:, None, None]
        assert OLELoss()(shrunk) <= OLELoss()(z) + 1e-12


@pytest.mark.parametrize(("images", "views", "dims"), [(12, 3, 4), (9, 2, 5), (30, 4, 3)])
def test_least_ole_is_that_of_rank_one_images_in_a_tight_frame(images: int, views: int, dims: int) -> None:
    weights = unit(images, views)  # any: views of both signs, or one view only
    z = weights[:, :, None] * tight_frame(images, dims)[:, None]
    assert OLELoss()(z).item() == pytest.approx(least_ole(images, views, dims), abs=1e-12)
    for seed in range(50):
        other = normal(images, views, dims, seed=seed) * (0.02 + 0.02 * seed)
        assert OLELoss()(other) > least_ole(images, views, dims)


def test_descent_reaches_the_least_ole_at_the_margin(theory: ModuleType) -> None:
    z, _ = theory.descend(OLELoss(), 0.3 * normal(24, 2, 6), steps=1000, lr=0.05)
    assert OLELoss()(z).item() == pytest.approx(least_ole(24, 2, 6), abs=1e-3)
    assert (nuclear_norm(z) - 1).abs().max() < 0.01
    assert torch.linalg.svdvals(z)[:, 1].max() < 0.01  # rank one


def test_without_a_margin_all_but_d_images_vanish(theory: ModuleType) -> None:
    loss = OLELoss(margin=0.0)
    start = normal(12, 2, 3)
    along = (gradient(loss, start) * start).sum()
    assert along.item() == pytest.approx(loss(start).item(), rel=1e-12)  # Euler: the loss has degree one
    z, _ = theory.descend(loss, start, steps=3000, lr=0.02)
    norms = nuclear_norm(z)
    assert (norms > 0.05).sum() <= 3
    assert (norms < 0.01).sum() >= 9


def test_on_unit_rows_collapse_comes_close_to_the_least_ole() -> None:
    images, views, dims = 64, 2, 8
    collapsed = OLELoss()(unit(1, 1, dims).expand(images, views, dims)).item()
    least = OLELoss()(twice(tight_frame(images, dims))).item()
    assert collapsed == pytest.approx((1 - 1 / math.sqrt(images)) / math.sqrt(views), abs=1e-12)
    assert least == pytest.approx((1 - math.sqrt(dims / images)) / math.sqrt(views), abs=1e-12)
    for seed in range(20):
        assert OLELoss()(unit(images, views, dims, seed=seed)) > least


def leaving_collapse(images: int, views: int, dims: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A point of total collapse and a direction away from it, tangent to the sphere: both (B, V, D)."""
    tangent = normal(images, 1, dims, seed=seed) + 0.5 * normal(images, views, dims, seed=seed + 1)
    tangent[..., 0] = 0
    point = torch.zeros(images, views, dims, dtype=torch.float64)
    point[..., 0] = 1
    return point, tangent


@pytest.mark.parametrize(("images", "views", "dims"), [(6, 2, 8), (40, 2, 4), (5, 4, 3)])
def test_slopes_at_collapse(images: int, views: int, dims: int) -> None:
    point, tangent = leaving_collapse(images, views, dims)
    step = 1e-6

    def slope(loss: torch.nn.Module) -> float:
        return ((loss(F.normalize(point + step * tangent, dim=-1)) - loss(point)) / step).item()

    everything = norm(deviations(tangent.flatten(0, 1)))
    ole = (norm(deviations(tangent)).sum() - everything) / (images * views)
    assert slope(OLELoss()) == pytest.approx(ole.item(), abs=1e-4)
    per_view = norm(deviations(tangent.transpose(0, 1))).mean()
    for gamma in (0.0, 0.5, 1.0):
        ssole = -0.6 * gamma * 2 * math.sqrt(images) / (images - 1) * per_view
        assert slope(SSOLELoss(0.6, gamma)) == pytest.approx(ssole.item(), abs=1e-4)


def test_noisy_views_make_collapse_a_minimum_of_ole_in_large_batches() -> None:
    """Sufficient: (sum_i |D_i|)^2 > (D - 1) |all deviations|^2. Here D = 4 and that is B > 30 or so."""
    rising = {}
    for images in (4, 16, 64, 256):
        _, tangent = leaving_collapse(images, 2, 4, seed=images)
        within, everything = deviations(tangent), deviations(tangent.flatten(0, 1))
        is_sure = within.norm(dim=(1, 2)).sum() ** 2 > 3 * everything.norm() ** 2
        rising[images] = bool(norm(within).sum() > norm(everything))
        assert rising[images] or not is_sure
        assert bool(is_sure) == (images > 30)
    assert rising == {4: False, 16: False, 64: True, 256: True}


def test_a_shared_encoder_collapses_under_ole_alone(theory: ModuleType) -> None:
    """To one point, or to two opposite ones. In small batches OLE keeps its rank, and SSOLE in large ones too."""

    def train(loss: torch.nn.Module, images: int, dims: int) -> tuple[float, float]:
        """Share of the first direction, and length of the mean."""
        z = theory.train_encoder(loss, images, dims=dims, noise=0.7, steps=300)
        singular = torch.linalg.svdvals(z)
        return float(singular[0] ** 2 / (singular**2).sum()), float(z.mean(0).norm())

    share, mean = train(OLELoss(), 128, 6)
    assert share > 0.99
    assert mean > 0.99
    share, mean = train(OLELoss(), 128, 4)
    assert share > 0.98
    assert mean < 0.2
    assert train(OLELoss(), 6, 6)[0] < 0.5
    assert train(SSOLELoss(), 128, 6)[0] < 0.95


# Signs


def test_raw_norms_do_not_see_signs_and_deviations_do() -> None:
    z = unit(6, 4, 9)
    signs = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)[:, None]
    torch.testing.assert_close(nuclear_norm(z * signs), nuclear_norm(z))
    equal, opposite = torch.cat([z[:, :1], z[:, :1]], 1), torch.cat([z[:, :1], -z[:, :1]], 1)
    torch.testing.assert_close(nuclear_norm(opposite), nuclear_norm(equal))
    raw = SSOLELoss(low_rank_features="raw")
    assert raw.terms(opposite).low_rank.item() == pytest.approx(0, abs=1e-12)
    assert SSOLELoss().terms(equal).low_rank.item() == pytest.approx(0, abs=1e-12)
    assert SSOLELoss().terms(opposite).low_rank.item() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("cosine", [-0.9, -0.3, 0.3, 0.9])
def test_low_rank_of_two_views(cosine: float, theory: ModuleType) -> None:
    """Descent on raw norms turns views with a negative cosine away from each other; on deviations, never."""
    z = theory.pairs_of_views(torch.tensor([cosine, cosine], dtype=torch.float64))
    for loss, value in (
        (SSOLELoss(low_rank_features="raw"), math.sqrt(1 - cosine**2)),
        (SSOLELoss(), 1 - cosine),
    ):
        assert loss.terms(z).low_rank.item() == pytest.approx(value, abs=1e-12)
        slope = gradient(lambda x, loss=loss: loss.terms(x).low_rank, z)
        after = F.cosine_similarity(*(z - 1e-3 * slope).unbind(1), dim=-1)
        goes_up = cosine > 0 or loss.low_rank_features == "deviations"
        assert bool((after > cosine).all()) == goes_up


# The low-rank term


@pytest.mark.parametrize(("views", "cosine"), [(2, -1.0), (3, -0.5), (4, 0.0), (4, 0.7), (8, 0.99), (5, -0.24)])
def test_low_rank_of_one_common_cosine(views: int, cosine: float) -> None:
    gram = torch.full((views, views), cosine, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(gram + (1 - cosine) * torch.eye(views))
    z = vectors * values.clamp(min=0).sqrt()
    assert SSOLELoss().terms(z.expand(2, views, views)).low_rank.item() == pytest.approx(1 - cosine, abs=1e-7)


def test_low_rank_lies_between_bounds_of_the_mean_cosine() -> None:
    for seed in range(50):
        z = F.normalize(normal(1, 1, 6, seed=seed) + 0.1 * seed * normal(1, 4, 6, seed=seed + 100), dim=-1)
        mean_cosine = ((z[0] @ z[0].mT).sum() - 4) / 12
        low = SSOLELoss().terms(z.expand(2, 4, 6)).low_rank
        assert (1 - mean_cosine) / 3 - 1e-12 <= low <= 1 - mean_cosine + 1e-12


# Random unit vectors

RATIOS = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_marchenko_pastur_mean(ratio: float, theory: ModuleType) -> None:
    """The closed form against the integral, its symmetry, and the quarter circle."""
    from scipy.integrate import quad

    low, high = abs(1 - math.sqrt(ratio)), 1 + math.sqrt(ratio)

    def density_times_s(s: float) -> float:
        return math.sqrt(max(0.0, (high**2 - s**2) * (s**2 - low**2))) / (math.pi * ratio)

    assert theory.random_share(ratio) == pytest.approx(quad(density_times_s, low, high)[0], abs=1e-7)
    assert theory.random_share(1 / ratio) == pytest.approx(math.sqrt(ratio) * theory.random_share(ratio), rel=1e-12)
    assert theory.random_share(1) == pytest.approx(8 / (3 * math.pi), rel=1e-12)
    assert theory.random_share(ratio) / min(1, 1 / math.sqrt(ratio)) >= 8 / (3 * math.pi) - 1e-12


@pytest.mark.parametrize("ratio", RATIOS)
def test_random_unit_rows_have_the_marchenko_pastur_mean(ratio: float, theory: ModuleType) -> None:
    images = round(64 * ratio)
    r = norm(unit(20, images, 64, seed=images)).mean()
    assert r.item() / images == pytest.approx(theory.random_share(ratio), rel=0.01)


# The high-rank term


@pytest.mark.parametrize(("images", "dims"), [(5, 4), (12, 4), (7, 3), (64, 7)])
def test_tight_frames_have_the_greatest_nuclear_norm(images: int, dims: int) -> None:
    frame = tight_frame(images, dims)
    assert frame.norm(dim=1).sub(1).abs().max() < 1e-12
    r = nuclear_norm(frame)
    assert r.item() == pytest.approx(math.sqrt(images * dims), rel=1e-12)
    assert collapse(r, images, 1.0).item() == pytest.approx((images - dims) / (dims * (images - 1)), rel=1e-9)
    share = dims / images
    c2 = (1 - share) * (images - 2) / (images - 1) + 2 * math.sqrt(share * (1 - share) / (images - 1))
    assert collapse(r, images, 0.0).item() == pytest.approx(c2, rel=1e-9)
    assert (norm(unit(100, images, dims)) < r).all()


def test_c1_is_the_least_mean_squared_cosine() -> None:
    def mean_squared_cosine(rows: Tensor) -> float:
        return (((rows @ rows.mT) ** 2).sum().item() - len(rows)) / (len(rows) * (len(rows) - 1))

    for images, dims in ((6, 9), (12, 4)):
        for seed in range(20):
            rows = F.normalize(normal(images, dims, seed=seed) + 0.1 * seed, dim=-1)
            assert collapse(nuclear_norm(rows), images, 1.0) <= mean_squared_cosine(rows) + 1e-12
    frame = tight_frame(12, 4)
    assert collapse(nuclear_norm(frame), 12, 1.0).item() == pytest.approx(mean_squared_cosine(frame), rel=1e-9)


@pytest.mark.parametrize("cosine", [0.0, 0.1, 0.5, 0.9])
def test_c2_is_the_cosine_of_images_at_one_cosine(cosine: float) -> None:
    rows = rows_of_gram(torch.full((7, 7), cosine, dtype=torch.float64))
    assert collapse(nuclear_norm(rows), 7, 0.0).item() == pytest.approx(cosine, abs=1e-6)


def test_high_rank_falls_as_the_nuclear_norm_grows() -> None:
    r = torch.linspace(math.sqrt(50), 50, 1001, dtype=torch.float64)
    for gamma in (0.0, 0.5, 1.0):
        assert (collapse(r, 50, gamma).diff() < 0).all()


# Minima of the whole loss


def test_minimum_for_enough_dimensions() -> None:
    best = orthonormal(5, 8)[:, None].expand(5, 3, 8)
    assert SSOLELoss()(best).item() == pytest.approx(0, abs=1e-12)
    for seed in range(20):
        assert SSOLELoss()(best + 0.01 * normal(5, 3, 8, seed=seed)) > 1e-4


def test_minimum_for_too_few_dimensions() -> None:
    """Descent from random embeddings reaches aligned views in a tight frame."""
    images, dims = 10, 4
    best = twice(tight_frame(images, dims))
    least = SSOLELoss()(best).item()
    r = torch.tensor(math.sqrt(images * dims), dtype=torch.float64)
    assert least == pytest.approx(0.6 * collapse(r, images, 0.5).item(), rel=1e-9)
    z = normal(images, 2, dims).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=2.0, momentum=0.9)
    for _ in range(800):
        optimizer.zero_grad()
        SSOLELoss()(z).backward()
        optimizer.step()
    z = F.normalize(z.detach(), dim=-1)
    assert SSOLELoss()(z).item() == pytest.approx(least, abs=1e-6)
    assert F.cosine_similarity(z[:, 0], z[:, 1], dim=-1).min() > 1 - 1e-4
    torch.testing.assert_close(z[:, 0].mT @ z[:, 0], images / dims * torch.eye(dims).double(), atol=1e-2, rtol=0)


# Gradients


def test_the_gradient_weighs_every_direction_alike() -> None:
    for shape in ((6, 9), (9, 6)):
        x = normal(*shape) * torch.logspace(0, -4, shape[1], dtype=torch.float64)
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        weights = u.mT @ gradient(nuclear_norm, x) @ vh.mT
        torch.testing.assert_close(weights, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def by_cosine(objective, cosines: Tensor) -> Tensor:
    """Derivatives with respect to the cosine of each pair of images, (B, B), each pair counted once."""
    slope = gradient(lambda x: objective(rows_of_gram((x + x.mT) / 2)), cosines)
    return (slope + slope.mT).fill_diagonal_(0)


def test_repulsion_by_the_nuclear_norm_is_a_spring() -> None:
    images = 8
    cosines = small_cosines(images, 1e-4)
    rms = math.sqrt((cosines**2).sum() / (images * (images - 1)))
    springs = {
        "r": (nuclear_norm, -cosines / 2),
        "c1": (lambda z: collapse(nuclear_norm(z), images, 1.0), cosines / (images * (images - 1))),
        "c2": (lambda z: collapse(nuclear_norm(z), images, 0.0), 2 * cosines / (images * (images - 1) * rms)),
    }
    for name, (objective, expected) in springs.items():
        assert relative(by_cosine(objective, cosines), expected) < 2e-3, name
    r = nuclear_norm(rows_of_gram(cosines))
    assert collapse(r, images, 1.0).item() == pytest.approx(rms**2 / 4, rel=1e-3)
    assert collapse(r, images, 0.0).item() == pytest.approx(rms, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_repulsion_by_nt_xent_is_a_softmax(temperature: float) -> None:
    images = 8

    def spread(rows: Tensor) -> Tensor:
        return SimCLRLoss(temperature=temperature).terms(twice(rows)).spread

    cosines = small_cosines(images, 0.05)
    weights = (cosines / temperature).exp().fill_diagonal_(0)
    z = math.exp(1 / temperature) + 2 * weights.sum(1)
    exact = 2 / (images * temperature) * weights * (1 / z[:, None] + 1 / z)
    assert relative(by_cosine(spread, cosines), exact) < 1e-9

    cosines = small_cosines(images, 1e-4)
    z0 = math.exp(1 / temperature) + 2 * (images - 1)
    sums = cosines.sum(1)
    first = 1 + (cosines - (sums[:, None] + sums) / z0) / temperature
    first = (4 / (images * temperature * z0) * first).fill_diagonal_(0)
    found = by_cosine(spread, cosines)
    assert relative(found, first) < 1e-5
    assert (found + torch.eye(images) > 0).all()  # pushes apart at any cosine, negative ones too


def test_a_vanishing_direction_grows_by_the_nuclear_norm_only(theory: ModuleType) -> None:
    rates = {}
    for size in (1e-2, 1e-3):
        scales = torch.tensor([1, 1, 1, 1, size], dtype=torch.float64)
        singular, by_r, by_simclr = theory.growth(F.normalize(normal(20, 5) * scales, dim=-1), 0.2)
        rates[size] = (singular[-1], by_r[-1], by_simclr[-1])
    assert rates[1e-3][1] / rates[1e-2][1] == pytest.approx(1, abs=0.05)
    shrinks = rates[1e-3][0] / rates[1e-2][0]
    assert rates[1e-3][2] / rates[1e-2][2] == pytest.approx(shrinks.item(), rel=0.05)


def test_two_images_at_an_angle(theory: ModuleType) -> None:
    """Among otherwise orthonormal images, r is B - 2 + sqrt(2) (cos(angle / 2) + sin(angle / 2))."""
    angles = torch.tensor([0.1, 0.7, math.pi / 2, 2.5, 3.0], dtype=torch.float64)
    by_r, by_simclr = theory.pair_forces(angles, 6, 0.2)
    torch.testing.assert_close(by_r, ((angles / 2).cos() - (angles / 2).sin()) / math.sqrt(2), atol=1e-9, rtol=0)
    assert (by_simclr > 0).all()


# The page


def test_the_page_names_every_test_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_the_page_names_every_test_and_no_other", "test_pictures_are_drawn"}


@pytest.mark.parametrize("name", ["ole", "signs", "random", "high-rank", "gradient"])
def test_pictures_are_drawn(name: str, theory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["theory.py", "--only", name, "--out", str(tmp_path)])
    monkeypatch.setitem(theory.PICTURES, "ole", lambda: theory.draw_ole(steps=2))
    theory.main()
    assert (tmp_path / f"theory-{name}.png").stat().st_size > 10_000
    assert f"img/theory-{name}.png" in PAGE.read_text(encoding="utf-8")
