"""The batched operations against torchvision's, one by one, and the views as functions of (seed, epoch, id, view)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ssole.config import Crop, ViewRecipe
from ssole.views import make_views
from ssole.views.augment import _blur, _brightness, _contrast, _hue, _saturation
from ssole.views.recipe import ViewParams, sample_params

PLAIN = ViewRecipe(hflip=0, jitter=0, grey=0, mean=(0, 0, 0), std=(1, 1, 1))
FULL = ViewRecipe(crops=(Crop(count=3, size=24),), vflip=0.3, blur=0.5, solarize=0.3)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """uint8 (8, 3, 64, 80): pieces of real photographs."""
    from sklearn.datasets import load_sample_images

    pieces = [
        image[40 * k : 40 * k + 64, 50 * k : 50 * k + 80] for image in load_sample_images().images for k in range(4)
    ]
    return torch.stack([torch.from_numpy(piece.copy()).permute(2, 0, 1) for piece in pieces])


def params_of(recipe: ViewRecipe, ids: torch.Tensor, height: int, width: int, *, seed: int = 0) -> ViewParams:
    views = torch.arange(recipe.crops[0].count)
    return sample_params(recipe, recipe.crops[0], ids, views, torch.tensor([[height, width]]), seed=seed, epoch=0)


def as_float(photos: torch.Tensor) -> torch.Tensor:
    return photos.float() / 255


@pytest.mark.parametrize("size", [16, 64, 160])
def test_crops_are_torchvisions_antialiased_resized_crops(photos: torch.Tensor, size: int) -> None:
    recipe = dataclasses.replace(PLAIN, crops=(Crop(count=4, size=size, scale=(0.05, 1.0)),), hflip=0.5, vflip=0.5)
    ids = torch.arange(len(photos))
    (views,) = make_views(photos, ids, recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, ids, 64, 80)
    for image in range(len(photos)):
        for view in range(4):
            left, top, width, height = (int(value) for value in params.box[image, view])
            expected = tv.resized_crop(as_float(photos[image]), top, left, height, width, [size, size], antialias=True)
            expected = expected.flip(-1) if params.hflip[image, view] else expected
            expected = expected.flip(-2) if params.vflip[image, view] else expected
            torch.testing.assert_close(views[image, view], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("operation", "oracle", "amounts"),
    [
        (_brightness, tv.adjust_brightness, (0.0, 0.6, 1.4)),
        (_contrast, tv.adjust_contrast, (0.0, 0.6, 1.4)),
        (_saturation, tv.adjust_saturation, (0.0, 0.6, 1.4)),
        (_hue, tv.adjust_hue, (-0.5, -0.1, 0.0, 0.1, 0.37)),
    ],
)
def test_colour_operations_are_torchvisions(
    photos: torch.Tensor,
    operation: Callable[[torch.Tensor, torch.Tensor], None],
    oracle: Callable[[torch.Tensor, float], torch.Tensor],
    amounts: tuple[float, ...],
) -> None:
    grey = torch.full((1, 3, 64, 80), 0.5)
    images = torch.cat([as_float(photos), grey, torch.zeros_like(grey), torch.ones_like(grey)])
    for amount in amounts:
        mine = images.clone()
        operation(mine, torch.full((len(images), 1, 1, 1), amount))
        torch.testing.assert_close(mine, oracle(images, amount), atol=2e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_torchvisions(photos: torch.Tensor, sigma: float) -> None:
    square = as_float(photos)[..., :64]
    mine = _blur(square, torch.full((len(square),), sigma))
    expected = tv.gaussian_blur(square, kernel_size=[2 * int(3 * sigma + 0.5) + 1] * 2, sigma=[sigma, sigma])
    torch.testing.assert_close(mine, expected, atol=2 / 255, rtol=0)


def test_grey_solarize_and_normalization(photos: torch.Tensor) -> None:
    recipe = dataclasses.replace(PLAIN, crops=(Crop(count=2, size=64, scale=(1, 1), ratio=(1, 1)),))
    square, ids = photos[..., :64].contiguous(), torch.arange(8)

    def all_views(**changes: object) -> torch.Tensor:
        return make_views(square, ids, recipe=dataclasses.replace(recipe, **changes), seed=0, epoch=0)[0][:, 0]  # type: ignore[arg-type]

    torch.testing.assert_close(all_views(), as_float(square), atol=1e-5, rtol=0)
    torch.testing.assert_close(all_views(grey=1.0), v2.Grayscale(3)(as_float(square)), atol=1e-4, rtol=0)
    torch.testing.assert_close(all_views(solarize=1.0), tv.solarize(as_float(square), 128 / 255), atol=1e-5, rtol=0)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    torch.testing.assert_close(
        all_views(mean=mean, std=std), tv.normalize(as_float(square), list(mean), list(std)), atol=1e-5, rtol=0
    )


def test_views_depend_on_seed_epoch_id_and_view_alone(photos: torch.Tensor) -> None:
    ids = torch.arange(100, 108)
    (whole,) = make_views(photos, ids, recipe=FULL, seed=5, epoch=2)
    some = torch.tensor([6, 1])
    (part,) = make_views(photos[some], ids[some], recipe=FULL, seed=5, epoch=2)
    torch.testing.assert_close(part, whole[some], atol=1e-5, rtol=0)
    for changes in ({"seed": 6}, {"epoch": 3}):
        (other,) = make_views(photos, ids, recipe=FULL, **{"seed": 5, "epoch": 2, **changes})
        assert (other - whole).abs().mean() > 0.1
    assert (whole[:, 0] - whole[:, 1]).abs().mean() > 0.1


def test_a_list_of_images_gives_the_views_of_a_tensor(photos: torch.Tensor) -> None:
    ids = torch.arange(8)
    (tensor,) = make_views(photos, ids, recipe=FULL, seed=1, epoch=0)
    (listed,) = make_views(list(photos), ids, recipe=FULL, seed=1, epoch=0)
    torch.testing.assert_close(tensor, listed, atol=2e-3, rtol=0)
    (mixed,) = make_views([photos[0], photos[1, :, :40, :30]], ids[:2], recipe=FULL, seed=1, epoch=0)
    torch.testing.assert_close(mixed[0], tensor[0], atol=2e-3, rtol=0)


def test_crop_groups_give_one_tensor_each(photos: torch.Tensor) -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32), Crop(count=5, size=16, scale=(0.05, 0.2))))
    large, small = make_views(photos, torch.arange(8), recipe=recipe, seed=0, epoch=0)
    assert large.shape == (8, 2, 3, 32, 32)
    assert small.shape == (8, 5, 3, 16, 16)


def test_crop_boxes_have_torchvisions_distribution() -> None:
    crop = Crop(count=2, size=8, scale=(0.08, 1.0))
    recipe = ViewRecipe(crops=(crop,))
    boxes = params_of(recipe, torch.arange(4000), 48, 64).box.flatten(0, 1)
    image = torch.zeros(3, 48, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.RandomResizedCrop(8, scale=crop.scale)
        drawn = [transform.make_params([image]) for _ in range(8000)]
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


def test_other_parameters_have_the_distributions_asked_for() -> None:
    recipe = ViewRecipe(
        crops=(Crop(count=4),),
        hflip=0.3,
        vflip=0.1,
        jitter=0.8,
        brightness=1.5,
        hue=0.1,
        grey=0.2,
        blur=0.5,
        solarize=0.2,
    )
    params = params_of(recipe, torch.arange(25_000), 32, 32)
    n = 100_000
    for name in ("hflip", "vflip", "jitter", "grey", "solarize"):
        p = getattr(recipe, name)
        assert abs(getattr(params, name).float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    ranges = [(0.0, 2.5), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for values, (low, high) in zip(params.factors.flatten(0, 1).unbind(-1), ranges, strict=True):
        assert scipy.stats.kstest(values.numpy(), scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4
    orders = (params.order.flatten(0, 1) * torch.tensor([64, 16, 4, 1])).sum(dim=-1)
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    blurred = params.sigma > 0
    assert abs(blurred.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    assert scipy.stats.kstest(params.sigma[blurred].numpy(), scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)],
)
def test_wrong_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        make_views(images, torch.arange(2), recipe=FULL, seed=0, epoch=0)


def test_ids_must_match_images(photos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="3 ids and 8 images"):
        make_views(photos, torch.arange(3), recipe=FULL, seed=0, epoch=0)
