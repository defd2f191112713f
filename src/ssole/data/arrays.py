"""Arrays of images as sources: given by the user, in NumPy files, or in the small torchvision data sets."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import NoTestImages, Pixels, Source, Split, SubsetSource
from ssole.data.labels import number_integers
from ssole.data.storage import cache_folder, data_errors, is_remote, name_of, open_binary, read_bytes
from ssole.errors import DataError
from ssole.files import require_regular
from ssole.memory import check_memory, total_memory

_TRAIN_IMAGES = ("x_train", "train_images", "images", "x", "data", "arr_0")
_TRAIN_LABELS = ("y_train", "train_labels", "labels", "y", "targets")
_TEST_IMAGES = {"x_test": "y_test", "test_images": "test_labels", "x_val": "y_val", "val_images": "val_labels"}
_UNREADABLE = "Cannot read {} as a NumPy file without pickled objects"


class ArraySource(Source):
    """Source of the images of an array, which may be mapped from a file.

    Args:
        images: uint8 or uint16, (N, H, W) or (N, H, W, C).
        labels: (N,) integers, or None.
        classes: Names of the labels 0, 1, ...
        name: Beginning of the ids, ``name:row``.

    Raises:
        DataError: the images or labels have another shape or type, or a label has no name among the classes.
    """

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
        is_one = images.ndim == 3 and images.shape[1] >= 16 and images.shape[2] in (3, 4)  # no grey image is so narrow
        right = images.dtype in (np.uint8, np.uint16) and images.ndim in (3, 4) and images.size > 0
        if not right or channels_first or is_one:
            hint = " Move the channels last." if channels_first else ""
            hint += " If it is one image, give image[None]." if is_one else ""
            hint += " Scale them to 0..255 and round." if np.issubdtype(images.dtype, np.floating) else ""
            hint += " If they lie in 0..255, use .astype('uint8')." if images.dtype.kind == "i" else ""
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
            if classes is not None and labels.max() >= len(classes):
                raise DataError(f"{name}: a label is {labels.max()}, and there are {len(classes)} names of classes.")
        self.name, self.images = name, images
        self.labels, self.classes = (None, None) if labels is None else number_integers(labels)
        self.classes = self.classes if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.images)

    def id(self, i: int) -> str:
        return f"{self.name}:{i}"

    def read(self, i: int) -> Pixels:
        image: Pixels = self.images[i]
        return image


def is_array(source: Source) -> bool:
    """Whether the images are an array in memory, or a part of one."""
    return isinstance(source._base if isinstance(source, SubsetSource) else source, ArraySource)


def open_npy(location: str) -> ArraySource:
    """Source of a ``.npy`` file, which is mapped, so that an image is loaded when it is read; a remote file is loaded.

    Raises:
        DataError: the file cannot be read, or its array holds no images (see :class:`ArraySource`).
    """
    name = name_of(location)
    with data_errors(_UNREADABLE.format(location)), np.errstate(over="ignore"):  # the header may claim any shape
        if is_remote(location):
            data = read_bytes(location, where=name, most=int(0.4 * total_memory()))  # twice: the file, and its array
            images = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            require_regular(location)
            images = np.load(location, mmap_mode="r", allow_pickle=False)
    return ArraySource(images, name=name)


def open_npz(location: str, split: Split, *, whole: bool) -> ArraySource:
    """Source of the images and labels of a ``.npz`` file, loaded into memory.

    Images are called x_train, train_images, images, x, data or arr_0, and their labels y_train, train_labels, labels, y
    or targets. Those of a test split are x_test, test_images, x_val or val_images, with labels y_test, and so on.
    Labels of shape (N, 1) are taken as (N,). Those that are not one integer for each image are left out, with a
    warning.

    Args:
        whole: Open a file without a test split as either split.

    Raises:
        DataError: the file cannot be read, lacks such arrays, or they would not fit into memory.
    """
    name = name_of(location)
    with data_errors(_UNREADABLE.format(location)), open_binary(location) as file:
        file.seek(1)
        file.read(1)  # an error of a server that does not serve parts of files, which zipfile would hide
        file.seek(0)
        archive: Any = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{location} holds one array, not an archive of them: name it .npy.")
        images_key, labels_key = _keys(archive, split, whole, location)
        wanted = [key for key in (images_key, labels_key) if key is not None]
        members = [member for member in archive.zip.infolist() if member.filename.removesuffix(".npy") in wanted]
        size = sum(member.file_size for member in members)  # zipfile unpacks no more than that
        hint = "Save the images as .npy, which is read image by image."
        check_memory(size, f"The arrays {wanted} of {location}", hint)
        labels = None if labels_key is None else archive[labels_key]
        images = archive[images_key]
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if (
        labels is not None
        and labels.shape[:1] == images.shape[:1]
        and (labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer))
    ):
        warnings.warn(
            f"{location}: {labels_key} is left out, because labels are one integer for each image, "
            f"and it has {labels.dtype} {labels.shape}",
            stacklevel=2,
        )
        labels = None
    return ArraySource(images, labels, name=f"{name}/{images_key}")


def _keys(archive: Any, split: Split, whole: bool, location: str) -> tuple[str, str | None]:
    """Names of the arrays that hold the split's images and labels."""
    images = next((key for key in _TRAIN_IMAGES if key in archive), None)
    labels = next((key for key in _TRAIN_LABELS if key in archive), None)
    test = next((key for key in _TEST_IMAGES if key in archive), None)
    if split == "test" and test is not None:
        return test, _TEST_IMAGES[test] if _TEST_IMAGES[test] in archive else None
    if split == "test" and not whole:
        raise NoTestImages(
            f"{location} has no test images: none of its arrays {list(archive)} is called {tuple(_TEST_IMAGES)}."
        )
    if images is None:
        raise DataError(f"{location} has no array called {', '.join(_TRAIN_IMAGES)}; it has {list(archive)}.")
    return images, labels


