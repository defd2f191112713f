"""One pass over the images: each is read and decoded once, and little of it is kept."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Pixels, Source, evenly_spaced
from ssole.data.decode import decode
from ssole.errors import DataError
from ssole.progress import progress_bar
from ssole.runtime import decoding_threads

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL = 64  # pixels of the shorter side: far more than either fingerprint looks at, and cheap to decode a JPEG to
THUMBNAIL = 16
_TASK = 32  # images a thread takes at a time: enough to hide the pool's own cost, few enough to stop at once


class Header(NamedTuple):
    """What an encoded image, or an array, says of itself."""

    format: str
    """Pillow's name of the format, or "array"."""
    mode: str
    """Pillow's mode, such as RGB, L or CMYK; of an array its channels and dtype."""
    width: int
    height: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that can be read."""

    index: int
    header: Header
    """With width and height as they are seen, after the EXIF orientation."""
    digest: bytes
    """Hash of the encoded bytes, or of an array's dtype, shape and values."""
    hash: int
    """Perceptual hash, 64 bits."""
    thumbnail: NDArray[np.uint8]
    """Grey, (16, 16)."""
    blank: bool
    """Whether all pixels are the same."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that training would leave out."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a pass found; both lists in the order of indices."""

    seen: list[Seen]
    unreadable: list[Unreadable]


def chosen(images: int, limit: int) -> NDArray[np.int64]:
    """Indices of the images to examine: all of them, or `limit` spread evenly."""
    return np.array(evenly_spaced(images, limit), dtype=np.int64)


def scan(
    source: Source, indices: Sequence[int] | NDArray[np.int64], *, progress: bool, channels: int | None = None
) -> Scan:
    """Look at the images of these indices, on several threads; Ctrl-C ends it within a few images.

    Args:
        channels: None for images that training decodes to RGB, else how many all of them must have.
    """
    import imagehash  # noqa: F401 - imported once, before threads do it at the same time

    found: list[Seen | Unreadable] = []
    with progress_bar(f"reading {source.name}", len(indices), enabled=progress) as advance:
        for part in _in_threads(source, [int(i) for i in indices], channels):
            found += part
            advance(len(part))
    return Scan(
        seen=[one for one in found if isinstance(one, Seen)],
        unreadable=[one for one in found if isinstance(one, Unreadable)],
    )


def _in_threads(source: Source, indices: list[int], channels: int | None = None) -> Iterator[list[Seen | Unreadable]]:
    stop = threading.Event()

    def look_at_some(part: list[int]) -> list[Seen | Unreadable]:
        return [look_at(source, i, channels) for i in part if not stop.is_set()]

    pool = ThreadPoolExecutor(decoding_threads(), thread_name_prefix="ssole-doctor")
    try:
        parts = [indices[first : first + _TASK] for first in range(0, len(indices), _TASK)]
        for task in [pool.submit(look_at_some, part) for part in parts]:
            yield task.result()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def look_at(source: Source, i: int, channels: int | None = None) -> Seen | Unreadable:
    """Read, decode and fingerprint image i."""
    where = source.id(i)
    try:
        data = source.read(i)
        pixels = decode(data, where=where, shrink_to=SMALL, channels=channels)
    except DataError as error:
        return Unreadable(i, where, str(error).removeprefix(f"{where}: "))
    header = _header(data)
    height, width = pixels.shape[1:]
    if (width > height) != (header.width > header.height) and width != height:  # turned by its EXIF orientation
        header = header._replace(width=header.height, height=header.width)
    image = _grey(pixels.numpy())
    blank = bool((pixels == pixels[:, :1, :1]).all())
    return Seen(i, header, _digest(data), _perceptual_hash(image), _thumbnail(image), blank)


def _header(data: bytes | Pixels) -> Header:
    from PIL import Image

    if isinstance(data, np.ndarray):
        channels = data.shape[2] if data.ndim == 3 else 1
        return Header("array", f"{channels} x {data.dtype}", data.shape[1], data.shape[0], data.nbytes)
    with Image.open(io.BytesIO(data)) as image:
        return Header(image.format or "unknown", image.mode, image.width, image.height, len(data))


def _digest(data: bytes | Pixels) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(data, np.ndarray):
        hasher.update(f"{data.dtype} {data.shape}".encode())  # 2 x 8 and 4 x 4 pixels may have the same bytes
        hasher.update(np.ascontiguousarray(data).data)
    else:
        hasher.update(data)
    return hasher.digest()


def _grey(pixels_CHW: Pixels) -> Image:
    """What fingerprints are taken of: luma, or the mean of channels that are no colours, in 8 bits."""
    from PIL import Image

    if len(pixels_CHW) != 3 or pixels_CHW.dtype != np.uint8:
        full = np.iinfo(pixels_CHW.dtype).max
        return Image.fromarray((pixels_CHW.mean(axis=0) * (255 / full)).round().astype(np.uint8))
    return Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))).convert("L")


def _perceptual_hash(grey: Image) -> int:
    """pHash: the signs, about their median, of the 8 x 8 lowest frequencies of the image reduced to 32 x 32."""
    import imagehash

    return int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), "big")


def _thumbnail(grey: Image) -> NDArray[np.uint8]:
    from PIL.Image import Resampling

    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Resampling.BOX), dtype=np.uint8)
