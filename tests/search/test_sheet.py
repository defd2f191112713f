"""Contact sheets: where each image is drawn, images that are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ssole.search import sheet
from ssole.search.matches import Matches
from ssole.search.sheet import contact_sheet

COLOURS = [(20 * i, 255 - 20 * i, 128) for i in range(12)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Twelve plain images, each of a colour of its own."""
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{number:02}.png")
    return tmp_path


def matches(numbers: list[int]) -> Matches:
    count = len(numbers)
    names = [f"{number:02}.png" for number in numbers]
    return Matches(rows=np.array(numbers), ids=names, similarity=np.linspace(1, 0, count), labels=[""] * count)


def middle(picture: Image.Image, row: int, column: int) -> tuple[int, ...]:
    pixels: NDArray[np.uint8] = np.asarray(picture)
    return tuple(pixels[6 + row * 148 + 64, 6 + column * 134 + 64].tolist())


def test_groups_begin_rows_and_the_query_comes_first(plain: Path) -> None:
    picture, missing = contact_sheet([matches([3, 1]), matches(list(range(12)))], plain, query=plain / "07.png")
    assert missing == []
    assert picture.size == (10 * 134 + 6, 4 * 148 + 6)
    assert middle(picture, 0, 0) == COLOURS[7]
    assert [middle(picture, 1, column) for column in (0, 1)] == [COLOURS[3], COLOURS[1]]
    assert [middle(picture, 2, column) for column in range(10)] == COLOURS[:10]
    assert [middle(picture, 3, column) for column in (0, 1)] == COLOURS[10:]


def test_the_query_may_be_an_image_of_the_index(plain: Path) -> None:
    assert middle(contact_sheet([matches([3])], plain, query="05.png")[0], 0, 0) == COLOURS[5]


def test_images_that_are_gone_are_grey(plain: Path) -> None:
    (plain / "01.png").unlink()
    (plain / "02.png").write_bytes(b"no image")
    picture, missing = contact_sheet([matches([0, 1, 2])], plain)
    assert missing == ["01.png", "02.png"]
    assert [middle(picture, 0, column) for column in range(3)] == [COLOURS[0], (208, 208, 208), (208, 208, 208)]


def test_no_more_than_a_thousand_images_are_drawn(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "SHOWN", 3)
    assert contact_sheet([matches([0, 1]), matches([2, 3]), matches([4])], plain)[0].size == (2 * 134 + 6, 2 * 148 + 6)


def test_a_sheet_of_very_many_groups_can_be_saved_in_any_format(plain: Path) -> None:
    groups = [matches([number % 12]) for number in range(150)]
    picture, missing = contact_sheet([matches(list(range(12))), *groups], plain, query=plain / "07.png")
    assert missing == []
    assert picture.size == (10 * 134 + 6, 110 * 148 + 6)
    assert middle(picture, 109, 0) == COLOURS[(109 - 3) % 12]
    for suffix in (".png", ".jpg", ".webp"):
        picture.save(plain / f"sheet{suffix}")
