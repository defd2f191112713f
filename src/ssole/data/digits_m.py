"""digits-m: real handwritten digits on real photographs, built without a download from data in scikit-learn.

After MNIST-M (Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016), each image is

    | photo crop − digit |        per channel, 32 x 32 RGB

with the 8 x 8 digits of ``sklearn.datasets.load_digits`` at a random size and position, over crops of random position,
scale and channel order from the two photographs of ``load_sample_images``. Each digit appears on several photographs.

The splits share nothing: a digit belongs to one split, and so does every pixel of the photographs (train crops lie left
of column 400, test crops right of it). A mirrored digit is no digit, so recipes for this data must not flip images.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Split
from ssole.data.storage import cache_folder
from ssole.errors import DataError
from ssole.files import write_bytes_atomically

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

VERSION = 1  # part of the name of the cache, as is the seed: raise it with every change of the images
SEED = 0
SIDE = 32
CLASSES = [str(digit) for digit in range(10)]
SPLIT_COLUMN = 400  # photographs are 427 x 640; both have objects and plain background on either side of this column
DIGITS = 1797  # in load_digits
TEST_DIGITS = 400
BLENDS: dict[str, int] = {"train": 8, "test": 4}  # photographs per digit: 1,397 x 8 = 11,176 and 400 x 4 = 1,600 images
DIGIT_SIDES = (16, 26)  # pixels, both ends included
CROP_SIDES = (32, 112)
TRIES = 4  # crops drawn per image; the first that leaves the digit visible is used
VISIBLE = 72  # grey levels, of 255, by which the strokes must differ from the photograph below them

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Random choices for the N images of a split. A test checks by them that splits share nothing."""

    digit: NDArray[np.int64]  # (N,) index into load_digits
    side: NDArray[np.int64]  # (N,) of the digit, in pixels
    corner: NDArray[np.int64]  # (N, 2) of the digit: top, left
    photo: NDArray[np.int64]  # (N, TRIES)
    box: NDArray[np.int64]  # (N, TRIES, 4) of the crop: left, top, right, bottom in photograph pixels
    channels: NDArray[np.int64]  # (N, 3) a permutation


def digits_m(split: Split = "train") -> tuple[Images, Labels]:
    """Images and labels of one split of digits-m, the same bytes each time.

    They are kept under ``$SSOLE_CACHE`` (default: the platform's cache folder, ``~/.cache/ssole``) if that is writable.
    A damaged cache is built again.

    Args:
        split: "train" (11,176 images of 1,397 digits) or "test" (1,600 images of 400 other digits).

    Returns:
        images (N, 32, 32, 3) uint8 and labels (N,) int64 in 0..9, in random order.

    Raises:
        DataError: another split.
    """
    if split not in BLENDS:
        raise DataError(f"digits-m has the splits 'train' and 'test', not {split!r}.")
    path = cache_folder() / f"digits-m-v{VERSION}-seed{SEED}-{split}.bin"
    built = _read_cache(path)
    if built is None:
        built = _build(split)
        _write_cache(path, *built)
    return built


def plan(split: Split, seed: int = SEED) -> Plan:
    """Random choices of a split, from one generator per (seed, split). The seed also decides which digits are in it."""
    digits = _random(seed, 0).permutation(DIGITS)
    digits = digits[:TEST_DIGITS] if split == "test" else digits[TEST_DIGITS:]
    random = _random(seed, 1 if split == "train" else 2)
    digit = random.permutation(np.repeat(digits, BLENDS[split]))
    n = len(digit)
    side = random.integers(*DIGIT_SIDES, size=n, endpoint=True)
    corner = random.integers(0, SIDE - side[:, None], size=(n, 2), endpoint=True)
    crop = random.integers(*CROP_SIDES, size=(n, TRIES), endpoint=True)
    start, stop = (0, SPLIT_COLUMN) if split == "train" else (SPLIT_COLUMN, 640)
    left = random.integers(start, stop - crop, endpoint=True)
    top = random.integers(0, 427 - crop, endpoint=True)
    return Plan(
        digit=digit,
        side=side,
        corner=corner,
        photo=random.integers(0, 2, size=(n, TRIES)),
        box=np.stack([left, top, left + crop, top + crop], axis=-1),
        channels=random.permuted(np.tile(np.arange(3), (n, 1)), axis=1),
    )


def _random(seed: int, use: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, use]))


def _build(split: Split) -> tuple[Images, Labels]:
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    tiles = [Image.fromarray(tile) for tile in (digits.images * (255 / 16)).round().astype(np.uint8)]
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    todo = plan(split)
    images = np.empty((len(todo.digit), SIDE, SIDE, 3), np.uint8)
    for i, digit in enumerate(todo.digit):
        stroke = _enlarge(tiles[digit], int(todo.side[i]), todo.corner[i])
        best = -1.0
        for photo, box in zip(todo.photo[i], todo.box[i], strict=True):
            crop = photos[photo].resize((SIDE, SIDE), Image.Resampling.BOX, box=tuple(box.tolist()))
            image, contrast = _blend(np.asarray(crop), stroke)
            if contrast > best:
                images[i], best = image[..., todo.channels[i]], contrast
            if best >= VISIBLE:
                break
    return images, np.asarray(digits.target[todo.digit], dtype=np.int64)


def _enlarge(tile: Any, side: int, corner: NDArray[np.int64]) -> NDArray[np.int16]:
    """Enlarged 8 x 8 digit on black: (32, 32) int16 in 0..255. Integers give the same bytes on every machine."""
    from PIL import Image

    large = np.asarray(tile.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    stroke = np.zeros((SIDE, SIDE), np.int16)
    top, left = corner
    # The 16 grey levels of the scan look blurred when enlarged. A steeper ramp makes strokes sharp again.
    stroke[top : top + side, left : left + side] = np.clip((large - 64) * 2, 0, 255)
    return stroke


def _blend(crop: Images, stroke: NDArray[np.int16]) -> tuple[Images, float]:
    """Image |photo − digit|, and how much the strokes changed the photograph: mid-grey inverts to itself."""
    image = np.abs(crop.astype(np.int16) - stroke[..., None])
    change = np.abs(image - crop).mean(axis=-1)[stroke > 127]
    return image.astype(np.uint8), float(change.mean()) if change.size else 0.0


def _read_cache(path: Path) -> tuple[Images, Labels] | None:
    """Images and labels of a cache file (a SHA-256 digest, images, labels); None if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("Rebuilding digits-m: cannot read its cache %s (%s).", path, error)
        return None
    body = memoryview(data)[32:]
    if hashlib.sha256(body).digest() != data[:32]:
        _log.warning("Rebuilding digits-m: its cache %s is damaged.", path)
        return None
    images = len(body) // (SIDE * SIDE * 3 + 8)
    pixels, labels = np.frombuffer(body[: -8 * images], np.uint8), np.frombuffer(body[-8 * images :], "<i8")
    return pixels.reshape(images, SIDE, SIDE, 3).copy(), labels.astype(np.int64)  # copies can be written to


def _write_cache(path: Path, images: Images, labels: Labels) -> None:
    body = images.tobytes() + labels.astype("<i8").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, hashlib.sha256(body).digest() + body)
    except OSError as error:
        _log.warning("digits-m was built but not cached in %s (%s); set SSOLE_CACHE to a writable folder.", path, error)
