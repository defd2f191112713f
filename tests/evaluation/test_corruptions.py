"""Corruptions: closed cases, Pillow's own results, noise that belongs to the image, refused input."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.evaluation.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImages, corrupt
from ssole.evaluation.datasets import Subset

IDS = torch.arange(4)


def images(channels: int = 3, side: int = 32) -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, channels, side, side), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(pixels / 255, 3, 1, 1)


# By the published strengths, these are not ordered by their distance from the image in pixels: a strength moves pixels
# less far but tears neighbours apart, or adds more ice to less of the image.
UNORDERED = {"glass blur", "elastic", "frost"}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_strength_changes_the_image_and_a_stronger_one_more(name: str) -> None:
    source = images()
    before = source.clone()
    changes = []
    for strength in range(1, STRENGTHS + 1):
        made = corrupt(source, name, strength, IDS)
        assert (made.shape, made.dtype) == (source.shape, source.dtype)
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert torch.equal(made, corrupt(source, name, strength, IDS))
        changes.append(float((made - source).abs().mean()))
    assert torch.equal(source, before)
    assert min(changes) > 0, changes
    if name not in UNORDERED:
        assert all(weaker < 1.1 * stronger for weaker, stronger in pairwise(changes)), changes  # draws differ a little
        assert changes[0] < 0.8 * changes[-1], changes


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [24, 224])
def test_any_size(name: str, side: int) -> None:
    source = images(side=side)[:1]
    made = corrupt(source, name, 5, IDS[:1])
    assert made.shape == source.shape
    assert made.isfinite().all()
    assert not torch.equal(made, source)


@pytest.mark.parametrize(
    "name", ["defocus blur", "glass blur", "motion blur", "zoom blur", "contrast", "elastic", "pixelate"]
)
def test_a_plain_image_stays_plain(name: str) -> None:
    plain = torch.full((4, 3, 32, 32), 102 / 255)
    assert torch.allclose(corrupt(plain, name, 5, IDS), plain, atol=1e-5)


def test_closed_cases() -> None:
    source = images()
    grey = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1).expand(4, 3, 8, 8)
    assert torch.allclose(corrupt(grey, "brightness", 5, IDS), grey * 0.7 / 0.4)  # value 0.4 + 0.3
    assert torch.allclose(corrupt(torch.zeros(4, 3, 8, 8), "brightness", 1, IDS), torch.tensor(0.05))
    mean = source.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(source, "contrast", 5, IDS), mean + 0.15 * (source - mean), atol=1e-6)
    middle = torch.full((4, 3, 64, 64), 0.5)
    noise = corrupt(middle, "gaussian noise", 1, IDS) - 0.5
    assert float(noise.std()) == pytest.approx(0.04, rel=0.02)
    shot = corrupt(middle, "shot noise", 5, IDS)
    assert float(shot.std()) == pytest.approx((0.5 / 50) ** 0.5, rel=0.03)
    struck = corrupt(middle, "impulse noise", 5, IDS)
    for value in (0, 1):
        assert float((struck == value).float().mean()) == pytest.approx(0.035, abs=0.004)


def test_a_sheet_that_is_pulled_as_a_whole_stays_even() -> None:
    line = torch.linspace(0, 1, 33)
    ramp = torch.stack([line.expand(33, 33), line[:, None].expand(33, 33)])[None].expand(4, -1, -1, -1)
    middle = slice(12, 21)  # far from what was reflected at the edges
    x = ramp[0, :, middle, middle].flatten(1)
    even = torch.cat([x, torch.ones_like(x[:1])]).T
    for strength, affine in ((1, True), (5, False)):
        for made in corrupt(ramp, "elastic", strength, IDS):
            found = made[:, middle, middle].flatten(1).T
            rest = found - even @ torch.linalg.lstsq(even, found).solution
            assert (float(rest.abs().max()) < 1e-5) == affine
            assert float((found - x.T).abs().max()) > 1e-3


def test_pillow_does_the_same() -> None:
    source = images()
    for one, made_jpeg, made_pixels in zip(
        source, corrupt(source, "jpeg", 5, IDS), corrupt(source, "pixelate", 5, IDS), strict=True
    ):
        picture = Image.fromarray((one * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=40)
        small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        for made, expected in ((made_jpeg, Image.open(file)), (made_pixels, small)):
            assert np.array_equal((made * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), np.asarray(expected))


RANDOM = sorted(CORRUPTIONS.keys() - {"defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "jpeg"})


@pytest.mark.parametrize("name", RANDOM)
def test_the_noise_of_an_image_depends_on_nothing_but_its_id_and_the_seed(name: str) -> None:
    source = images()
    together = corrupt(source, name, 3, IDS)
    alone = torch.cat([corrupt(source[i : i + 1], name, 3, IDS[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)  # sums of a batch may round otherwise
    same = source[:1].expand(4, -1, -1, -1)
    assert len({tuple(one.flatten().tolist()) for one in corrupt(same, name, 3, IDS)}) == 4
    assert not torch.equal(corrupt(source, name, 3, IDS, seed=1), together)


def test_images_of_a_data_set_are_cut_and_corrupted() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)
    store = ImageStore(ArraySource(pixels), progress=False)
    positions = torch.tensor([1, 3, 4])
    subset = Subset(store=store, positions=positions, labels=torch.zeros(3, dtype=torch.int64))
    made = CorruptedImages(subset=subset, size=12, name="contrast", strength=5).get(torch.tensor([2]))
    crop = torch.from_numpy(pixels[4, :, 2:14]).permute(2, 0, 1)[None] / 255
    expected = (corrupt(crop, "contrast", 5, torch.tensor([4])) * 255).round().to(torch.uint8)
    assert made.dtype == torch.uint8
    assert torch.equal(made, expected)


def test_wrong_input() -> None:
    for name, strength in (("rain", 1), ("fog", 6), ("fog", 0)):
        with pytest.raises(ValueError, match=f"corruption '{name}' of strength {strength}: choose from gaussian noise"):
            corrupt(images(), name, strength, IDS)
    for name, one in CORRUPTIONS.items():
        if one.pictures:
            with pytest.raises(ValueError, match=f"{name} is for images of one or three channels, got 5"):
                corrupt(images(channels=5), name, 1, IDS)
        else:
            assert corrupt(images(channels=5), name, 1, IDS).shape[1] == 5
        assert corrupt(images(channels=1), name, 1, IDS).shape[1] == 1
