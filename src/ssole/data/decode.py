"""Decoding of images, from encoded bytes or an array to a tensor, and statistics of decoded images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.data.base import Pixels
from ssole.data.tiff import BIG_TIFF, check_size, is_tiff, pillow_reads, read_tiff
from ssole.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_EXIF_ORIENTATION = 0x0112
# Rounding leaves the variance of a constant at up to 1e-15. Values that differ by one step of 16 bits have 5e-11.
_ROUNDING = 1e-12
_PNG_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # positions of two bytes of a PNG: bits per channel, and colour type
_GREY_WITH_ALPHA = 4  # a colour type
# First bytes of files that often have the name of an image but are none, and descriptions of these files.
_NOT_IMAGES = {
    b"<!doctype html": "an HTML page, so probably a failed download",
    b"<html": "an HTML page, so probably a failed download",
    b"<?xml": "XML; SVG and other vector formats have no pixels to decode",
    b"<svg": "an SVG drawing, which has no pixels to decode",
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to fetch the image itself",
    b"%pdf": "a PDF document",
}


def decode(
    data: bytes | Pixels, *, where: str, shrink_to: int | None = None, channels: int | None = None
) -> torch.Tensor:
    """Decode an image to RGB, or to all of its own channels.

    Args:
        data: An encoded image in any format Pillow opens, a TIFF of any number of channels, or an array uint8 or
            uint16, (H, W) or (H, W, C); C is 1, 3 or 4 for RGB.
        where: Names the image in errors.
        shrink_to: Reduce an image whose shorter side is longer than this many pixels to that, keeping its proportions.
            JPEGs are then decoded at a reduced size to begin with, which is several times faster.
        channels: None for RGB, or the number of channels that every image has.

    Returns:
        (3, H, W) uint8, contiguous. EXIF orientation is applied. Of an animation it is the first frame. Transparency is
        laid over white, as in a browser. 16 bits are scaled by 255/65535: the full range, not the image's own, so that
        images stay comparable. Pillow converts CMYK, palette, 1-bit and other modes.

        With `channels`, (channels, H, W) uint8 or uint16, contiguous: the image's own, at full depth. Grey has 1
        channel and transparency adds one. Palettes, CMYK and other colour spaces count as RGB. Of a TIFF it is the
        first page, or all pages if there are `channels` grey ones. PNG, TIFF and arrays keep 16 bits; of other formats
        only grey images do.

    Raises:
        DataError: where the image is empty, damaged, truncated, not an image, too large to be trusted (Pillow's
            decompression-bomb limit), of a kind without an agreed range (32-bit integer, float), or has other channels
            than asked for.
    """
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be at least 1, or None for RGB; got {channels}.")
    if not isinstance(data, np.ndarray):
        pixels = _decode_bytes(data, where, shrink_to, channels)
    elif data.dtype in (np.uint8, np.uint16) and data.ndim in (2, 3) and data.size > 0:
        pixels = data
    else:
        raise DataError(
            f"{where}: an image array must be uint8 or uint16 of shape (H, W) or (H, W, C); "
            f"got {data.dtype} {data.shape}."
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if channels is None:
        pixels = _array_to_rgb(pixels, where)
    elif pixels.shape[2] != channels:
        raise DataError(f"{where}: the image has {pixels.shape[2]} channels, and {channels} are asked for.")
    pixels = _shrunk_array(pixels, shrink_to)  # most images are small enough by now, with less work
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def pillow_pixels(image: Image.Image, where: str) -> Pixels:
    """Upright pixels of a Pillow image, as :func:`decode` takes them; `DataError` if they have no agreed range.

    (H, W), (H, W, 3) or (H, W, 4) uint8, or (H, W, 1) uint16.
    """
    image = _upright(image)
    return _pixels(image.convert("RGBA") if image.mode == "LA" else image, where, rgb=False)


def as_batch(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Batch (B, C, H, W) of images, or a list where their sizes differ; all in 16 bits if some are: 255 as 65535."""
    if len({image.dtype for image in images}) > 1:
        images = [image if image.dtype == torch.uint16 else image.int().mul_(257).to(torch.uint16) for image in images]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


def moments(image: torch.Tensor) -> torch.Tensor:
    """Mean and mean square of each channel of a uint8 or uint16 image (C, h, w), in [0, 1]: float64 (2, C)."""
    x = image.flatten(1).double() / torch.iinfo(image.dtype).max
    return torch.stack([x.mean(1), x.square().mean(1)])


