"""Pictures as data URIs: depth and channels, sheets and their budget."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ssole.report.pictures import data_uri, sheets, to_picture


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_three_channels_are_shown_or_one(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
    found = np.asarray(to_picture(image, 96))
    assert found.shape == (6, 9, 3)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], image[channel if channels >= 3 else 0])


def test_sixteen_bits_become_eight() -> None:
    image = torch.tensor([[[0, 255, 256, 65535]]], dtype=torch.int32).to(torch.uint16)
    assert np.asarray(to_picture(image, 96))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_large_images_shrink_and_keep_their_shape() -> None:
    assert to_picture(torch.zeros(3, 200, 400, dtype=torch.uint8), 96).size == (96, 48)


def test_a_thumbnail_lies_where_the_script_looks_for_it() -> None:
    colours = [(10 * (i % 25), 10 * (i // 25 % 25), 0) for i in range(530)]
    made = sheets(lambda i: Image.new("RGB", (8, 8), colours[i]), range(530), 8, 10**9)
    assert len(made) == 2
    first, second = map(decoded, made)
    assert (first.size, second.size) == ((200, 160), (200, 16))
    for number in (0, 24, 25, 137, 499):
        x, y = number % 25 * 8 + 4, number // 25 * 8 + 4
        assert np.abs(np.subtract(first.getpixel((x, y)), colours[number])).max() < 40
    assert np.abs(np.subtract(second.getpixel((4 * 8 + 4, 12)), colours[529])).max() < 40


def test_the_budget_is_kept() -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)) for i in range(1100)]
    whole = sheets(lambda i: noise[i], range(1100), 8, 10**9)
    assert len(whole) == 3
    assert sheets(lambda i: noise[i], range(1100), 8, len(whole[0]) + len(whole[1])) == whole[:2]
    assert sheets(lambda i: noise[i], range(1100), 8, 10) == []


def test_a_data_uri_holds_the_picture() -> None:
    assert decoded(data_uri(Image.new("RGB", (5, 7), (200, 10, 10)))).size == (5, 7)
