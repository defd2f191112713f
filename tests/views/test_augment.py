"""The batched operations against torchvision's, one by one, and the views as functions of (seed, epoch, id, view)."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import scipy.stats
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ssole.config import Crop, ViewRecipe
from ssole.views import augment, colour, crop, filters, make_views, single
from ssole.views.recipe import ViewParams, sample_params

PLAIN = ViewRecipe(hflip=0, jitter=0, grey=0, mean=(0, 0, 0), std=(1, 1, 1))
FULL = ViewRecipe(crops=(Crop(count=3, size=24),), vflip=0.3, turn=0.75, blur=0.5)
SOLARIZED = dataclasses.replace(FULL, solarize=0.3)  # a threshold, so rounding may change single pixels


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


def blurred(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return colour.blur(x, colour.blur_taps(sigma, x.shape[-1], PLAIN))


def as_float(photos: torch.Tensor) -> torch.Tensor:
    return photos.float() / 255


def torchvisions_crop(image: torch.Tensor, params: ViewParams, n: int, size: int) -> torch.Tensor:
    left, top, width, height = (int(value) for value in params.box[n])
    view = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    view = view.flip(-1) if params.hflip[n] else view
    view = view.flip(-2) if params.vflip[n] else view
    return view.rot90(int(params.turns[n]), (-2, -1))


@pytest.mark.parametrize("size", [8, 16, 64, 256])
def test_crops_are_torchvisions_antialiased_resized_crops(photos: torch.Tensor, size: int) -> None:
    """From 8 times smaller than the photograph to 4 times larger, and much more for small crops."""
    recipe = dataclasses.replace(
        PLAIN, crops=(Crop(count=4, size=size, scale=(0.05, 1.0)),), hflip=0.5, vflip=0.5, turn=0.75
    )
    ids = torch.arange(len(photos))
    (views,) = make_views(photos, ids, recipe=recipe, seed=0, epoch=0)
    (listed,) = make_views(list(photos), ids, recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, ids, 64, 80)
    assert params.turns.unique().tolist() == [0, 1, 2, 3]
    for row, (image, view) in enumerate(itertools.product(range(len(photos)), range(4))):
        expected = torchvisions_crop(as_float(photos[image]), params, row, size)
        for mine in (views, listed):
            torch.testing.assert_close(mine[image, view], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("alone_from", [0, 1 << 40])
@pytest.mark.parametrize("size", [12, 100, 400])
def test_crops_of_large_images_are_torchvisions_too(
    size: int, alone_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filtered crop after crop; also all channels or each by itself, and against torchvision on uint8."""
    from sklearn.datasets import load_sample_image

    monkeypatch.setattr(augment, "_ALONE", alone_from)
    monkeypatch.setattr(crop, "_CHANNELS_TOGETHER", 350_000)
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    recipe = dataclasses.replace(
        PLAIN, crops=(Crop(count=8, size=size, scale=(0.05, 1.0)),), hflip=0.5, vflip=0.5, turn=0.75
    )
    (views,) = make_views(image, torch.tensor([3]), recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, torch.tensor([3]), 427, 640)
    pixels = params.box[:, 2] * params.box[:, 3] * 3
    assert pixels.min() < 350_000 < pixels.max()
    for n, view in enumerate(views[0]):
        exact = torchvisions_crop(as_float(image[0]), params, n, size)
        torch.testing.assert_close(view, exact, atol=1e-4, rtol=0)
        assert (view - as_float(torchvisions_crop(image[0], params, n, size))).abs().mean() < 2 / 255


