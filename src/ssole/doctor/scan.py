"""Scan of a data set, which reads and decodes every image once, and Sample, a few images decoded as training does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.config import ViewRecipe
from ssole.data.base import Pixels, Source, content_digest, evenly_spaced
from ssole.data.decode import as_batch, decode, mean_and_std, moments, open_pillow
from ssole.data.tiff import tiff_header
from ssole.errors import DataError
from ssole.progress import progress_bar
from ssole.runtime import decoding_threads, synchronize
from ssole.views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

SCAN_SIZE = 64  # pixels of the shorter side: more than the perceptual hash needs, and quick to decode from a JPEG
THUMBNAIL = 16  # pixels of the side
SAMPLE_IMAGES = 256  # of a sample
KEPT = 32  # decoded images of a sample that stay in memory; more large photographs could fill it
SAMPLE_SECONDS = 4.0  # time for decoding a sample
_TASK = 32  # images a thread takes at a time: enough to hide the pool's own cost, few enough to stop at once


class Header(NamedTuple):
    """Format, mode and size of an encoded image or an array."""

    format: str
    """Pillow's name of the format, or "array"."""
    mode: str
    """Pillow's mode, such as RGB, L or CMYK; of an array or a TIFF that Pillow does not know, channels and dtype."""
    width: int
    height: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Readable:
    """Record of an image that can be read."""

    index: int
    id: str
    header: Header
    """Width and height are those after the EXIF orientation."""
    digest: str
    """Hash of the encoded bytes, or of an array's dtype, shape and values."""
    hash: int
    """Perceptual hash, 64 bits."""
    thumbnail: NDArray[np.uint8]
    """Grey, (16, 16)."""
    blank: bool
    """Whether all pixels are the same."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Record of an image that cannot be read, so training would leave it out."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Records of all images examined; both lists are in the order of the indices asked for."""

    readable: list[Readable]
    unreadable: list[Unreadable]

    @property
    def examined(self) -> int:
        """Number of images read."""
        return len(self.readable) + len(self.unreadable)


def scan(source: Source, indices: Sequence[int], *, progress: bool, channels: int | None = None) -> Scan:
    """Records of the images with these indices, read by several threads. Ctrl-C ends it within a few images.

    `channels` is the number that every image must have; None for images that training decodes to RGB.
    """
    import imagehash  # noqa: F401 - imported once, before threads do it at the same time

    stop = threading.Event()
    records: list[Readable | Unreadable] = []

    def scan_part(part: Sequence[int]) -> list[Readable | Unreadable]:
        return [scan_image(source, i, channels) for i in part if not stop.is_set()]

    parts = [indices[first : first + _TASK] for first in range(0, len(indices), _TASK)]
    with progress_bar(f"reading {source.name}", len(indices), enabled=progress) as advance, _threads() as pool:
        try:
            for task in [pool.submit(scan_part, part) for part in parts]:
                records += task.result()
                advance(len(task.result()))
        finally:
            stop.set()
    return Scan(
        readable=[record for record in records if isinstance(record, Readable)],
        unreadable=[record for record in records if isinstance(record, Unreadable)],
    )


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Pool of threads that read images. Leaving does not wait for them, so that Ctrl-C works while a disk hangs."""
    pool = ThreadPoolExecutor(decoding_threads(), thread_name_prefix="ssole-doctor")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def scan_image(source: Source, i: int, channels: int | None = None) -> Readable | Unreadable:
    """Record of image i, which is read, decoded at a small size and hashed."""
    import imagehash
    from PIL.Image import Resampling

    name = source.id(i)
    try:
        data = source.read(i)
        pixels = decode(data, where=name, shrink_to=SCAN_SIZE, channels=channels)
    except DataError as error:
        return Unreadable(i, name, str(error).removeprefix(f"{name}: "))
    header = _header(data)
    height, width = pixels.shape[1:]
    if (width > height) != (header.width > header.height) and width != height:  # turned by its EXIF orientation
        header = header._replace(width=header.height, height=header.width)
    image = _grey(pixels.numpy())
    blank = _is_constant(pixels)
    if blank and max(header.width, header.height) > max(width, height):  # reduced, fine texture may be grey throughout
        blank = _is_constant(decode(data, where=name, channels=channels))
    # pHash: which of the 8 x 8 lowest frequencies of the image, reduced to 32 x 32, are above their median
    bits = int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Resampling.BOX), dtype=np.uint8)
    return Readable(i, name, header, content_digest(data), bits, thumbnail, blank)


def _is_constant(pixels_CHW: torch.Tensor) -> bool:
    return bool((pixels_CHW == pixels_CHW[:, :1, :1]).all())


def _header(data: bytes | Pixels) -> Header:
    if isinstance(data, np.ndarray):
        channels = data.shape[2] if data.ndim == 3 else 1
        return Header("array", f"{channels} x {data.dtype}", data.shape[1], data.shape[0], data.nbytes)
    opened = open_pillow(data)
    if opened is None:
        return Header("TIFF", *tiff_header(data), len(data))
    with opened as image:
        return Header(image.format or "unknown", image.mode, image.width, image.height, len(data))


def _grey(pixels_CHW: Pixels) -> Image:
    """Grey image in 8 bits: the luma of RGB, or the mean of other channels."""
    from PIL import Image

    if len(pixels_CHW) != 3 or pixels_CHW.dtype != np.uint8:
        full = np.iinfo(pixels_CHW.dtype).max
        return Image.fromarray((pixels_CHW.mean(axis=0) * (255 / full)).round().astype(np.uint8))
    return Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))).convert("L")


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel of pixels in [0, 1]; every image has the same weight."""

    mean: list[float]
    std: list[float]
    images: int
    """Number of images measured."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Speed of decoding images or of making views."""

    value: float
    """Images or views per second."""
    threads: int
    images: int
    """Number of images of the measurement."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A few images decoded as training does, their channel statistics and the speed of decoding."""

    images: list[torch.Tensor]
    """At most 32: uint8 (3, h, w), or uint8 or uint16 (C, h, w) for a recipe with `channels`."""
    ids: torch.Tensor
    """(N,) int64, the images' indices in the source."""
    statistics: ChannelStatistics
    decode: Rate
    """Speed of reading and decoding."""

    def batch(self, size: int, device: torch.device) -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
        """Batch of `size` images and their ids; images repeat if the sample has fewer. One tensor if sizes agree."""
        images = [self.images[i % len(self.images)].to(device) for i in range(size)]
        return as_batch(images), torch.arange(size, device=device)


