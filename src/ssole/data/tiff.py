"""TIFF images that Pillow cuts to 8 bits or does not open: many channels, many pages, 16 bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.pixels import Pixels
from ssole.errors import DataError

_BITS, _ORIENTATION, _SAMPLES = 258, 274, 277  # numbers of tags
BIG_TIFF = (b"II+\0", b"MM\0+")  # of which Pillow misreads the second
_STARTS = (b"II*\0", b"MM\0*", *BIG_TIFF)


def is_tiff(data: bytes) -> bool:
    """By its first bytes."""
    return bytes(data[:4]) in _STARTS


def pillow_keeps_all(image: Any) -> bool:
    """Whether this is a TIFF of one page of a kind that Pillow opens without loss."""
    bits = image.tag_v2.get(_BITS, (1,))
    deep_enough = max(bits) <= 8 or image.mode.startswith("I")
    return bool(image.n_frames == 1 and deep_enough and image.tag_v2.get(_SAMPLES, 1) == len(image.getbands()))


def read_tiff(data: bytes, channels: int | None, *, where: str) -> Pixels:
    """The first page (H, W, C), uint8 or uint16; or the pages as channels, when there are as many of them, of one each.

    Only pages are looked at, not the OME description that may lie beside them, because that can name other files.

    Args:
        channels: How many there should be; None takes the first page as it is.
        where: Names the image in errors.

    Raises:
        DataError: where the number of channels is another, the image is too large to be trusted (as in Pillow), or its
            pixels have no agreed range.
        Exception: of many types, from tifffile, for a damaged file.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.pages.first
        if channels in (None, first.samplesperpixel):
            return _upright(_page(first, 1, where), first)
        pages = len(file.pages)
        if first.samplesperpixel == 1 and pages == channels:
            return _upright(np.concatenate([_page(page, pages, where) for page in file.pages], axis=2), first)
        found = f"{pages} pages of {first.samplesperpixel}" if pages > 1 else str(first.samplesperpixel)
        raise DataError(f"{where}: the image has {found} channels, and {channels} are asked for.")


def _page(page: Any, pages: int, where: str) -> Pixels:
    """(H, W, C) in the byte order of the machine."""
    _check_size(page.size * pages, where)
    try:
        pixels: NDArray[Any] = page.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise DataError(f"{where}: the compression needs a package ({error}): pip install imagecodecs") from error
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise DataError(
            f"{where}: {pixels.dtype} pixels have no agreed range; convert the image to 8 or 16 bits per channel."
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif page.axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    elif page.axes != "YXS":
        raise DataError(f"{where}: a TIFF page with the axes {page.axes} {pixels.shape} is no image.")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _check_size(values: int, where: str) -> None:
    """As Pillow does it, allowing for as many values as the largest RGBA image that it opens has."""
    from PIL import Image

    if values == 0:
        raise DataError(f"{where}: the image has no pixels.")
    if Image.MAX_IMAGE_PIXELS is not None and values > 4 * 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"The image has {values} values, which could be a decompression bomb.")


def _upright(pixels: Pixels, page: Any) -> Pixels:
    """Apply the orientation tag, whose values are those of EXIF."""
    tag = page.tags.get(_ORIENTATION)
    orientation = 1 if tag is None else int(tag.value)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
