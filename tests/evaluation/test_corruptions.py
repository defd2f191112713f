"""Corruptions: closed cases, Pillow's own results, noise that belongs to the image, refused input."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.evaluation.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImages, Draws, corrupt, plasma
from ssole.evaluation.datasets import Subset

IDS = torch.arange(4)


def images(channels: int = 3, side: int = 32) -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, channels, side, side), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(pixels / 255, 3, 1, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_strength_changes_the_image_and_a_stronger_one_more(name: str) -> None:
    source = images()
    changes = []
    for strength in range(1, STRENGTHS + 1):
        made = corrupt(source, name, strength, IDS)
        assert made.shape == source.shape
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        changes.append(float((made - source).abs().mean()))
    assert 0 < changes[0] < changes[-1], changes


@pytest.mark.parametrize("name", ["gaussian blur", "defocus blur", "zoom blur", "contrast", "pixelate"])
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


def test_blurs_of_a_single_point() -> None:
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    blurred = corrupt(point, "gaussian blur", 5, IDS[:1])
    sigma = 33 / 32  # strengths are for 32 px
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float(blurred[0, 0, 16, 17] / blurred[0, 0, 16, 16]) == pytest.approx(np.exp(-1 / (2 * sigma**2)), rel=1e-4)
    disc = corrupt(point, "defocus blur", 4, IDS[:1])  # radius 1: five pixels, nearly sharp at the edge
    assert float(disc.sum()) == pytest.approx(1, abs=1e-5)
    assert float(disc[0, 0, 16, 16]) == pytest.approx(0.2, abs=0.01)
    assert torch.allclose(disc, disc.transpose(2, 3))


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


@pytest.mark.parametrize("name", ["gaussian noise", "shot noise", "impulse noise", "fog"])
def test_the_noise_of_an_image_depends_on_nothing_but_its_id_and_the_seed(name: str) -> None:
    source = images()
    together = corrupt(source, name, 3, IDS)
    alone = torch.cat([corrupt(source[i : i + 1], name, 3, IDS[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)
    same = source[:1].expand(4, -1, -1, -1)
    assert len({tuple(one.flatten().tolist()) for one in corrupt(same, name, 3, IDS)}) == 4
    assert not torch.equal(corrupt(source, name, 3, IDS, seed=1), together)


def test_clouds_continue_across_their_edges() -> None:
    cloud = plasma(64, 3.0, Draws([0, 1]))
    assert cloud.amin((1, 2)).tolist() == [0, 0]
    assert cloud.amax((1, 2)).tolist() == [1, 1]
    steps = (cloud - cloud.roll(1, 2)).abs().mean((0, 1))
    assert float(steps[0]) < 3 * float(steps[1:].mean())  # no jump where the last column meets the first


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
    with pytest.raises(ValueError, match="jpeg is for images of one or three channels, got 5"):
        corrupt(images(channels=5), "jpeg", 1, IDS)
    assert corrupt(images(channels=5), "fog", 1, IDS).shape[1] == 5
    assert corrupt(images(channels=1), "jpeg", 1, IDS).shape[1] == 1
