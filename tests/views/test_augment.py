"""Views of whole batches: functions of (seed, epoch, id, view), equal on every route, in bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from view_cases import FULL, PLAIN

from ssole.config import Crop, ViewRecipe
from ssole.views import augment, geometry, make_views, photometric


@pytest.mark.parametrize("one_by_one_from", [0, 1 << 40])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (90, 1), (64, 64), (300, 96)])
@pytest.mark.parametrize("size", [4, 32])
def test_images_of_any_shape_become_views_and_stay_as_they_are(
    height: int, width: int, size: int, one_by_one_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_ONE_BY_ONE", one_by_one_from)
    images = torch.randint(256, (2, 3, height, width), generator=torch.manual_seed(0)).to(torch.uint8)
    kept = images.clone()
    recipe = dataclasses.replace(FULL, crops=(Crop(count=4, size=size),), jitter=1.0)
    (views,) = make_views(images, torch.arange(2), recipe=recipe, seed=0, epoch=0)
    (listed,) = make_views(list(images), torch.arange(2), recipe=recipe, seed=0, epoch=0)
    assert views.isfinite().all()
    torch.testing.assert_close(views, listed, atol=2e-4, rtol=0)
    assert torch.equal(images, kept)


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
    for limit, one_by_one_from in itertools.product(("_CHUNK", "_BLOCK"), (0, 1 << 40)):
        for floats in (1, 5000, 50_000, 1 << 30):
            with monkeypatch.context() as patch:
                patch.setattr(augment, limit, floats)
                patch.setattr(augment, "_ONE_BY_ONE", one_by_one_from)
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
        for one_by_one_from in (0, 1 << 40):
            monkeypatch.setattr(augment, "_ONE_BY_ONE", one_by_one_from)
            views += make_views(images, torch.arange(8), recipe=recipe, seed=1, epoch=0)
        # Solarize is a threshold: rounding may change single pixels.
        apart = ((views[0] - views[1]).abs() > 2e-4).float().mean()
        assert apart <= (1e-4 if solarize else 0)


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
    """Images of 8 and 16 bits with other channels than red, green and blue: each channel as if it were alone."""
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


def test_crop_groups_give_one_tensor_each(photos: torch.Tensor) -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32), Crop(count=5, size=16, scale=(0.05, 0.2))))
    large, small = make_views(photos, torch.arange(8), recipe=recipe, seed=0, epoch=0)
    assert large.shape == (8, 2, 3, 32, 32)
    assert small.shape == (8, 5, 3, 16, 16)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
        [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
        [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint16)],
        np.zeros((2, 3, 8, 8), np.uint8),
    ],
)
def test_wrong_images_are_refused(images: torch.Tensor | list[torch.Tensor]) -> None:
    got = type(images[0]).__module__  # torch or numpy
    with pytest.raises(ValueError, match=rf"torch tensors uint8 or uint16: \(B, C, H, W\).* got {got}"):
        make_views(images, torch.arange(2), recipe=FULL, seed=0, epoch=0)


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        (torch.arange(8, dtype=torch.int32), r"torch.int32 \(8,\)"),
        (torch.arange(8)[:, None], r"torch.int64 \(8, 1\)"),
        (np.arange(8), "numpy.ndarray"),
        ([*range(8)], "list"),
    ],
)
def test_wrong_ids_are_refused(photos: torch.Tensor, ids: torch.Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"ids must be a torch tensor int64 \(B,\), .* got {got}$"):
        make_views(photos, ids, recipe=FULL, seed=0, epoch=0)


def test_images_on_an_apple_gpu_are_refused(photos: torch.Tensor) -> None:
    class OnMps(torch.Tensor):
        device = torch.device("mps")  # type: ignore[assignment]

    with pytest.raises(ValueError, match="make the views of images on the CPU"):
        make_views(photos.as_subclass(OnMps), torch.arange(8), recipe=FULL, seed=0, epoch=0)


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


def test_products_are_exact_whatever_the_caller_has_set(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, jitter_many = [], photometric.jitter_many

    def witness(*arguments: Any) -> torch.Tensor:
        seen.append((torch.full((64, 64), 1 + 2.0**-20) @ torch.eye(64)).unique().tolist())
        return jitter_many(*arguments)

    ids, before = torch.arange(8), torch.get_float32_matmul_precision()
    (expected,) = make_views(photos, ids, recipe=FULL, seed=0, epoch=0)
    monkeypatch.setattr(photometric, "jitter_many", witness)
    torch.set_float32_matmul_precision("medium")  # bfloat16 on a processor that multiplies it
    try:
        (views,) = make_views(photos, ids, recipe=FULL, seed=0, epoch=0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert all(values == [1 + 2.0**-20] for values in seen)
    assert torch.equal(views, expected)


@pytest.mark.parametrize("listed", [False, True])
def test_a_block_of_an_accelerator_holds_whole_images_of_its_views(listed: bool) -> None:
    """Small crops of large images: the images that the views are cut from must fit."""
    crop, images = Crop(count=2, size=32), torch.zeros(50, 3, 800, 1200, dtype=torch.uint8, device="meta")
    given = [images[0, :, :8, :8], *images[1:]] if listed else images
    blocks = [range(50)[block] for block in augment._device_blocks(given, crop)]
    assert [image for block in blocks for image in block] == [*range(50)]
    assert 2 * max(map(len, blocks)) * images[0].numel() <= augment._DEVICE_BLOCK < 2 * images.numel()
    assert len(augment._device_blocks(list(images[..., :8, :8]), crop)) == -(-50 // augment._PADDED_TOGETHER)


def test_large_batches_are_made_in_blocks_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory beside the result and the images does not grow with the batch."""
    sizes, taps = [], []
    made, resized = photometric.photometric_many, geometry.resize_taps

    def watched(x: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(x.numel())
        return made(x, *args)  # type: ignore[arg-type]

    def watched_taps(*args: object) -> geometry.Taps:
        result = resized(*args)  # type: ignore[arg-type]
        taps.append(result.source.numel())
        return result

    monkeypatch.setattr(photometric, "photometric_many", watched)
    monkeypatch.setattr(geometry, "resize_taps", watched_taps)
    images = torch.zeros(3000, 3, 16, 16, dtype=torch.uint8)
    for one_by_one_from in (0, 1 << 40):
        monkeypatch.setattr(augment, "_ONE_BY_ONE", one_by_one_from)
        (views,) = make_views(images, torch.arange(3000), recipe=FULL, seed=0, epoch=0)
    assert sum(sizes) == views.numel()
    assert max(sizes) <= augment._CHUNK
    assert len(taps) > 4
    assert max(taps) <= augment._BLOCK
