"""Pieces of real photographs, and a folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssole.doctor import estimate as estimating

Picture = NDArray[np.uint8]


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """12 pieces of two photographs without overlap, uint8 (140, 160, 3)."""
    from sklearn.datasets import load_sample_images

    # Rows with detail: pieces of the sky above the temple, or of the blur behind the flower, would look the same.
    corners = [(top, left) for top in (145, 285) for left in (0, 160, 320)]
    return [
        np.ascontiguousarray(photo[top : top + 140, left : left + 160])
        for photo in load_sample_images().images
        for top, left in corners
    ]


@pytest.fixture
def folder(tmp_path: Path, pictures: list[Picture]) -> Path:
    """The pictures as 00.png, 01.png, ..."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"{number:02}.png")
    return root


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time is measured for a moment, and nothing is compiled."""
    torch.set_num_threads(1)
    monkeypatch.setattr(estimating, "TRIAL_SECONDS", 0.5)
    monkeypatch.setattr("ssole.doctor.scan.SAMPLE_SECONDS", 0.4)
    monkeypatch.setattr("ssole.models.compile.can_compile", lambda: False)  # test_estimate.py compiles
