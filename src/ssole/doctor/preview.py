"""A picture of what a recipe does to images."""

from __future__ import annotations

import io
from pathlib import Path

from ssole.config import ViewRecipe
from ssole.doctor.sample import Sample
from ssole.errors import DataError
from ssole.files import write_bytes_atomically

ROWS = 6


def save_preview(path: Path, sample: Sample, recipe: ViewRecipe, *, seed: int) -> None:
    """Write images of the sample and their views as PNG; DataError for a name that says otherwise."""
    from ssole.views.picture import picture

    check_preview_name(path)
    buffer = io.BytesIO()
    picture(sample.images[:ROWS], sample.ids[:ROWS], recipe=recipe, seed=seed).save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())


def check_preview_name(path: Path) -> None:
    """Before anything is measured: is this a place for a PNG?"""
    if path.suffix.lower() != ".png":
        raise DataError(f"the preview is a PNG file, and {str(path)!r} has another suffix: name it {path.stem}.png")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} for the preview")
