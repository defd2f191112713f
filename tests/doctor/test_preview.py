"""The picture of views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssole.config import Crop, ViewRecipe
from ssole.data.folder import FolderSource
from ssole.doctor.preview import save_preview
from ssole.doctor.sample import draw_sample
from ssole.doctor.scan import scan
from ssole.errors import DataError


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
