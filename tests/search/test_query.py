"""Features of an image to look for, against those of `ssole.embed`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssole
from ssole.errors import DataError
from ssole.evaluation.preprocessing import Preprocessing
from ssole.search.query import image_features, open_image
from ssole.training.run import Run


def test_features_are_those_of_embed(run: Run, photos: Path) -> None:
    model = ssole.load(run)
    embeddings = ssole.embed(run, photos, precision="float32", progress=False)
    for row in (0, 17):
        features = image_features(photos / embeddings.ids[row], model, Preprocessing.from_model(model))
        np.testing.assert_allclose(features[0], embeddings.array[row], rtol=0.02, atol=1e-2)  # in any precision


def test_every_form_of_an_image(photos: Path) -> None:
    path = photos / "cat" / "000.png"
    with Image.open(path) as image:
        pixels = np.array(image)
        for form in (path, str(path), image, pixels, path.read_bytes()):
            torch.testing.assert_close(open_image(form), torch.from_numpy(pixels).permute(2, 0, 1))


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: "):
        open_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"nowhere\.png"):
        open_image(tmp_path / "nowhere.png")