@pytest.mark.parametrize("alone_from", [0, 1 << 40])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (90, 1), (64, 64), (300, 96)])
@pytest.mark.parametrize("size", [4, 32])
def test_images_of_any_shape_become_views_and_stay_as_they_are(
    height: int, width: int, size: int, alone_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_ALONE", alone_from)
    images = torch.randint(256, (2, 3, height, width), generator=torch.manual_seed(0)).to(torch.uint8)
    kept = images.clone()
    recipe = dataclasses.replace(FULL, crops=(Crop(count=4, size=size),), jitter=1.0)
    (views,) = make_views(images, torch.arange(2), recipe=recipe, seed=0, epoch=0)
    (listed,) = make_views(list(images), torch.arange(2), recipe=recipe, seed=0, epoch=0)
    assert views.isfinite().all()
    torch.testing.assert_close(views, listed, atol=2e-4, rtol=0)
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("operation", "oracle", "amounts"),
    [
        (colour.BRIGHTNESS, tv.adjust_brightness, (0.0, 0.6, 1.4)),
        (colour.CONTRAST, tv.adjust_contrast, (0.0, 0.6, 1.4)),
        (colour.SATURATION, tv.adjust_saturation, (0.0, 0.6, 1.4)),
        (colour.HUE, tv.adjust_hue, (-0.5, -0.1, 0.0, 0.1, 0.37)),
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


@pytest.mark.parametrize("operation", [colour.BRIGHTNESS, colour.CONTRAST, colour.SATURATION])
def test_an_operation_looks_at_no_other_factor(photos: torch.Tensor, operation: int) -> None:
    factors = torch.full((8, 4), torch.nan)
    factors[:, operation] = 0.6
    order = torch.tensor([operation, *({0, 1, 2} - {operation}), colour.HUE]).expand(8, 4)
    params = dataclasses.replace(params_of(PLAIN, torch.arange(4), 8, 8), order=order, factors=factors)
    mine = colour.linear(as_float(photos).flatten(2), colour.jitter_of(params, 3), slot=0).unflatten(2, (64, 80))
    oracle = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[operation]
    torch.testing.assert_close(mine, oracle(as_float(photos), 0.6), atol=2e-4, rtol=0)


def jittered(x: torch.Tensor, order: list[int], factors: list[float]) -> list[torch.Tensor]:
    """Of all routes: many views with hue in one place or anywhere, and one at a time."""
    views = len(x)
    params = dataclasses.replace(
        params_of(PLAIN, torch.arange(views // 2 + 1), 8, 8)[:views],
        order=torch.tensor(order).expand(views, 4),
        factors=torch.tensor(factors).expand(views, 4),
    )
    jitter = colour.jitter_of(params, x.shape[1])
    recipe = PLAIN if x.shape[1] == 3 else dataclasses.replace(PLAIN, hue=0)
    places = (order.index(colour.HUE), None)
    many = [colour.colour_jitter(x.clone(), jitter, recipe, place) for place in places]
    alone = [single.colour_jitter(view.flatten(1).clone(), order, factors, jitter.luma) for view in x]
    return [*many, torch.stack(alone).view_as(x)]


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


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
def test_blur_is_torchvisions(photos: torch.Tensor, sigma: float) -> None:
    square = photos[..., :64]
    mine = blurred(as_float(square), torch.full((len(square),), sigma))
    expected = tv.gaussian_blur(as_float(square), kernel_size=[13, 13], sigma=[sigma, sigma])
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
    # SimCLR's window, a tenth of 224 px, cuts off less than a value of 8 bits can show
    wide = tv.gaussian_blur(square, kernel_size=[23, 23], sigma=[sigma, sigma])
    assert (mine - as_float(wide)).abs().max() < 2 / 255


@pytest.mark.parametrize("size", [5, 64, 65, 130])
def test_views_of_any_size_are_blurred_to_the_same_effect(size: int) -> None:
    x = torch.rand(2, 3, size, size, generator=torch.manual_seed(0))
    mine = blurred(x, torch.tensor([0.5, 2.0]))
    for view, sigma in zip(range(2), (0.5, 2.0), strict=True):
        window = min(2 * math.ceil(4 * sigma) + 1, 13, 2 * size - 1)
        expected = tv.gaussian_blur(x[view], kernel_size=[window, window], sigma=[sigma, sigma])
        torch.testing.assert_close(mine[view], expected, atol=1e-5, rtol=0)


def test_blur_with_sigma_0_changes_nothing(photos: torch.Tensor) -> None:
    square = as_float(photos)[..., :64]
    torch.testing.assert_close(blurred(square, torch.zeros(len(square))), square, atol=1e-6, rtol=0)


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
    fewer = dataclasses.replace(FULL, crops=(dataclasses.replace(FULL.crops[0], count=2),))
    torch.testing.assert_close(
        make_views(photos, ids, recipe=fewer, seed=5, epoch=2)[0], whole[:, :2], atol=1e-5, rtol=0
    )
    for changes in ({"seed": 6}, {"epoch": 3}):
        (other,) = make_views(photos, ids, recipe=FULL, **{"seed": 5, "epoch": 2, **changes})
        assert (other - whole).abs().mean() > 0.1
    assert (whole[:, 0] - whole[:, 1]).abs().mean() > 0.1


def test_chunks_of_any_size_give_the_same_views(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(8)
    (expected,) = make_views(photos, ids, recipe=FULL, seed=1, epoch=0)
    for limit, alone_from in itertools.product(("_CPU_CHUNK", "_CPU_BLOCK"), (0, 1 << 40)):
        for floats in (1, 5000, 50_000, 1 << 30):
            with monkeypatch.context() as patch:
                patch.setattr(augment, limit, floats)
                patch.setattr(augment, "_ALONE", alone_from)
                (views,) = make_views(photos, ids, recipe=FULL, seed=1, epoch=0)
            torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("size", [5, 48])
def test_views_made_one_at_a_time_are_those_made_together(
    photos: torch.Tensor, channels: int, listed: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: torch.Tensor | list[torch.Tensor] = torch.cat([photos, photos.flip(0)], dim=1)[:, :channels].contiguous()
    if listed:
        images = [image[:, : 40 + 3 * i, : 80 - 4 * i] for i, image in enumerate(images)]
    grey = {} if channels == 3 else {"saturation": 0.0, "hue": 0.0, "grey": 0.0}
    per_channel = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    recipe = dataclasses.replace(FULL, crops=(Crop(count=9, size=size),), **grey, **per_channel)  # type: ignore[arg-type]
    for solarize in (0.0, 0.3):
        recipe = dataclasses.replace(recipe, solarize=solarize)
        views = []
        for alone_from in (0, 1 << 40):
            monkeypatch.setattr(augment, "_ALONE", alone_from)
            views += make_views(images, torch.arange(8), recipe=recipe, seed=1, epoch=0)
        # solarize is a threshold: rounding may change single pixels
        apart = ((views[0] - views[1]).abs() > 2e-4).float().mean()
        assert apart <= (1e-4 if solarize else 0)


def test_the_route_of_accelerators_gives_the_same_views(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """No view is picked out, hue comes anywhere, images are padded: all that differs without a CPU, on one."""
    ids, recipe = torch.arange(8), dataclasses.replace(FULL, crops=(Crop(count=9, size=24),))
    images = [photo[:, : 40 + 3 * i, : 80 - 4 * i] for i, photo in enumerate(photos)]
    (expected,) = make_views(images, ids, recipe=recipe, seed=1, epoch=0)
    chunks: list[tuple[slice, None]] = [(slice(start, start + 10), None) for start in range(0, 72, 10)]
    monkeypatch.setattr(augment, "_chunks", lambda *_: (torch.arange(72), chunks))
    monkeypatch.setattr(colour, "on_chosen", colour.on_all)
    monkeypatch.setattr(filters, "_sums_of_rows", filters._products_of_rows)
    sizes = augment._sizes(images)
    monkeypatch.setattr(augment, "_sizes", lambda _: sizes)
    (views,) = make_views(augment._padded(images), ids, recipe=recipe, seed=1, epoch=0)
    torch.testing.assert_close(views, expected, atol=2e-4, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_gives_the_views_of_the_cpu(photos: torch.Tensor) -> None:
    ids = torch.arange(8)
    listed = [photo[:, : 40 + 3 * i, : 80 - 4 * i] for i, photo in enumerate(photos)]
    for images in (photos, listed):
        (expected,) = make_views(images, ids, recipe=FULL, seed=1, epoch=0)
        moved = images.cuda() if isinstance(images, torch.Tensor) else [image.cuda() for image in images]
        (views,) = make_views(moved, ids, recipe=FULL, seed=1, epoch=0)
        assert views.is_cuda
        torch.testing.assert_close(views.cpu(), expected, atol=2e-4, rtol=0)


def test_a_list_of_images_gives_the_views_of_a_tensor(photos: torch.Tensor) -> None:
    ids = torch.arange(8)
    (tensor,) = make_views(photos, ids, recipe=FULL, seed=1, epoch=0)
    (listed,) = make_views(list(photos), ids, recipe=FULL, seed=1, epoch=0)
    torch.testing.assert_close(tensor, listed, atol=2e-4, rtol=0)
    (mixed,) = make_views([photos[0], photos[1, :, :40, :30]], ids[:2], recipe=FULL, seed=1, epoch=0)
    torch.testing.assert_close(mixed[0], tensor[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_depth_and_number_of_channels(photos: torch.Tensor, channels: int) -> None:
    """16 bits and other channels than red, green and blue: each channel as if it were alone, in [0, 1]."""
    recipe = dataclasses.replace(
        FULL, jitter=1, contrast=0, saturation=0, hue=0, grey=0, mean=(0,) * channels, std=(1,) * channels
    )
    images = torch.cat([photos, photos.flip(0)], dim=1)[:, :channels].contiguous()
    ids = torch.arange(8)
    (views,) = make_views(images, ids, recipe=recipe, seed=0, epoch=0)
    assert views.shape == (8, 3, channels, 24, 24)
    one = dataclasses.replace(recipe, mean=(0,), std=(1,))
    for channel in range(channels):
        (alone,) = make_views(images[:, channel : channel + 1], ids, recipe=one, seed=0, epoch=0)
        torch.testing.assert_close(views[:, :, channel], alone[:, :, 0], atol=1e-5, rtol=0)
    deep = (images.to(torch.int32) * 257).to(torch.uint16)
    for deeper in (deep, list(deep)):
        (same,) = make_views(deeper, ids, recipe=recipe, seed=0, epoch=0)
        torch.testing.assert_close(same, views, atol=1e-5, rtol=0)


def test_contrast_of_one_channel_is_torchvisions_of_grey_images(photos: torch.Tensor) -> None:
    one = as_float(photos[:, :1])
    for mine in jittered(one, [colour.CONTRAST, 0, 2, 3], [1.0, 0.3, 1.0, 0.0]):
        torch.testing.assert_close(mine, tv.adjust_contrast(one, 0.3), atol=1e-5, rtol=0)


def test_crop_groups_give_one_tensor_each(photos: torch.Tensor) -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32), Crop(count=5, size=16, scale=(0.05, 0.2))))
    large, small = make_views(photos, torch.arange(8), recipe=recipe, seed=0, epoch=0)
    assert large.shape == (8, 2, 3, 32, 32)
    assert small.shape == (8, 5, 3, 16, 16)


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


def test_other_parameters_have_the_distributions_asked_for() -> None:
    params, n = params_of(DRAWN, torch.arange(25_000), 32, 32), 100_000
    for name in ("hflip", "vflip", "jitter", "grey", "solarize"):
        p = getattr(DRAWN, name)
        assert abs(getattr(params, name).float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    turns = params.turns.bincount(minlength=4).numpy()
    assert scipy.stats.chisquare(turns, n * torch.tensor([0.4, 0.2, 0.2, 0.2]).double().numpy()).pvalue > 1e-4
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
    """No parameter tells anything about another of the same view, nor about itself in the image's other views."""
    params, n = params_of(DRAWN, torch.arange(25_000), 40, 56), 100_000
    jittered = params_of(dataclasses.replace(DRAWN, jitter=1), torch.arange(25_000), 40, 56).factors
    columns = {
        **{f"box{i}": params.box[:, i] for i in range(4)},
        **{f"factor{i}": jittered[:, i] for i in range(4)},
        **{f"order{i}": params.order[:, i].float() for i in range(3)},
        **{name: getattr(params, name).float() for name in ("hflip", "vflip", "turns", "jitter", "grey", "solarize")},
        "blur": (params.sigma > 0).float(),
    }
    related = {"box", "factor", "order"}  # a crop's sides hang together, as do places in an order
    ranks = {name: torch.from_numpy(scipy.stats.rankdata(values.numpy())) for name, values in columns.items()}
    limit = 4.5 / n**0.5  # of a rank correlation; about 140 pairs are looked at
    for (a, x), (b, y) in itertools.combinations(ranks.items(), 2):
        if a.rstrip("0123") != b.rstrip("0123") or a.rstrip("0123") not in related:
            assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < limit, (a, b)
    for name, x in ranks.items():
        views = x.view(25_000, 4)
        correlations = torch.corrcoef(views.T)[torch.triu(torch.ones(4, 4), 1).bool()]
        assert correlations.abs().max() < 4.5 / 25_000**0.5, name


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
        [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
        [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint16)],
    ],
)
def test_wrong_images_are_refused(images: torch.Tensor | list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 or uint16 \(B, C, H, W\).* got torch"):
        make_views(images, torch.arange(2), recipe=FULL, seed=0, epoch=0)


def test_ids_must_match_images(photos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="3 ids and 8 images"):
        make_views(photos, torch.arange(3), recipe=FULL, seed=0, epoch=0)
    with pytest.raises(ValueError, match="no images"):
        make_views([], torch.arange(0), recipe=FULL, seed=0, epoch=0)


def test_a_recipe_that_does_not_suit_the_channels_is_refused(photos: torch.Tensor) -> None:
    def views(channels: int, recipe: ViewRecipe) -> None:
        make_views(photos[:, :channels], torch.arange(8), recipe=recipe, seed=0, epoch=0)

    with pytest.raises(ValueError, match="normalises 3 channels and the images have 2"):
        views(2, PLAIN)
    two = {"mean": (0.5, 0.5), "std": (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"saturation and hue and grey need red, green and blue.* have 2 channels"):
        views(2, ViewRecipe(**two))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no mean and std"):
        views(3, ViewRecipe(mean=None, std=None))


def test_autocast_does_not_apply(photos: torch.Tensor) -> None:
    ids = torch.arange(8)
    (expected,) = make_views(photos, ids, recipe=FULL, seed=0, epoch=0)
    with torch.autocast("cpu", torch.bfloat16):
        (views,) = make_views(photos, ids, recipe=FULL, seed=0, epoch=0)
    assert torch.equal(views, expected)


def test_a_chunk_of_an_accelerator_holds_whole_images_of_its_views() -> None:
    """Small crops of large images: what must fit is the image that each view is cut from."""
    recipe = dataclasses.replace(FULL, crops=(Crop(count=2, size=32),))
    params = params_of(recipe, torch.arange(50), 400, 600)
    images, out = (
        torch.zeros(50, 3, 400, 600, dtype=torch.uint8, device="meta"),
        torch.zeros(100, 3, 32, 32, device="meta"),
    )
    order, chunks = augment._chunks(params, images, out)
    assert len(order) == 100
    assert all(hue_at is None for _, hue_at in chunks)
    views = [range(100)[some] for some, _ in chunks]
    assert [view for some in views for view in some] == [*range(100)]
    assert max(map(len, views)) * images[0].numel() <= augment._DEVICE_CHUNK < 100 * images[0].numel()


def test_large_batches_are_made_in_blocks_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the result and the images, no more than their views and taps are held, whatever the batch."""
    sizes, taps = [], []
    made, resized = augment.photometric, crop.resize_taps

    def watched(x: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(x.numel())
        return made(x, *args)  # type: ignore[arg-type]

    def watched_taps(*args: object) -> filters.Taps:
        result = resized(*args)  # type: ignore[arg-type]
        taps.append(result.source.numel())
        return result

    monkeypatch.setattr(augment, "photometric", watched)
    monkeypatch.setattr(crop, "resize_taps", watched_taps)
    images = torch.zeros(3000, 3, 16, 16, dtype=torch.uint8)
    for alone_from in (0, 1 << 40):
        monkeypatch.setattr(augment, "_ALONE", alone_from)
        (views,) = make_views(images, torch.arange(3000), recipe=FULL, seed=0, epoch=0)
    assert sum(sizes) == views.numel()
    assert max(sizes) <= augment._CPU_CHUNK
    assert len(taps) > 4
    assert max(taps) <= augment._CPU_BLOCK


def test_products_take_images_as_they_are(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """uint8 and uint16, picked out before they become float32."""
    params = params_of(FULL, torch.arange(8), 64, 80)
    rows, columns = crop.crop_taps(photos, params, 24)
    image_of_N = torch.arange(24) // 3
    expected = filters.filtered(photos.float(), rows, columns, image_of_N=image_of_N)
    monkeypatch.setattr(filters, "_sums_of_rows", filters._products_of_rows)
    for images in (photos.float(), photos, photos.to(torch.int32).to(torch.uint16)):
        views = filters.filtered(images, rows, columns, image_of_N=image_of_N)
        torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)
