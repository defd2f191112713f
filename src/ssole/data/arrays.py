"""Images in one array, in memory or in NumPy's files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Pixels
from ssole.data.remote import is_remote
from ssole.data.storage import name_of, open_binary, read_bytes
from ssole.errors import DataError
from ssole.runtime import check_memory

_TRAIN_IMAGES = ("x_train", "train_images", "images", "x", "data", "arr_0")
_TRAIN_LABELS = ("y_train", "train_labels", "labels", "y", "targets")
_TEST_IMAGES = ("x_test", "test_images", "x_val", "val_images")
_TEST_LABELS = ("y_test", "test_labels", "y_val", "val_labels")


class ArraySource:
    """Images in an array, which may be mapped from a file.

    Args:
        images: uint8 or uint16, (N, H, W) or (N, H, W, C).
        labels: (N,) integers, or None.
        classes: Names of the labels 0, 1, ...
        name: Begins the ids, ``name:row``.
    """

    labels: NDArray[np.int64] | None

    def __init__(
        self,
        images: Pixels,
        labels: NDArray[np.integer] | None = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "array",
    ) -> None:
        images = np.asanyarray(images)
        channels_first = images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4)
        right = images.dtype in (np.uint8, np.uint16) and images.ndim in (3, 4) and images.size > 0
        if not right or channels_first:
            hint = " Move the channels last." if channels_first else ""
            hint += " Scale them to 0..255 and round." if np.issubdtype(images.dtype, np.floating) else ""
            raise DataError(
                f"{name}: an array of images must be uint8 or uint16 of shape (N, H, W) or (N, H, W, C); "
                f"got {images.dtype} {images.shape}.{hint}"
            )
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
                raise DataError(
                    f"{name}: {len(images)} images need as many integer labels; got {labels.dtype} {labels.shape}."
                )
        self.name, self.images = name, images
        self.labels = None if labels is None else labels.astype(np.int64)
        self.classes = None if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.images)

    def id(self, i: int) -> str:
        return f"{self.name}:{i}"

    def read(self, i: int) -> Pixels:
        image: Pixels = self.images[i]
        return image


def open_npy(location: str) -> ArraySource:
    """The array of a ``.npy`` file: mapped, so that only what is read is loaded; behind a URL, loaded whole.

    Raises:
        DataError: where it cannot be read, or its array holds no images (see :class:`ArraySource`).
    """
    name = name_of(location)
    try:
        if is_remote(location):
            images = np.load(io.BytesIO(read_bytes(location, where=name)), allow_pickle=False)
        else:
            images = np.load(location, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(location, error) from error
    return ArraySource(images, name=name)


def open_npz(location: str, split: Literal["train", "test"], *, whole: bool) -> ArraySource:
    """Images and labels of a ``.npz`` file, loaded into memory.

    Images are called x_train, train_images, images, x, data or arr_0, and their labels y_train, train_labels, labels, y
    or targets; those of a test split x_test, test_images, x_val or val_images, with labels alike. Labels of shape
    (N, 1) are taken as (N,).

    Args:
        whole: Open a file without a test split as either split.

    Raises:
        DataError: where it cannot be read, would not fit into memory, or lacks such arrays.
    """
    name = name_of(location)
    try:
        with open_binary(location) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{location} holds one array, not an archive of them: name it .npy.")
            images, labels = _keys(archive, split, whole, location)
            wanted = [key for key in (images, labels) if key is not None]
            check_memory(
                sum(_size(archive, key) for key in wanted),
                f"The arrays {wanted} of {location}",
                "Save the images as .npy, which is read image by image.",
            )
            numbers = None if labels is None else archive[labels]
            pixels = archive[images]
    except DataError:
        raise
    except Exception as error:  # zipfile has many: for damage, encryption, unknown compression; a server has its own
        raise _damaged(location, error) from error
    if numbers is not None and numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    return ArraySource(pixels, numbers, name=f"{name}/{images}")


def _keys(archive: Any, split: str, whole: bool, location: str) -> tuple[str, str | None]:
    images = next((key for key in _TRAIN_IMAGES if key in archive), None)
    labels = next((key for key in _TRAIN_LABELS if key in archive), None)
    test = next((key for key in _TEST_IMAGES if key in archive), None)
    if split == "test" and test is not None:
        sibling = _TEST_LABELS[_TEST_IMAGES.index(test)]
        return test, sibling if sibling in archive else None
    if split == "test" and not whole:
        raise DataError(f"{location} has no test images: none of its arrays {list(archive)} is called {_TEST_IMAGES}.")
    if images is None:
        raise DataError(f"{location} has no array called {', '.join(_TRAIN_IMAGES)}; it has {list(archive)}.")
    return images, labels


def _size(archive: Any, key: str) -> int:
    """Bytes of an array, by the archive's table; zipfile unpacks no more than that."""
    names = archive.zip.namelist()
    size: int = archive.zip.getinfo(f"{key}.npy" if f"{key}.npy" in names else key).file_size
    return size


def _damaged(location: str, error: Exception) -> DataError:
    return DataError(f"Cannot read {location} as a NumPy file without pickled objects: {error}")