def mean_and_std(gathered: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from the moments of images, which all have the same weight.

    The standard deviation of a channel that has one value everywhere is exactly 0.
    """
    mean, square = torch.stack(list(gathered)).mean(0)
    variance = square - mean**2
    variance[variance < _ROUNDING] = 0
    return mean.tolist(), variance.sqrt().tolist()


def _decode_bytes(data: bytes, where: str, shrink_to: int | None, channels: int | None) -> Pixels:
    if len(data) == 0:
        raise DataError(f"{where}: the image is empty (0 bytes).")
    try:
        opened = open_pillow(data)
        if opened is None:
            return read_tiff(data, channels, where=where)
        with opened as image:
            return _decode_opened(image, data, where, shrink_to, channels)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's 40 decoders meet damaged input with almost any exception type
        raise DataError(f"{where}: {_reason(data, error)}") from error


def open_pillow(data: bytes) -> Image.Image | None:
    """The Pillow image, not yet decoded; None for a TIFF that Pillow does not know."""
    from PIL import Image, UnidentifiedImageError

    if bytes(data[:4]) in BIG_TIFF:
        return None
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if is_tiff(data):
            return None
        raise


def _decode_opened(image: Any, data: bytes, where: str, shrink_to: int | None, channels: int | None) -> Pixels:
    if image.format == "EPS":  # Pillow would hand the file to Ghostscript, a program that it can then steer
        raise DataError(f"{where}: EPS is a program to be run, not an image; convert it to PNG first.")
    deep_grey, deep_png = image.mode.startswith("I"), image.format == "PNG" and data[_PNG_DEPTH] == 16
    check_size(image.size, math.prod(image.size) * len(image.getbands()) * (1 + (deep_grey or deep_png)), where)
    if channels is not None and deep_png and not deep_grey:
        return _deep_png(data, where)
    if image.format == "TIFF" and not pillow_reads(image, channels):
        return read_tiff(data, channels, where=where)
    if shrink_to is not None:
        image.draft(image.mode, (shrink_to, shrink_to))  # does nothing unless a JPEG is at least twice as large
    return _pixels(_upright(image), where, rgb=channels is None, shrink_to=shrink_to)


def _deep_png(data: bytes, where: str) -> NDArray[np.uint16]:
    """Pixels (H, W, C) of a PNG with several channels of 16 bits. Pillow itself would keep only the upper 8 bits.

    PNG stores the upper byte first. Pillow reads it twice: once as it is, and once as if the lower byte came first,
    which gives the lower 8 bits. (torchvision reads 16 bits, but damaged files crash it and the whole process.)
    """
    from PIL import Image

    if data[_PNG_COLOUR_TYPE] == _GREY_WITH_ALPHA:
        raise DataError(f"{where}: 16 bits of grey with transparency cannot be read: remove the transparency.")
    parts = []
    for order in ("B", "L"):
        with Image.open(io.BytesIO(data)) as image:
            # a plain tuple, because the type of a tile differs between versions
            image.tile = [(*image.tile[0][:3], f"{image.mode};16{order}")]
            parts.append(np.asarray(_upright(image)).astype(np.uint16))
    pixels: NDArray[np.uint16] = parts[0] << np.uint16(8) | parts[1]
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    """Image turned by its EXIF orientation; ``ImageOps.exif_transpose`` rewrites the EXIF too, and fails on damage."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()  # first, since PNG keeps its EXIF after the pixels; and so that an error below is the EXIF's alone
    try:
        turn = turns.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block, in any of many ways: like every viewer, show the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image, where: str, *, rgb: bool, shrink_to: int | None = None) -> Pixels:
    """Pixels of an upright image, 8 bits as RGB or in all of its channels, or 16 bits (H, W, 1)."""
    if image.mode == "F":
        raise DataError(f"{where}: float pixels have no agreed range; convert the image to 8 or 16 bits per channel.")
    if image.mode.startswith("I"):  # I;16 in any byte order, or I, which some formats and versions use for 16 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{where}: 32-bit integer pixels ({values.min()} to {values.max()}) have no agreed range; "
                "convert the image to 8 or 16 bits per channel."
            )
        return values.astype(np.uint16)[:, :, None]
    if rgb and image.has_transparency_data:
        image = _over_white(image.convert("RGBA"))
    elif not rgb and image.mode == "1":
        image = image.convert("L")
    elif image.mode not in (("RGB",) if rgb else ("L", "LA", "RGB", "RGBA")):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    # not with alpha, which Pillow would mix into the colours: `decode` shrinks such an array
    return np.asarray(_shrunk(image, shrink_to) if image.mode in ("L", "RGB") else image)


def _array_to_rgb(array: Pixels, where: str) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) uint8 of an array (H, W, C)."""
    from PIL import Image

    count = array.shape[2]
    if count not in (1, 3, 4):
        advice = f"Train with channels={count} to use them as they are."
        if {1, 3, 4} & set(array.shape[:2]):
            advice = "Arrays are (H, W, C) and tensors (C, H, W): are the axes in another order?"
        raise DataError(
            f"{where}: RGB is made of 1, 3 or 4 channels, and this image has {count} ({array.dtype}, height, width and "
            f"channels {array.shape}). {advice}"
        )
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if count == 4:
        return np.asarray(_over_white(Image.fromarray(np.ascontiguousarray(array))))
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _shrunk(image: Image.Image, shrink_to: int | None) -> Image.Image:
    from PIL.Image import Resampling

    if shrink_to is None or min(image.size) <= shrink_to:
        return image
    width, height = _shrunk_sides(image.size, shrink_to)
    return image.resize((width, height), Resampling.BICUBIC, reducing_gap=2.0)


def _shrunk_array(array: Pixels, shrink_to: int | None) -> Pixels:
    """Array (H, W, C) of any depth and number of channels, reduced like an image by :func:`_shrunk`."""
    from PIL import Image

    if shrink_to is None or min(array.shape[:2]) <= shrink_to:
        return array
    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
        small = np.asarray(_shrunk(image, shrink_to))
        return small.reshape(*small.shape[:2], -1)
    planes = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32))[None]
    sides = _shrunk_sides(array.shape[:2], shrink_to)
    planes = torch.nn.functional.interpolate(planes, sides, mode="bicubic", antialias=True)[0]
    limits = np.iinfo(array.dtype)  # some cubic weights are negative, so results may leave the range
    pixels: Pixels = planes.round().clamp(limits.min, limits.max).numpy().astype(array.dtype).transpose(1, 2, 0)
    return pixels


def _shrunk_sides(sides: tuple[int, ...], shrink_to: int) -> list[int]:
    return [max(shrink_to, round(side * shrink_to / min(sides))) for side in sides]


def _reason(data: bytes, error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    head = bytes(data[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, meaning in _NOT_IMAGES.items():
        if head.startswith(start):
            return f"this is {meaning}."
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"{error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that Pillow can open ({len(data)} bytes, beginning {bytes(data[:12])!r})."
    return f"the image is damaged ({type(error).__name__}: {error})."
