"""`ssole views`: the picture, and refused input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import Command

import tiny
from ssole.config import to_dict
from ssole.doctor.suggest import channel_overrides


def test_views_draws_a_row_for_each_image(command: Command) -> None:
    from PIL import Image

    outcome = command("views", "photos", "--recipe", "tiny.yaml", "--images", "3", "--out", "some.png")
    assert outcome.code == 0
    assert outcome.out == "3 images and their views by tiny.yaml: some.png\n"
    with Image.open("some.png") as sheet:
        assert sheet.height == 18 + 3 * 100 - 4
    single = next(Path("photos").rglob("*.png"))
    assert command("views", str(single), "--recipe", "aerial", "--out", "one.jpg").code == 0
    with Image.open("one.jpg") as sheet:
        assert sheet.size == (3 * 228 - 4, 18 + 224)


def test_a_picture_takes_the_place_of_no_image_and_is_none(command: Command) -> None:
    single = next(Path("photos").rglob("*.png"))
    before = single.read_bytes()
    for out in (str(single), "photos/views.png"):
        outcome = command("views", "photos", "--recipe", "tiny.yaml", "--out", out)
        assert outcome.code == 2
        assert f"{out} would be one of the images in photos: name another place by --out" in outcome.err
    assert single.read_bytes() == before
    assert not Path("photos/views.png").exists()


def test_channels_are_those_of_the_recipe(command: Command) -> None:
    """Else the fourth channel would be taken for transparency, and training makes other views."""
    tifffile = pytest.importorskip("tifffile")
    Path("bands").mkdir()
    for number in range(3):
        pixels = np.full((16, 16, 5), 50 * number, np.uint8)
        tifffile.imwrite(f"bands/{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
    recipe = tiny.config(**channel_overrides(5), augment__mean=[0.5] * 5, augment__std=[0.2] * 5)
    Path("five.yaml").write_text(yaml.safe_dump(to_dict(recipe)))
    outcome = command("views", "bands", "--recipe", "five.yaml", "--images", "2", "--out", "some.png")
    assert outcome.code == 0, outcome.err


def test_unreadable_images_are_left_out(command: Command) -> None:
    first, *others = sorted(Path("photos").rglob("*.png"))
    first.write_bytes(b"no image")
    outcome = command("views", "photos", "--recipe", "tiny.yaml", "--images", "3", "--out", "some.png")
    assert outcome.code == 0
    assert "2 images and their views" in outcome.out
    assert f"left out: {first.relative_to('photos').as_posix()}" in outcome.err
    for path in others:
        path.unlink()
    assert command("views", "photos", "--recipe", "tiny.yaml", "--out", "other.png").code == 2
    assert not Path("other.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["photos", "--out", "some.xyz"], "--out names the picture to write, such as picture.png; got some.xyz"),
        (["photos", "--out", "none/some.png"], "there is no folder none"),
        (["photos", "--images", "0"], "--images must be at least 1, got 0"),
        (["photos", "--recipe", "aerail"], "no recipe 'aerail'"),
        (["phots"], "phots"),
        (["photos", "--channels", "2"], "has 3 channels, and 2 are asked for"),
    ],
)
def test_wrong_input_to_views(command: Command, options: list[str], words: str) -> None:
    outcome = command("views", *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert not list(Path().glob("*views*"))
