"""Preprocessing: crops, where its settings come from, and which stores suit it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from coloured import coloured, evaluate_quietly
from PIL import Image
from torch import nn

from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.embed import embed
from ssole.evaluation.preprocessing import Preprocessing, center_crop

HALF: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize("size", [(50, 37), (32, 64), (20, 24), (33, 33)])
def test_resizing_and_cropping_are_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    image = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize(32, antialias=True)])
    resized = steps(image)
    top, left = ((side - 32) // 2 for side in resized.shape[-2:])
    expected = resized[..., top : top + 32, left : left + 32]
    crop = center_crop(image, 32)
    assert crop.shape == (2, 3, 32, 32)
    # The long side is rounded here and cut off there, which may shift pixels by less than one.
    if min(size) * max(32 * max(size) / min(size) % 1, 0) == 0:
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-5)
    else:
        assert (crop - expected).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_input_is_cropped_scaled_and_normalised(dtype: torch.dtype) -> None:
    preprocessing = Preprocessing(image_size=6, mean=(0.1, 0.2), std=(0.5, 2.0), channels=2)
    images = torch.randint(200, (3, 2, 6, 10)).to(dtype)
    mean, std = (torch.tensor(values).double().view(2, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    expected = (images[..., 2:8].double() / torch.iinfo(dtype).max - mean) / std
    inputs = preprocessing(images)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(preprocessing(list(images)), inputs)


def test_settings_are_those_given_or_those_of_the_model() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="the preprocessing of Sequential is unknown: pass image_size, mean, std"):
        evaluate_quietly(plain, coloured(120, seed=0))
    timm_like = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    timm_like.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}  # type: ignore[assignment]
    assert Preprocessing.from_model(timm_like).mean == (0.1, 0.2, 0.3)
    assert Preprocessing.from_model(timm_like, image_size=16, std=[0.5] * 3) == Preprocessing(
        image_size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)
    )
    timm_like.pretrained_cfg = SimpleNamespace(input_size=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)  # type: ignore[assignment]
    assert Preprocessing.from_model(timm_like).image_size == 8


def test_settings_may_be_buffers_and_pairs_of_equal_sides() -> None:
    model = nn.Flatten()
    model.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
    model.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))
    model.image_size = (8, 8)  # type: ignore[assignment]
    assert Preprocessing.from_model(model) == Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.image_size = (8, 12)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"image_size is \(8, 12\); the side of a square is needed"):
        Preprocessing.from_model(model)


def test_a_module_may_have_an_attribute_called_channels() -> None:
    """Only an ssole backbone names the channels of its images by it."""

    class Model(nn.Module):
        channels = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    assert embed(Model(), images, image_size=8, **HALF).array.shape == (6, 3)


@pytest.mark.parametrize(
    ("side", "shrink_to", "image_size", "suits"),
    [
        (20, None, 10, True),  # neither size reduces these
        (20, 30, 12, True),
        (40, 16, 8, True),  # both are decoded at 16
        (20, 30, 9, False),  # 18 reduces them
        (40, 20, 12, False),  # reduced to 20 already
        (20, 20, 12, False),  # the store does not know that they were not
    ],
)
def test_small_images_decoded_at_another_size_need_no_second_decoding(
    side: int, shrink_to: int | None, image_size: int, suits: bool
) -> None:
    preprocessing = Preprocessing(image_size=image_size, **HALF)
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (4, side, side + 3, 3), dtype=np.uint8))
    store = ImageStore(source, shrink_to=shrink_to, progress=False)
    assert preprocessing.suits(store) is suits
    if suits:
        images, expected = (torch.as_tensor(one.get(range(4))) for one in (store, preprocessing.open_store(source)))
        assert torch.equal(images, expected)
    assert not Preprocessing(image_size=image_size, channels=3, **HALF).suits(store)


def test_a_store_of_different_sizes_suits_only_the_size_it_decodes_at(tmp_path: Path) -> None:
    for name, shape in (("a", (8, 8, 3)), ("b", (8, 9, 3))):
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path)
    preprocessing = Preprocessing(image_size=8, **HALF)
    assert preprocessing.suits(preprocessing.open_store(source))
    assert not preprocessing.suits(ImageStore(source, progress=False))


@pytest.mark.parametrize("count", [2, 4])
def test_there_is_a_number_for_each_channel(count: int) -> None:
    with pytest.raises(ValueError, match="a number for each of 3 channels is needed, or one for all, std above 0"):
        Preprocessing(image_size=8, mean=(0.5,) * count, std=(0.5,) * count)
    assert Preprocessing(image_size=8, mean=(0.5,) * count, std=(0.5,) * count, channels=count).channels == count


def test_settings_of_another_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean is \(127.0,\), and images are in \[0, 1\]: divide mean and std by 255"):
        Preprocessing.from_model(nn.Flatten(), image_size=8, mean=(127.0,), std=(60.0,))
    with pytest.raises(ValueError, match="image_size is 0; it is the side of the input in pixels, at least 1"):
        Preprocessing.from_model(nn.Flatten(), image_size=0, **HALF)


def test_one_number_stands_for_all_channels() -> None:
    found = Preprocessing.from_model(nn.Flatten(), image_size=8, mean=0.5, std=0.25)  # type: ignore[arg-type]
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(found(images), Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)(images))
