"""Pictures as data URIs: sheets and their budget."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ssole.report.pictures import data_uri, sheets


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


def test_a_thumbnail_lies_where_the_script_looks_for_it() -> None:
    colours = [(10 * (i % 25), 10 * (i // 25 % 25), 0) for i in range(530)]
    made = sheets(lambda rows: [Image.new("RGB", (8, 8), colours[i]) for i in rows], range(530), 8, 10**9)
    assert len(made) == 2
    first, second = map(decoded, made)
    assert (first.size, second.size) == ((200, 160), (200, 16))
    for number in (0, 24, 25, 137, 499):
        x, y = number % 25 * 8 + 4, number // 25 * 8 + 4
        assert np.abs(np.subtract(first.getpixel((x, y)), colours[number])).max() < 40
    assert np.abs(np.subtract(second.getpixel((4 * 8 + 4, 12)), colours[529])).max() < 40


def test_the_budget_is_kept() -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)) for i in range(1100)]
    whole = sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, 10**9)
    assert len(whole) == 3
    assert sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, len(whole[0]) + len(whole[1])) == whole[:2]
    assert sheets(lambda rows: [noise[i] for i in rows], range(1100), 8, 10) == []


def test_a_data_uri_holds_the_picture() -> None:
    assert decoded(data_uri(Image.new("RGB", (5, 7), (200, 10, 10)))).size == (5, 7)
