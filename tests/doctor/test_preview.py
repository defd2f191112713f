"""The picture of views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssole.config import Crop, ViewRecipe
from ssole.data.sources import FolderSource
from ssole.doctor.preview import _CELL, _GAP, ROWS, save_preview
from ssole.doctor.sample import draw_sample
from ssole.doctor.scan import scan
from ssole.errors import DataError

PLAIN = ViewRecipe(
    crops=(Crop(count=2, size=96, scale=(1.0, 1.0), ratio=(1.0, 1.0)), Crop(count=1, size=48)),
    hflip=0,
    jitter=0,
    grey=0,
)


def test_rows_are_images_and_columns_views(folder: Path, pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    square = [picture[:96, :96] for picture in pictures]
    for number, picture in enumerate(square):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    source = FolderSource(folder)
    sample = draw_sample(source, scan(source, range(len(source)), progress=False).seen, shrink_to=96)
    path = tmp_path / "views.png"
    save_preview(path, sample, PLAIN, seed=0)
    grid = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert grid.shape == (ROWS * (_CELL + _GAP) + _GAP, 4 * (_CELL + _GAP) + _GAP, 3)
    for row, index in enumerate(sample.ids[:ROWS].tolist()):
        top = row * (_CELL + _GAP) + _GAP
        for column in range(3):  # the image, and two views of all of it: the normalisation is taken back
            left = column * (_CELL + _GAP) + _GAP + (_GAP if column else 0)
            cell = grid[top : top + _CELL, left : left + _CELL]
            assert np.abs(cell - square[index]).max() <= 1


@pytest.mark.parametrize(
    ("name", "message"), [("views.jpg", "another suffix: name it views.png"), ("no/views.png", "there is no folder")]
)
def test_a_wrong_place_is_told_before_anything_else(name: str, message: str, tmp_path: Path) -> None:
    from ssole.doctor import examine

    with pytest.raises(DataError, match=message):
        examine("no such data", preview=tmp_path / name)


def test_the_picture_is_the_same_for_the_same_seed(folder: Path, tmp_path: Path) -> None:
    source = FolderSource(folder)
    sample = draw_sample(source, scan(source, range(len(source)), progress=False).seen, shrink_to=96)
    recipe = ViewRecipe(crops=(Crop(count=2, size=16),))
    state = torch.get_rng_state()
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        save_preview(path, sample, recipe, seed=seed)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), state)