def draw_sample(source: Source, readable: Sequence[Readable], *, shrink_to: int, channels: int | None = None) -> Sample:
    """Sample of evenly spaced images: 256, or fewer if 4 seconds end first. It has as many threads as training.

    Images that cannot be read this time, as over a network, are left out; a DataError if none can.
    """
    spaced = [readable[k].index for k in evenly_spaced(len(readable), SAMPLE_IMAGES)]
    indices = [i for first in range(8) for i in spaced[first::8]]  # so that a first part covers the whole set too
    reasons: list[DataError] = []

    def decoded(i: int) -> torch.Tensor | None:
        try:
            return decode(source.read(i), where=source.id(i), shrink_to=shrink_to, channels=channels)
        except DataError as error:
            reasons.append(error)
            return None

    kept: dict[int, torch.Tensor] = {}
    measured: list[torch.Tensor] = []
    seconds = 0.0
    at_once = 4 * decoding_threads()
    with _threads() as pool:
        while indices and (seconds < SAMPLE_SECONDS or not measured):
            part, indices = indices[:at_once], indices[at_once:]
            begin = time.perf_counter()
            images = {i: image for i, image in zip(part, pool.map(decoded, part), strict=True) if image is not None}
            seconds += time.perf_counter() - begin
            kept |= dict(list(images.items())[: KEPT - len(kept)])
            measured += [moments(image) for image in images.values()]
    if not measured:
        raise DataError(f"{source.name}: no image can be read a second time ({reasons[0]})")
    mean, std = mean_and_std(measured)
    return Sample(
        images=[*kept.values()],
        ids=torch.tensor([*kept]),
        statistics=ChannelStatistics(mean=mean, std=std, images=len(measured)),
        decode=Rate(value=len(measured) / seconds, threads=decoding_threads(), images=len(measured)),
    )


def view_rate(sample: Sample, recipe: ViewRecipe, device: torch.device) -> Rate:
    """Speed of making views of the sample's images on a device."""
    images, ids = sample.batch(len(sample.images), device)
    make_views(images, ids, recipe=recipe, seed=0, epoch=0)  # the first call also sets things up
    synchronize(device)
    begin, epoch = time.perf_counter(), 0
    while time.perf_counter() - begin < SAMPLE_SECONDS / 4:
        epoch += 1
        make_views(images, ids, recipe=recipe, seed=0, epoch=epoch)
        synchronize(device)
    views = epoch * len(ids) * recipe.views
    return Rate(value=views / (time.perf_counter() - begin), threads=torch.get_num_threads(), images=len(ids))
