"""Contact sheet: a picture of the images that a search found, with their rank and similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ssole.data.base import Spec
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.data.thumbnail import thumbnail
from ssole.errors import DataError, valid_text
from ssole.search.matches import Matches
from ssole.search.query import open_image

SHOWN = 1000
"""Largest number of images on a sheet."""
_SIDE, _GAP, _LINE = 128, 6, 14  # pixels of a picture's side, between pictures, and of a caption's height
_COLUMNS = 10  # pictures in a row
_ROWS = 110  # rows of a sheet, whose height WebP limits to 16,383 pixels, and JPEG to 65,535
_PAPER, _MISSING = (255, 255, 255), (208, 208, 208)

_Cell = tuple[torch.Tensor | None, str]  # image, None if it is missing; caption


def contact_sheet(
    groups: Sequence[Matches], data: Spec, *, query: Any = None, channels: int | None = None
) -> tuple[Image.Image, list[str]]:
    """Picture of images that a search found; each group begins a row, and the query comes first.

    Images beyond the first thousand, or beyond 110 rows, are left out: WebP holds no taller picture.

    Args:
        groups: one result, or several, such as groups of near duplicates.
        data: the images of the index; `DataError` if they cannot be opened.
        query: the image that was looked for, as :meth:`Index.search` takes it; None without one. A file comes before
            an image of the index with the same name.
        channels: as the model has them, for images that are no photographs.

    Returns:
        The picture, and the ids of images that are gone or cannot be read: they are grey.
    """
    source, missing = open_source(data), list[str]()
    wanted = {name for group in groups for name in group.ids} | ({query} if isinstance(query, str) else set())
    backwards = reversed(range(len(source)))  # of equal names, the first is meant
    positions = {name: i for i in backwards if (name := valid_text(source.id(i))) in wanted}

    def image(name: str) -> torch.Tensor | None:
        try:
            position = positions[name]
            return decode(source.read(position), where=name, shrink_to=_SIDE, channels=channels)
        except (KeyError, DataError):
            missing.append(name)
            return None

    def cells(group: Matches) -> Iterator[_Cell]:
        for rank, (name, similarity) in enumerate(zip(group.ids, group.similarity, strict=True), start=1):
            yield image(name), f"{rank}" if np.isnan(similarity) else f"{rank}: {similarity:.4f}"

    rows: list[list[_Cell]] = []
    if query is not None:
        try:
            rows.append([(open_image(query, shrink_to=_SIDE, channels=channels), "query")])
        except DataError:
            rows.append([(image(query), "query")])
    room = SHOWN
    for group in groups:
        most = min(room, _COLUMNS * (_ROWS - len(rows)))
        found = list(islice(cells(group), most))
        rows += [found[start : start + _COLUMNS] for start in range(0, len(found), _COLUMNS)]
        room -= len(found)
    return _draw(rows), missing


def _draw(rows: Sequence[Sequence[_Cell]]) -> Image.Image:
    across, down = _SIDE + _GAP, _SIDE + _LINE + _GAP
    columns = max((len(row) for row in rows), default=1)
    sheet = Image.new("RGB", (columns * across + _GAP, max(1, len(rows)) * down + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (image, caption) in enumerate(row):
            left, top = _GAP + x * across, _GAP + y * down
            draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), fill=_MISSING)
            if image is not None:
                picture = thumbnail(image, _SIDE)
                factor = max(1, _SIDE // max(picture.size))  # a whole one, so that the pixels of small ones stay sharp
                picture = ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
                sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
            draw.text((left, top + _SIDE + 1), caption, fill="black")
    return sheet
