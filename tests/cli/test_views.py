"""`ssole views`: the picture, and refused input."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command


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
