"""Parameters of views: torchvision's distribution of boxes, the others as asked for, and independence."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.transforms import v2
from view_cases import params_of

from ssole.config import Crop, ViewRecipe
from ssole.views.params import sample_params


def test_crop_boxes_have_torchvisions_distribution() -> None:
    crop = Crop(count=2, size=8, scale=(0.08, 1.0))
    recipe = ViewRecipe(crops=(crop,))
    boxes = params_of(recipe, torch.arange(50_000), 48, 64).box
    image = torch.zeros(3, 48, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.RandomResizedCrop(8, scale=crop.scale)
        drawn = [transform.make_params([image]) for _ in range(20_000)]
    theirs = torch.tensor([[d["left"], d["top"], d["width"], d["height"]] for d in drawn])
    for mine, other in zip(boxes.unbind(-1), theirs.unbind(-1), strict=True):
        assert scipy.stats.ks_2samp(mine.numpy(), other.numpy()).pvalue > 1e-3


def test_crop_boxes_stay_inside_images_of_any_shape() -> None:
    crop = Crop(count=8, size=8, scale=(0.01, 1.0), ratio=(0.2, 5.0))
    for height, width in ((1, 1), (1, 50), (50, 2), (7, 300)):
        left, top, w, h = params_of(ViewRecipe(crops=(crop,)), torch.arange(500), height, width).box.unbind(-1)
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (w >= 1).all()
        assert (h >= 1).all()
        assert (left + w <= width).all()
        assert (top + h <= height).all()


DRAWN = ViewRecipe(
    crops=(Crop(count=4),),
    hflip=0.3,
    vflip=0.1,
    turn=0.6,
    jitter=0.8,
    brightness=1.5,
    hue=0.1,
    grey=0.2,
    blur=0.5,
    solarize=0.2,
)


@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.1, 0.2)])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_a_crop_has_a_pixel_at_least(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    crop, ids = Crop(count=4, size=8, ratio=ratio), torch.arange(20)
    box = sample_params(ViewRecipe(), crop, ids, torch.arange(4), torch.tensor([size]), seed=0, epoch=0).box
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= torch.tensor(size[::-1])).all()


def test_other_parameters_have_the_distributions_asked_for() -> None:
    params, n = params_of(DRAWN, torch.arange(25_000), 32, 32), 100_000
    for name in ("hflip", "vflip", "jitter", "grey", "solarize"):
        p = getattr(DRAWN, name)
        assert abs(getattr(params, name).float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    turns = params.turns.bincount(minlength=4).numpy()
    assert scipy.stats.chisquare(turns, n * np.array([0.4, 0.2, 0.2, 0.2])).pvalue > 1e-4
    ranges = [(0.0, 2.5), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for values, (low, high) in zip(params.factors[params.jitter].unbind(-1), ranges, strict=True):
        assert scipy.stats.kstest(values.numpy(), scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4
    assert (params.factors[~params.jitter] == torch.tensor([1, 1, 1, 0])).all()
    orders = (params.order * torch.tensor([64, 16, 4, 1])).sum(dim=-1)
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    blurred = params.sigma > 0
    assert abs(blurred.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    assert scipy.stats.kstest(params.sigma[blurred].numpy(), scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


def test_operations_and_views_are_independent_of_each_other() -> None:
    """A parameter has no correlation with the others of its view, or with itself in other views of the image."""
    params, n = params_of(DRAWN, torch.arange(25_000), 40, 56), 100_000
    jittered = params_of(dataclasses.replace(DRAWN, jitter=1), torch.arange(25_000), 40, 56).factors
    columns = {
        **{f"box{i}": params.box[:, i] for i in range(4)},
        **{f"factor{i}": jittered[:, i] for i in range(4)},
        **{f"order{i}": params.order[:, i].float() for i in range(3)},
        **{name: getattr(params, name).float() for name in ("hflip", "vflip", "turns", "jitter", "grey", "solarize")},
        "blur": (params.sigma > 0).float(),
    }
    related = {"box", "factor", "order"}  # the sides of a crop depend on each other, as do positions in an order
    ranks = {name: torch.from_numpy(scipy.stats.rankdata(values.numpy())) for name, values in columns.items()}
    limit = 4.5 / n**0.5  # of a rank correlation; there are about 140 pairs
    for (a, x), (b, y) in itertools.combinations(ranks.items(), 2):
        if a.rstrip("0123") != b.rstrip("0123") or a.rstrip("0123") not in related:
            assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < limit, (a, b)
    for name, x in ranks.items():
        views = x.view(25_000, 4)
        correlations = torch.corrcoef(views.T)[torch.triu(torch.ones(4, 4), 1).bool()]
        assert correlations.abs().max() < 4.5 / 25_000**0.5, name
