"""A picture of what a recipe does to images: each row is one image and the views made of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssole.config import ViewRecipe
from ssole.doctor.sample import Sample
from ssole.errors import DataError
from ssole.files import write_bytes_atomically
from ssole.views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 6
_CELL, _GAP = 96, 4  # pixels; views up to a cell are enlarged by whole factors, so that their pixels can be seen


def save_preview(path: Path, sample: Sample, recipe: ViewRecipe, *, seed: int) -> None:
    """Write the grid as PNG; DataError for a name that says otherwise."""
    check_preview_name(path)
    buffer = io.BytesIO()
    _preview(sample.images[:ROWS], sample.ids[:ROWS], recipe, seed).save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())


def check_preview_name(path: Path) -> None:
    """Before anything is measured: is this a place for a PNG?"""
    if path.suffix.lower() != ".png":
        raise DataError(f"the preview is a PNG file, and {str(path)!r} has another suffix: name it {path.stem}.png")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} for the preview")


def _preview(images: list[torch.Tensor], ids: torch.Tensor, recipe: ViewRecipe, seed: int) -> Image:
    """Images, and right of each its views, with the normalisation taken back."""
    from PIL import Image

    views = make_views(images, ids, recipe=recipe, seed=seed, epoch=0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    pixels = [((group.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8) for group in views]
    columns = 1 + recipe.views
    step = _CELL + _GAP
    grid = Image.new("RGB", (columns * step + _GAP, len(images) * step + _GAP), "white")
    for row, image in enumerate(images):
        cells = [image, *(view for group in pixels for view in group[row])]
        for column, cell in enumerate(cells):
            left = column * step + _GAP + (_GAP if column else 0)
            grid.paste(_cell(cell), (left, row * step + _GAP))
    return grid


def _cell(pixels: torch.Tensor) -> Image:
    """An image (3, h, w) in the middle of a square cell."""
    from PIL import Image
    from PIL.Image import Resampling

    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    factor = max(1, _CELL // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    image.thumbnail((_CELL, _CELL), Resampling.LANCZOS)
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell
