"""Images from any object with a length and an index: a torch dataset, a list of pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Indexable, Pixels, files_digest
from ssole.data.decode import pillow_pixels
from ssole.data.storage import read_bytes
from ssole.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_KEYS = ("image", "img", "jpg", "png")


class ObjectSource:
    """The items of any object with ``__len__`` and ``__getitem__``; a :class:`~ssole.data.base.Source`.

    An item is an image, a tuple that begins with one, or a mapping with one under ``image``, ``img``, ``jpg`` or
    ``png``. An image is a Pillow image; an array uint8 or uint16, (H, W) or (H, W, C); a tensor of these types, (H, W)
    or (C, H, W); encoded bytes; or a path. Whatever ``__getitem__`` raises makes an image unreadable, with that as the
    reason.

    `labels` are the object's ``targets`` or ``labels`` where these are one integer for each item, and `classes` its
    ``classes``. They are never taken from the items, for that would decode everything.

    Args:
        items: The object. Ids are ``name:index``, or the path where a list holds paths.
        name: Begins the ids; by default the object's ``name``, or else that of its type.
        thread_safe: Items may be asked for by several threads at once. By default one waits for the other, except for
            lists and tuples, because most data sets promise nothing.

    Raises:
        DataError: where the object has no length or index, or its first item is of another kind, such as the float
            tensors that a transform makes.
    """

    labels: NDArray[np.int64] | None

    def __init__(self, items: Indexable, *, name: str | None = None, thread_safe: bool = False) -> None:
        if isinstance(items, Mapping) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise DataError(
                "Data must be a name, a path, an array, a Source, or an object with __len__ and __getitem__ by number; "
                f"got {type(items).__name__}."
            )
        self._items = items
        given = getattr(items, "name", None)
        self.name = name or (given if isinstance(given, str) else type(items).__name__)
        is_list = isinstance(items, (list, tuple))
        self._holds_paths = is_list and all(isinstance(items[i], (str, os.PathLike)) for i in range(len(items)))
        self._turn = nullcontext() if is_list or thread_safe else threading.Lock()
        self._pillow_turn = threading.Lock()  # one image may be the item of several indices
        self.labels, self.classes = _labels(items)
        if len(items):
            self._check_first()

    def __len__(self) -> int:
        return len(self._items)

    def id(self, i: int) -> str:
        return os.fspath(self._items[i]) if self._holds_paths else f"{self.name}:{i}"

    def read(self, i: int) -> bytes | Pixels:
        """Image i, encoded or as an array; `DataError` where it cannot be had."""
        item, where = self._item(i), self.id(i)
        if _is_pillow(item):
            with self._pillow_turn:
                item = _unchanged(item, where)
        return _image(item, where)

    def fingerprint(self) -> str | None:
        """Changes when a file gets another size or time; None where the items are no local paths."""
        return files_digest("", [self.id(i) for i in range(len(self))]) if self._holds_paths and len(self) else None

    def _item(self, i: int) -> Any:
        try:
            with self._turn:
                item = self._items[i]
        except Exception as error:
            raise DataError(f"{self.id(i)}: getting the item failed ({type(error).__name__}: {error}).") from error
        if isinstance(item, Mapping):
            key = next((key for key in _IMAGE_KEYS if key in item), None)
            if key is None:
                raise DataError(f"{self.id(i)}: none of the item's keys {list(item)} is {', '.join(_IMAGE_KEYS)}.")
            return item[key]
        return item[0] if isinstance(item, (tuple, list)) and item else item

    def _check_first(self) -> None:
        """Tell now, not after a percent of all images, that items are of a wrong kind; one may well be unreadable."""
        try:
            item = self._item(0)
        except DataError:
            return
        if not _is_opened_later(item):
            _array(item, self.id(0))


def _is_pillow(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _is_opened_later(item: Any) -> bool:
    return isinstance(item, (bytes, bytearray, str, os.PathLike)) or _is_pillow(item)


def _image(item: Any, where: str) -> bytes | Pixels:
    if not _is_opened_later(item):
        return _array(item, where)
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    return read_bytes(os.fspath(item), where=where) if isinstance(item, (str, os.PathLike)) else _pillow(item, where)


def _array(item: Any, where: str) -> Pixels:
    """An array as it is, and a tensor with its channels last."""
    import torch

    is_tensor = isinstance(item, torch.Tensor)
    if not is_tensor and not isinstance(item, np.ndarray):
        raise DataError(
            f"{where}: an item must be an image, or a tuple that begins with one; got {type(item).__name__}."
        )
    if item.dtype not in (np.uint8, np.uint16, torch.uint8, torch.uint16) or item.ndim not in (2, 3):
        made = " A transform made it so: leave the transform out, for views are made of whole 8-bit images here."
        raise DataError(
            f"{where}: an item must hold uint8 or uint16 pixels of 2 or 3 dimensions; "
            f"got {item.dtype} {tuple(item.shape)}.{made if 'float' in str(item.dtype) else ''}"
        )
    array: Pixels = item.detach().cpu().numpy() if is_tensor else item
    return array.transpose(1, 2, 0) if is_tensor and array.ndim == 3 else array


def _unchanged(image: Image.Image, where: str) -> Image.Image | bytes:
    """What to take the pixels from, so that the image stays as it is.

    Of one that Pillow has opened and not yet decoded it is the bytes of its file: decoding it would leave the pixels
    with it, and in time the whole data set with a list of such. Of others it is a copy, as Pillow's are not made to be
    used by several threads.
    """
    try:
        file = getattr(image, "fp", None)
        if file is None or not getattr(image, "tile", None) or image.tell() != 0:
            return image.copy()
        position = file.tell()
        file.seek(0)
        data: bytes = file.read()
        file.seek(position)
    except Exception as error:  # a file that was closed, or is decoded by copying: decoders raise almost anything
        raise _damaged(error, where) from error
    return data


def _pillow(image: Image.Image, where: str) -> Pixels:
    try:
        return pillow_pixels(image, where)
    except DataError:
        raise
    except Exception as error:  # decoders again
        raise _damaged(error, where) from error


def _damaged(error: Exception, where: str) -> DataError:
    return DataError(f"{where}: the image is damaged ({type(error).__name__}: {error}).")


def _labels(items: Any) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    for name in ("targets", "labels"):
        found = getattr(items, name, None)
        try:
            labels = None if found is None else np.asarray(found)
        except (TypeError, ValueError, RuntimeError):  # rows of many lengths, a tensor on a GPU
            continue
        if labels is not None and labels.shape == (len(items),) and np.issubdtype(labels.dtype, np.integer):
            classes = getattr(items, "classes", None)
            if not isinstance(classes, (list, tuple)) or len(classes) <= labels.max(initial=-1):
                return labels.astype(np.int64), None
            return labels.astype(np.int64), [str(name) for name in classes]
    return None, None
