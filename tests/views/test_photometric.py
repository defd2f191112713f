"""Photometric operations against torchvision's, one by one."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from view_cases import PLAIN, as_float, params_of

from ssole.config import Crop
from ssole.views import make_views, photometric


@pytest.mark.parametrize(
    ("operation", "oracle", "amounts"),
    [
        (photometric.BRIGHTNESS, tv.adjust_brightness, (0.0, 0.6, 1.4)),
        (photometric.CONTRAST, tv.adjust_contrast, (0.0, 0.6, 1.4)),
        (photometric.SATURATION, tv.adjust_saturation, (0.0, 0.6, 1.4)),
        (photometric.HUE, tv.adjust_hue, (-0.5, -0.1, 0.0, 0.1, 0.37)),
    ],
)
def test_colour_operations_are_torchvisions(
    photos: torch.Tensor, operation: int, oracle: tv.adjust_hue, amounts: tuple[float, ...]
) -> None:
    grey = torch.full((1, 3, 64, 80), 128, dtype=torch.uint8)
    images = torch.cat([photos, grey, torch.zeros_like(grey), torch.full_like(grey, 255)])
    order = [operation, *(other for other in range(4) if other != operation)]
    for amount in amounts:
        factors = [1.0, 1.0, 1.0, 0.0]
        factors[operation] = amount
        for mine in jittered(as_float(images), order, factors):
            torch.testing.assert_close(mine, oracle(as_float(images), amount), atol=2e-4, rtol=0)
            assert (mine - as_float(oracle(images, amount))).abs().max() < 2 / 255


@pytest.mark.parametrize("operation", [photometric.BRIGHTNESS, photometric.CONTRAST, photometric.SATURATION])
def test_an_operation_looks_at_no_other_factor(photos: torch.Tensor, operation: int) -> None:
    factors = torch.full((8, 4), torch.nan)
    factors[:, operation] = 0.6
    order = torch.tensor([operation, *({0, 1, 2} - {operation}), photometric.HUE]).expand(8, 4)
    params = dataclasses.replace(params_of(PLAIN, torch.arange(4), 8, 8), order=order, factors=factors)
    jitter = photometric.jitter_of(params, 3)
    mine = photometric.jitter_slot(as_float(photos).flatten(2), jitter.matrix[:, 0], jitter.contrast[:, 0])
    mine = mine.unflatten(2, (64, 80))
    oracle = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[operation]
    torch.testing.assert_close(mine, oracle(as_float(photos), 0.6), atol=2e-4, rtol=0)


def jittered(x: torch.Tensor, order: list[int], factors: list[float]) -> list[torch.Tensor]:
    """Views jittered on both routes: many at once, and one at a time."""
    views = len(x)
    params = dataclasses.replace(
        params_of(PLAIN, torch.arange(views // 2 + 1), 8, 8)[:views],
        order=torch.tensor(order).expand(views, 4),
        factors=torch.tensor(factors).expand(views, 4),
    )
    jitter = photometric.jitter_of(params, x.shape[1])
    recipe = PLAIN if x.shape[1] == 3 else dataclasses.replace(PLAIN, hue=0)
    many = photometric.jitter_many(x.clone(), jitter, recipe, order.index(photometric.HUE))
    luma = photometric.luma_weights(x.shape[1], x.device)
    alone = [photometric.jitter_one(view.flatten(1).clone(), order, factors, luma) for view in x]
    return [many, torch.stack(alone).view_as(x)]


def test_jitter_runs_its_operations_in_each_views_own_order(photos: torch.Tensor) -> None:
    recipe = dataclasses.replace(
        PLAIN, jitter=0.8, hue=0.2, crops=(Crop(count=25, size=64, scale=(1, 1), ratio=(1, 1)),)
    )
    square, ids = photos[..., :64].contiguous(), torch.arange(len(photos))
    (views,) = make_views(square, ids, recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, ids, 64, 64)
    assert len(params.order.unique(dim=0)) == 24
    assert params.jitter.unique().tolist() == [False, True]
    oracles = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for row, view in enumerate(views.flatten(0, 1)):
        expected = as_float(square[row // 25])
        if params.jitter[row]:
            for operation in params.order[row].tolist():
                expected = oracles[operation](expected, float(params.factors[row, operation]))
        torch.testing.assert_close(view, expected, atol=1e-3, rtol=0)


def test_contrast_of_one_channel_is_torchvisions_of_grey_images(photos: torch.Tensor) -> None:
    one = as_float(photos[:, :1])
    for mine in jittered(one, [photometric.CONTRAST, 0, 2, 3], [1.0, 0.3, 1.0, 0.0]):
        torch.testing.assert_close(mine, tv.adjust_contrast(one, 0.3), atol=1e-5, rtol=0)


def blurred(x: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
    """Views blurred on both routes: many at once, and one at a time."""
    taps = photometric.blur_taps(sigma, x.shape[-1], PLAIN)
    alone = [photometric.blur_one(view, taps, n, float(sigma[n]), PLAIN).mT for n, view in enumerate(x)]
    return [photometric.blur_many(x, sigma, PLAIN), torch.stack(alone)]


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
def test_blur_is_torchvisions(photos: torch.Tensor, sigma: float) -> None:
    square = photos[..., :64]
    expected = tv.gaussian_blur(as_float(square), kernel_size=[13, 13], sigma=[sigma, sigma])
    # SimCLR's window, a tenth of 224 px. What it adds is too little for a value of 8 bits to show.
    wide = tv.gaussian_blur(square, kernel_size=[23, 23], sigma=[sigma, sigma])
    for mine in blurred(as_float(square), torch.full((len(square),), sigma)):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
        assert (mine - as_float(wide)).abs().max() < 2 / 255


@pytest.mark.parametrize("size", [5, 64, 65, 130])
def test_views_of_any_size_are_blurred_to_the_same_effect(size: int) -> None:
    x = torch.rand(2, 3, size, size, generator=torch.manual_seed(0))
    many, alone = blurred(x, torch.tensor([0.5, 2.0]))
    for view, sigma in zip(range(2), (0.5, 2.0), strict=True):
        window = min(2 * math.ceil(4 * sigma) + 1, 13, 2 * size - 1)
        expected = tv.gaussian_blur(x[view], kernel_size=[window, window], sigma=[sigma, sigma])
        torch.testing.assert_close(many[view], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone[view], expected, atol=1e-5, rtol=0)


def test_blur_with_sigma_0_changes_nothing(photos: torch.Tensor) -> None:
    square = as_float(photos)[..., :64]
    for mine in blurred(square, torch.zeros(len(square))):
        torch.testing.assert_close(mine, square, atol=1e-6, rtol=0)


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