class _Torchvision(NamedTuple):
    cls: str  # in torchvision.datasets
    files: str  # what torchvision downloads, and from where, for users who must fetch it by hand
    train: str = ""  # name of the training split; empty for classes that take a flag


_CIFAR = "cifar-%s-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
_MNIST = "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, unpacked into %s/raw, from %s"
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist"
_KMNIST_URL = "http://codh.rois.ac.jp/kmnist/index.html.en"
_STL = "stl10_binary.tar.gz from http://ai.stanford.edu/~acoates/stl10/"
_SVHN = "train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/"
TORCHVISION: dict[str, _Torchvision] = {
    "cifar10": _Torchvision("CIFAR10", _CIFAR % "10"),
    "cifar100": _Torchvision("CIFAR100", _CIFAR % "100"),
    "stl10": _Torchvision("STL10", _STL, train="train"),
    "stl10-unlabeled": _Torchvision("STL10", _STL, train="unlabeled"),
    "mnist": _Torchvision("MNIST", _MNIST % ("MNIST", _MNIST_URL)),
    "fashion-mnist": _Torchvision("FashionMNIST", _MNIST % ("FashionMNIST", _FASHION_URL)),
    "kmnist": _Torchvision("KMNIST", _MNIST % ("KMNIST", _KMNIST_URL)),
    "svhn": _Torchvision("SVHN", _SVHN, train="train"),
}
"""Torchvision data sets by the names that users give."""


def open_torchvision(name: str, split: Split) -> ArraySource:
    """Source of a data set of :data:`TORCHVISION`, which is downloaded to the cache folder if missing.

    Raises:
        DataError: it is missing and cannot be downloaded; the message says which files to place where.
    """
    from torchvision import datasets

    known = TORCHVISION[name]
    root = cache_folder() / "torchvision"
    make = getattr(datasets, known.cls)
    arguments = {"split": known.train if split == "train" else "test"} if known.train else {"train": split == "train"}
    with data_errors(f"Could not download {name}; without a connection, place {known.files} in {root}, and try again"):
        root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = make(root, **arguments)
        except RuntimeError:  # torchvision's error for files that are missing or incomplete
            dataset = make(root, **arguments, download=True)
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=np.int64)
    if (labels < 0).all():  # STL-10 marks its unlabeled images by -1
        return ArraySource(images, name=f"{name}/{split}")
    return ArraySource(images, labels, classes=getattr(dataset, "classes", None), name=f"{name}/{split}")
