"""Objects with a length and an index as sources, such as a torch dataset or a list of Pillow images."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import MAX_FILES, Indexable, Pixels, Source, evenly_spaced
from ssole.data.decode import pillow_pixels
from ssole.data.describe import are_paths
from ssole.data.labels import number_integers
from ssole.data.storage import data_errors, is_remote, read_bytes
from ssole.errors import DataError, one_line, without_secrets

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_KEYS = ("image", "img", "jpg", "png")
_LABEL_KEYS = ("label", "labels", "target", "class", "cls")
_ELSEWHERE = "it has no attribute targets or labels, an integer for each image, and those in items are not read"


class ObjectSource(Source):
    """Source of any object with ``__len__`` and ``__getitem__``, whose items are images.

    An item is an image, a tuple that begins with one, or a mapping with one under ``image``, ``img``, ``jpg`` or
    ``png``. An image is a Pillow image; an array uint8 or uint16, (H, W) or (H, W, C); a tensor of these types, (H, W)
    or (C, H, W); encoded bytes; or a path. If ``__getitem__`` raises an error, the image is unreadable, and the error
    is the reason.

    Labels are the object's ``targets`` or ``labels``, if these are one integer for each item. Class names are its
    ``classes``. Labels are never taken from the items, because that would decode every image.

    Args:
        items: The object. Ids are ``name:index``, or the paths if it is a list of paths; URLs lose password and query.
        name: Beginning of the ids; by default the object's ``name``, or else the name of its type.
        thread_safe: Let several threads get items at once. By default only one does, except for lists and tuples,
            because most data sets do not say that they are safe.

    Raises:
        DataError: the object has no length or index, or its first item is of another kind, such as a float tensor that
            a transform made.
    """

    def __init__(self, items: Indexable, *, name: str | None = None, thread_safe: bool = False) -> None:
        if isinstance(items, Mapping) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise DataError(
                "Data must be a name, a path, an array, a source (ssole.data.base.Source), or an object with __len__ "
                f"and __getitem__ by number; got {type(items).__name__}."
            )
        self._items = items
        given = getattr(items, "name", None)
        self.name = name or (given if isinstance(given, str) else type(items).__name__)
        self._items_lock = nullcontext() if isinstance(items, (list, tuple)) or thread_safe else threading.Lock()
        self._ids = _ids(items) if are_paths(items) else None
        self._pillow_lock = threading.Lock()  # one image may be the item of several indices
        self.labels, self.classes, self.why_unlabelled = _labels(items)
        if len(items):
            self._check_first()

    def __len__(self) -> int:
        return len(self._items)

    def id(self, i: int) -> str:
        return f"{self.name}:{i}" if self._ids is None else self._ids[i]

    def read(self, i: int) -> bytes | Pixels:
        where = self.id(i)
        item = _image_of(self._item(i), where)
        if isinstance(item, (bytes, bytearray)):
            return bytes(item)
        if isinstance(item, (str, os.PathLike)):
            return read_bytes(os.fspath(item), where=where)
        if not _is_pillow(item):
            return _array(item, where)
        with data_errors(f"{where}: the image is damaged"):  # or its file is closed
            with self._pillow_lock:
                copy = _copy(item)
            return copy if isinstance(copy, bytes) else pillow_pixels(copy, where)

    def files(self) -> list[str] | None:
        if self._ids is None:
            return None
        files = [os.fspath(self._items[i]) for i in evenly_spaced(len(self), MAX_FILES)]
        return None if any(map(is_remote, files)) else files

    def _item(self, i: int) -> Any:
        try:
            with self._items_lock:
                return self._items[i]
        except Exception as error:
            raise DataError(f"{self.id(i)}: getting the item failed ({type(error).__name__}: {error}).") from error

    def _check_first(self) -> None:
        """Check the kind of the first item now, not in the middle of a run. It may be unreadable, which is no error."""
        try:
            whole = self._item(0)
            item = _image_of(whole, self.id(0))
        except DataError:
            return
        if not isinstance(item, (bytes, bytearray, str, os.PathLike)) and not _is_pillow(item):
            _array(item, self.id(0))
        if self.labels is None and _has_label(whole):
            self.why_unlabelled = self.why_unlabelled or _ELSEWHERE


def _image_of(item: Any, where: str) -> Any:
    """Image of an item, which may hold more."""
    if isinstance(item, Mapping):
        key = next((key for key in _IMAGE_KEYS if key in item), None)
        if key is None:
            raise DataError(f"{where}: none of the item's keys {list(item)} is {', '.join(_IMAGE_KEYS)}.")
        return item[key]
    return item[0] if isinstance(item, (tuple, list)) and item else item


def _has_label(item: Any) -> bool:
    """Whether an item seems to hold a label beside its image."""
    if isinstance(item, Mapping):
        return any(key in item for key in _LABEL_KEYS)
    return isinstance(item, (tuple, list)) and len(item) > 1


def _ids(paths: Any) -> list[str]:
    """Ids of paths and URLs. A URL loses its password and query, which are secret and may differ from day to day."""
    names = [without_secrets(path) if is_remote(path := os.fspath(item)) else path for item in paths]
    if len(set(names)) == len(names):
        return names
    return [f"{name}:{i}" if is_remote(name) else name for i, name in enumerate(names)]  # only their queries differed


def _is_pillow(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _array(item: Any, where: str) -> Pixels:
    """Pixels of an array, or of a tensor with its channels moved last."""
    import torch

    is_tensor = isinstance(item, torch.Tensor)
    if not is_tensor and not isinstance(item, np.ndarray):
        raise DataError(
            f"{where}: an item must be an image, or a tuple that begins with one; got {type(item).__name__}."
        )
    if item.dtype not in (np.uint8, np.uint16, torch.uint8, torch.uint16) or item.ndim not in (2, 3):
        hint = ""
        if item.ndim == 4:
            hint = " For an array of images with labels, give ssole.data.arrays.ArraySource(images, labels)."
        elif "float" in str(item.dtype):
            hint = " A transform made it so: leave the transform out, because ssole makes its views of whole images."
        raise DataError(
            f"{where}: an item must hold uint8 or uint16 pixels of 2 or 3 dimensions; "
            f"got {item.dtype} {tuple(item.shape)}.{hint}"
        )
    array: Pixels = item.detach().cpu().numpy() if is_tensor else item
    return array.transpose(1, 2, 0) if is_tensor and array.ndim == 3 else array


def _copy(image: Image.Image) -> Image.Image | bytes:
    """Copy of an image for decoding, so that the image stays as it is.

    For an image that Pillow has opened but not decoded, the copy is the bytes of its file. Decoding would keep the
    pixels in the image, and a list of such images would end up holding the whole data set decoded. Other images are
    copied because several threads cannot share a Pillow image.
    """
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell() != 0:
        return image.copy()
    position = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(position)
    return data


def _labels(items: Any) -> tuple[NDArray[np.int64] | None, list[str] | None, str | None]:
    """Labels, class names, and the reason why labels cannot be used if there seem to be some; each may be None."""
    reason = None
    for name in ("targets", "labels"):
        try:
            if (given := getattr(items, name, None)) is None:
                continue
            labels = np.asarray(given)
        except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths, a tensor on a GPU, ...
            reason = f"{name} of the data set are no array ({one_line(error)})"
            continue
        if labels.shape == (len(items),) and np.issubdtype(labels.dtype, np.integer):
            classes = getattr(items, "classes", None)
            if not isinstance(classes, (list, tuple)) or (labels.size and len(classes) <= labels.max()):
                return *number_integers(labels), None
            return labels.astype(np.int64), [str(name) for name in classes], None
        kind = "texts" if labels.dtype.kind in "US" else labels.dtype
        reason = f"{name} of the data set are {kind} {labels.shape}, and labels are one integer for each image"
    return None, None, reason
