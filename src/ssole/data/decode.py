"""One way from encoded bytes or an array to an RGB tensor, or to an error that says what is wrong with the image."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_EXIF_ORIENTATION = 0x0112
# What the first bytes of files that often end up with an image's name tell about them.
_NOT_IMAGES = {
    b"<!doctype html": "an HTML page, so probably a failed download",
    b"<html": "an HTML page, so probably a failed download",
    b"<?xml": "XML; SVG and other vector formats have no pixels to decode",
    b"<svg": "an SVG drawing, which has no pixels to decode",
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to fetch the image itself",
    b"%pdf": "a PDF document",
}


def decode(data: bytes | NDArray[np.uint8], *, where: str, shrink_to: int | None = None) -> torch.Tensor:
    """Decode an image to RGB.

    Args:
        data: An encoded image in any format Pillow opens, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        where: Names the image in errors.
        shrink_to: Reduce an encoded image whose shorter side is longer than this many pixels to that, keeping its
            proportions. JPEGs are then decoded at a reduced size to begin with, which is several times faster.

    Returns:
        (3, H, W) uint8, contiguous. EXIF orientation is applied; the first frame is taken of an animation; transparency
        is laid over white, as a browser shows it; 16-bit grey is scaled by 255/65535 (the full range, not the image's
        own, so that images stay comparable); CMYK, palette, 1-bit and other modes are converted by Pillow.

    Raises:
        DataError: where the image is empty, damaged, truncated, not an image, too large to be trusted (Pillow's
            decompression-bomb limit), or of a kind without an agreed range (32-bit integer, float).
    """
    if isinstance(data, np.ndarray):
        return _from_array(data, where)
    pixels = _decode_bytes(data, where, shrink_to)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _from_array(array: NDArray[np.uint8], where: str) -> torch.Tensor:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise DataError(
            f"{where}: an image array must be uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); "
            f"got {array.dtype} {array.shape}."
        )
    if channels == 4:
        from PIL import Image

        array = np.asarray(_over_white(Image.fromarray(np.ascontiguousarray(array))))
    planes = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
    return torch.from_numpy(np.array(np.broadcast_to(planes, (3, *planes.shape[1:])), order="C"))


def _decode_bytes(data: bytes, where: str, shrink_to: int | None) -> NDArray[np.uint8]:
    from PIL import Image

    if len(data) == 0:
        raise DataError(f"{where}: the image is empty (0 bytes).")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":  # Pillow would hand the file to Ghostscript, a program that it can then steer
                raise DataError(f"{where}: EPS is a program to be run, not an image; convert it to PNG first.")
            if shrink_to is not None:
                image.draft(image.mode, (shrink_to, shrink_to))  # does nothing unless a JPEG is at least twice as large
            return np.asarray(_shrunk(_rgb(_upright(image), where), shrink_to), dtype=np.uint8)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's 40 decoders meet damaged input with almost any exception type
        raise DataError(f"{where}: {_reason(data, error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; ``ImageOps.exif_transpose`` would rewrite the EXIF too, and fail on damaged ones."""
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


def _rgb(image: Image.Image, where: str) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise DataError(f"{where}: float pixels have no agreed range; convert the image to 8 or 16 bits per channel.")
    if image.mode.startswith("I"):  # I;16 and its byte orders; I holds 16-bit images too in some formats and versions
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{where}: 32-bit integer pixels ({values.min()} to {values.max()}) have no agreed range; "
                "convert the image to 8 or 16 bits per channel."
            )
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _shrunk(image: Image.Image, shrink_to: int | None) -> Image.Image:
    from PIL.Image import Resampling

    if shrink_to is None or min(image.size) <= shrink_to:
        return image
    width, height = (max(shrink_to, round(side * shrink_to / min(image.size))) for side in image.size)
    return image.resize((width, height), Resampling.BICUBIC, reducing_gap=2.0)


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


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
