"""Pictures of a page as data URIs: thumbnails, and sheets of many thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_COLUMNS, _ROWS = 25, 20  # thumbnails of a sheet


def data_uri(picture: Image.Image, quality: int = 85) -> str:
    """Picture as a data URI, in WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def sheets(
    get: Callable[[Sequence[int]], list[Image.Image]], order: Sequence[int], side: int, most_bytes: int
) -> list[str]:
    """Sheets of square thumbnails in the given order, as many whole sheets as fit into `most_bytes`.

    `get` gives the pictures of some images. Thumbnail number n is on sheet n // 500, in row (n % 500) // 25 and column
    n % 25.
    """
    from PIL import Image

    made: list[str] = []
    size = 0
    for start in range(0, len(order), _COLUMNS * _ROWS):
        part = order[start : start + _COLUMNS * _ROWS]
        rows = -(-len(part) // _COLUMNS)
        sheet = Image.new("RGB", (_COLUMNS * side, rows * side), (128, 128, 128))
        for number, picture in enumerate(picture.convert("RGB") for picture in get(part)):
            place = (number % _COLUMNS * side, number // _COLUMNS * side)
            scale = side / max(picture.size)
            shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            left, top = ((side - length) // 2 for length in shape)
            sheet.paste(picture.resize(shape), (place[0] + left, place[1] + top))
        made.append(data_uri(sheet, quality=60))
        size += len(made[-1])
        if size > most_bytes:
            return made[:-1]
    return made
