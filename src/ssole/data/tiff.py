"""TIFF reader for images that Pillow cuts to 8 bits or does not open: many channels, many pages, 16 bits."""

from __future__ import annotations

import ctypes
import io
import logging
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Pixels
from ssole.errors import DataError

_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR = 258, 262, 274, 277, 284  # numbers of tags
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = range(4)  # values of the tag PHOTOMETRIC
_ALPHA = ((1,), (2,))  # values of the tag EXTRASAMPLES
_PLAIN, _LZW, _DEFLATE = 1, 5, (8, 32946)  # compressions
# Compressions that imagecodecs unpacks to no more than a given size; tifffile's own substitutes have no such limit.
_LIMITED = (_LZW, 32773, 34925, 34926, 50000)
MAX_SIDE = 65_535
"""Largest side of an image, in pixels; a JPEG cannot have more. A longer one is no photograph, and costs gigabytes."""
_USUAL = {"RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3}  # channels that Pillow reads in planes, by mode
BIG_TIFF = (b"II+\0", b"MM\0+")  # Pillow misreads the big-endian one


def is_tiff(data: bytes) -> bool:
    """Whether these bytes begin like a TIFF."""
    return bytes(data[:4]) in (b"II*\0", b"MM\0*", *BIG_TIFF)


def pillow_reads(image: Any, channels: int | None) -> bool:
    """Whether Pillow reads an opened TIFF correctly and, if its own channels are asked for, without loss."""
    tags = image.tag_v2
    if image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow does not invert these
        return False
    is_in_planes, is_usual = tags.get(_PLANAR) == 2, tags.get(_SAMPLES, 1) == _USUAL.get(image.mode, 1)
    if is_in_planes and (max(tags.get(_BITS, (1,))) > 8 or not is_usual):  # Pillow mixes these planes up, or fails
        return False
    if channels is None:  # pages after the first do not matter then: not even whether they are damaged
        return True
    deep_enough = max(tags.get(_BITS, (1,))) <= 8 or image.mode.startswith("I")
    return bool(deep_enough and image.n_frames == 1 and tags.get(_SAMPLES, 1) == len(image.getbands()))


def read_tiff(data: bytes, channels: int | None, *, where: str) -> Pixels:
    """Pixels (H, W, C) of the first page, or of `channels` pages of one channel each; uint8 or uint16.

    An OME description is not followed, because it can name other files.

    Args:
        data, where: The file, and the image's name in errors.
        channels: How many channels there should be; None takes the first page as it is.

    Raises:
        DataError: the image has other channels than asked for, unpacks to more than its size, has a compression or kind
            of colour that is not read, or pixels without an agreed range.
        Exception: a damaged file (many types, from tifffile), or an image too large to be trusted (Pillow's error).
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.pages.first
        own = 3 if _photometric(first) == _PALETTE else first.samplesperpixel
        if channels in (None, own):
            pixels = _page(first, 1, where)
            return _upright(_colours(pixels, first) if channels is None else pixels, first)
        pages = len(file.pages)
        if own == 1 and pages == channels:
            return _upright(np.concatenate([_page(page, pages, where) for page in file.pages], axis=2), first)
        found = f"{pages} pages of {own}" if pages > 1 else str(own)
        raise DataError(f"{where}: the image has {found} channels, and {channels} are asked for.")


def _colours(pixels: Pixels, page: Any) -> Pixels:
    """Grey, RGB or RGBA of (H, W, C) with further channels, as in Pillow: one that is no alpha, such as infrared."""
    has_alpha = page.extrasamples[:1] in _ALPHA
    if _photometric(page) == _RGB:
        return pixels[..., : 4 if has_alpha else 3]
    if pixels.shape[2] == 2 and page.extrasamples != (1,):  # grey that is multiplied by its alpha is left as it is
        return pixels[..., [0, 0, 0, 1] if has_alpha else [0]]
    return pixels


def tiff_header(data: bytes) -> tuple[str, int, int]:
    """Channels and dtype, as in ``5 x uint8``, and width and height of the first page of a TIFF."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        return f"{page.samplesperpixel} x {page.dtype}", page.imagewidth, page.imagelength


def _photometric(page: Any) -> int:
    """Meaning of a page's values, by its tag; brightness, the most common, if it has no tag."""
    return int(page.tags.valueof(_PHOTOMETRIC, default=_BLACK_IS_ZERO))


def _page(page: Any, pages: int, where: str) -> Pixels:
    """(H, W, C) in the byte order of the machine, with black at zero and a palette applied."""
    check_size(page.shape, page.size * pages * page.dtype.itemsize, where)
    _check_kind(page, where)
    try:
        if page.compression != _PLAIN:
            _check_compression(page, where)
        pixels: NDArray[Any] = page.asarray()
    except (ValueError, KeyError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise DataError(f"{where}: the image needs a package ({error}): pip install imagecodecs") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif page.axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    elif page.axes != "YXS":
        raise DataError(f"{where}: a TIFF page with the axes {page.axes} {pixels.shape} is no image.")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if _photometric(page) == _PALETTE:
        colours: NDArray[np.uint8] = (page.colormap >> 8).astype(np.uint8)  # (3, numbers), always of 16 bits
        return np.take(colours.T, pixels[:, :, 0], axis=0)
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if _photometric(page) == _WHITE_IS_ZERO:
        pixels = np.invert(pixels)  # inverting all bits gives the largest value minus the pixel
    return pixels


def _check_kind(page: Any, where: str) -> None:
    """Refuse pages whose values have another range or another meaning than brightness or palette."""
    if page.dtype.kind not in "bu" or page.dtype.itemsize > 2:
        raise DataError(
            f"{where}: {page.dtype} pixels have no agreed range; convert the image to 8 or 16 bits per channel."
        )
    photometric = _photometric(page)
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE):
        name = getattr(page.photometric, "name", photometric)
        raise DataError(f"{where}: a TIFF of the kind {name} is not read at full depth; convert the image to RGB.")
    if photometric != _PALETTE and page.bitspersample in range(2, 8):
        raise DataError(f"{where}: {page.bitspersample}-bit pixels are not read; convert the image to 8 bits.")


def _check_compression(page: Any, where: str) -> None:
    """Refuse a strip or tile that unpacks to more than its size; tifffile's deflate has no limit."""
    import tifffile

    limit = math.prod(page.chunks) * page.dtype.itemsize  # of a strip or tile, which may reach over the image's edge
    check_size((), limit, where)
    if page.compression in _DEFLATE:
        segments = page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts, flat=True)
        for data, _ in segments:
            if data is not None and len(zlib.decompressobj().decompress(data, limit + 1)) > limit:
                raise DataError(f"{where}: the image unpacks to more than its size; it could be a decompression bomb.")
    elif page.compression in _LIMITED:
        codec = tifffile.TIFF.DECOMPRESSORS[page.compression]  # if the package is missing, the KeyError names it
        if not codec.__module__.startswith("imagecodecs"):
            raise KeyError(f"{page.compression!r} requires the 'imagecodecs' package")
    else:
        name = getattr(page.compression, "name", page.compression)
        raise DataError(f"{where}: the compression {name} is not read in such a TIFF; save the image with deflate.")


