"""The small torchvision datasets, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssole.data.storage import cache_folder
from ssole.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """images: uint8 (N, H, W) or (N, H, W, 3); labels: int64 (N,) or None."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: list[str] | None


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    cls: str  # in torchvision.datasets
    train: dict[str, Any]  # arguments of the splits
    test: dict[str, Any]
    files: str  # what torchvision downloads, and from where, for those who must fetch it by hand


_BY_FLAG: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}}
_MNIST_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, unpacked into %s/raw, from %s"
_STL = "stl10_binary.tar.gz from http://ai.stanford.edu/~acoates/stl10/"
KNOWN: dict[str, _Dataset] = {
    "cifar10": _Dataset(
        cls="CIFAR10", files="cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html", **_BY_FLAG
    ),
    "cifar100": _Dataset(
        cls="CIFAR100", files="cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html", **_BY_FLAG
    ),
    "stl10": _Dataset(cls="STL10", train={"split": "train"}, test={"split": "test"}, files=_STL),
    "stl10-unlabeled": _Dataset(cls="STL10", train={"split": "unlabeled"}, test={"split": "test"}, files=_STL),
    "mnist": _Dataset(
        cls="MNIST", files=_MNIST_FILES % ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"), **_BY_FLAG
    ),
    "fashion-mnist": _Dataset(
        cls="FashionMNIST",
        files=_MNIST_FILES % ("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
        **_BY_FLAG,
    ),
    "kmnist": _Dataset(
        cls="KMNIST", files=_MNIST_FILES % ("KMNIST", "http://codh.rois.ac.jp/kmnist/index.html.en"), **_BY_FLAG
    ),
    "svhn": _Dataset(
        cls="SVHN",
        train={"split": "train"},
        test={"split": "test"},
        files="train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/",
    ),
}


def torchvision_arrays(name: str, split: Literal["train", "test"]) -> Arrays:
    """Read a dataset of :data:`KNOWN` from the cache folder, downloading it first where it is missing.

    Raises:
        DataError: where it can neither be found nor downloaded; the message says which files to place where.
    """
    from torchvision import datasets

    known = KNOWN[name]
    root = cache_folder() / "torchvision"
    make = getattr(datasets, known.cls)
    arguments = known.train if split == "train" else known.test
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            dataset = make(root, **arguments)
        except RuntimeError:  # how torchvision says that it is not there, or not whole
            dataset = make(root, **arguments, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise DataError(
            f"Could not download {name} ({error}). Without a connection, place {known.files} in {root}, and try again."
        ) from error
    labels = getattr(dataset, "targets", None)
    labels = np.asarray(dataset.labels if labels is None else labels, dtype=np.int64)
    unlabeled = bool((labels < 0).all())  # STL-10 marks its unlabeled images by -1
    return Arrays(
        images=_channels_last(np.asarray(dataset.data)),
        labels=None if unlabeled else labels,
        classes=None if unlabeled else getattr(dataset, "classes", None),
    )


def _channels_last(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