def check_size(sides: Sequence[int], size: int, where: str) -> None:
    """Refuse an image without pixels, and one too large to be trusted; `PIL.Image.MAX_IMAGE_PIXELS = None` trusts all.

    Args:
        sides, where: Sides in pixels, and the image's name in errors.
        size: Bytes of the decoded image. The limit is that of the largest RGBA image that Pillow opens, 0.7 GB.

    Raises:
        DataError: the image is empty.
        Exception: Pillow's error for decompression bombs.
    """
    from PIL import Image

    if size == 0:
        raise DataError(f"{where}: the image has no pixels.")
    if Image.MAX_IMAGE_PIXELS is None:
        return
    if max(sides, default=0) > MAX_SIDE:
        raise Image.DecompressionBombError(
            f"The image has a side of {max(sides)} pixels, more than {MAX_SIDE}, which could be a decompression "
            "bomb. Cut it into tiles."
        )
    if size > 4 * 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"The image has {size} bytes of values, which could be a decompression bomb."
        )


def _upright(pixels: Pixels, page: Any) -> Pixels:
    """Pixels turned by the orientation tag, which has the values of EXIF."""
    orientation = int(page.tags.valueof(_ORIENTATION, default=1))
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def silence_tiff_libraries() -> None:
    """Keep tifffile, Pillow and libtiff from printing lines about damaged files. They name no file; our errors do."""
    for name in ("tifffile", "PIL"):
        logging.getLogger(name).addHandler(logging.NullHandler())  # else Python prints what nobody handles
    from PIL import _imaging  # loads libtiff, which cannot be loaded before it with some versions

    folder = Path(_imaging.__file__).parent
    for library in (*folder.parent.glob("[Pp]illow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
