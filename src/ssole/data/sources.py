"""Where images come from: one small protocol, and one function that turns what a user typed into a source."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ssole.data.digits_m import CLASSES as DIGIT_CLASSES
from ssole.data.digits_m import digits_m
from ssole.data.folder import FolderSource, subfolders
from ssole.data.parquet import ParquetSource, image_column
from ssole.data.torchvision_sets import KNOWN, torchvision_arrays
from ssole.errors import DataError

__all__ = ["ArraySource", "FolderSource", "ParquetSource", "Source", "Spec", "open_source", "shared_labels"]

Split = Literal["train", "test"]
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split
_WORD = re.compile(r"[A-Za-z]+")


@runtime_checkable
class Source(Protocol):
    """Images with stable ids and, perhaps, labels; any object with these members can be trained on.

    `labels` is int64 (N,), with −1 for an image whose label is unknown, or None; `classes` names the labels 0, 1, ...
    """

    name: str
    labels: NDArray[np.int64] | None
    classes: list[str] | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        """Image i, encoded or as uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); safe to call from several threads."""
        ...

    def id(self, i: int) -> str:
        """The same for the same image in every run: its path below the root, or ``file:row``."""
        ...


Spec: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[np.uint8] | Source"


class ArraySource:
    """Images already in memory.

    Args:
        images: uint8 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4).
        labels: (N,) integers, or None.
        classes: Names of the labels 0, 1, ...
        name: Begins the ids, ``name:row``.
    """

    labels: NDArray[np.int64] | None

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer] | None = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "array",
    ) -> None:
        images = np.asarray(images)
        right_shape = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
        if images.dtype != np.uint8 or not right_shape or images.size == 0:
            hint = " Move the channels last." if images.ndim == 4 and images.shape[1] in (1, 3, 4) else ""
            raise DataError(
                "An array of images must be uint8 of shape (N, H, W) or (N, H, W, C) with C = 1, 3 or 4; "
                f"got {images.dtype} {images.shape}.{hint}"
            )
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
                raise DataError(f"{len(images)} images need as many integer labels; got {labels.dtype} {labels.shape}.")
        self.name, self.images = name, images
        self.labels = None if labels is None else labels.astype(np.int64)
        self.classes = None if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.images)

    def id(self, i: int) -> str:
        return f"{self.name}:{i}"

    def read(self, i: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[i]
        return image


def open_source(spec: Spec, *, split: Split = "train") -> Source:
    """Open what a user gave as data.

    Args:
        spec: One of

            * ``"digits-m"``, the dataset that comes with ssole;
            * a torchvision name: cifar10, cifar100, stl10, stl10-unlabeled, mnist, fashion-mnist, kmnist, svhn
              (downloaded once; a folder of the same name needs ``./`` before it);
            * a folder of images, at any depth;
            * a parquet file, several, a folder of them, or a pattern such as ``"data/*.parquet"``;
            * a uint8 array (N, H, W, C);
            * any :class:`Source`, which is returned as is, as is an array, whatever the split.
        split: For a folder with ``train/`` beside ``test/`` (or ``val/``, ``valid/``, ``validation/``, the first there
            is), the sub-folder; likewise for parquet files with these words in their paths. A folder or files without
            such names are all "train", and asking them for "test" is an error, so that nothing is tested on what it was
            trained on unawares. One folder or file that is itself named after a test split is opened for either.

    Raises:
        DataError: where nothing of that name exists (it suggests close names), no image is found, or the split is
            missing.
    """
    if split not in ("train", "test"):
        raise DataError(f"The split must be 'train' or 'test', not {split!r}.")
    if isinstance(spec, np.ndarray):
        return ArraySource(spec)
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, (list, tuple)) and all(isinstance(file, (str, os.PathLike)) for file in spec):
        return _open_parquet([Path(file) for file in spec], None, split)
    if not isinstance(spec, (str, os.PathLike)):
        raise DataError(f"Data must be a name, a path, a uint8 array or a Source; got {type(spec).__name__}.")
    text = os.fspath(spec)
    if text == "digits-m":
        images, labels = digits_m(split)
        return ArraySource(images, labels, classes=DIGIT_CLASSES, name=f"digits-m/{split}")
    if (known := text.lower()) in KNOWN:
        arrays = torchvision_arrays(known, split)
        return ArraySource(arrays.images, arrays.labels, classes=arrays.classes, name=f"{known}/{split}")
    return _open_path(text, split)


def _open_path(text: str, split: Split) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{path} is a file, but not .parquet. Give a folder of images, or parquet files.")
        return _open_parquet([path], None, split)
    if glob.has_magic(text):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        if not files:
            raise DataError(f"No file matches the pattern {text!r}.")
        return _open_parquet(files, None, split)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings)]
    close += difflib.get_close_matches(text.lower(), ["digits-m", *KNOWN])
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise DataError(f"There is no dataset, folder or file named {text!r} (looked in {path.parent.absolute()}).{hint}")


def _open_folder(root: Path, split: Split) -> Source:
    try:
        images = _open_images(root, split)
    except DataError:
        if not (parquet := _parquet_below(root)):
            raise
        return _open_parquet(parquet, root, split)
    if ".parquet" in images.ignored and (parquet := _parquet_below(root)) and image_column(parquet[0]) is not None:
        raise DataError(
            f"{root} holds both {len(images)} image files and {len(parquet)} parquet files of images, such as "
            f"{parquet[0].relative_to(root)}. Name the sub-folder or the files you mean."
        )
    return images


def _open_images(root: Path, split: Split) -> FolderSource:
    names = subfolders(root)
    tests = [name for name in TEST_NAMES if name in names]
    # A dataset may well have a *class* called train; with a test folder, or nothing else, beside it, it is a split.
    if "train" in names and (tests or len(names) == 1):
        if split == "test" and not tests:
            raise DataError(f"{root} has train/ but no test split; expected one of {', '.join(TEST_NAMES)} beside it.")
        return FolderSource(root, inside="train" if split == "train" else tests[0])
    if split == "test" and _split_word(root.name) not in TEST_NAMES:
        raise DataError(
            f"{root} is not divided into splits, so it has no test images. Put them into {root / 'train'} and "
            f"{root / 'test'}, or name a folder of test images."
        )
    return FolderSource(root)


def _open_parquet(files: list[Path], root: Path | None, split: Split) -> ParquetSource:
    """Those of the files that belong to the split, by the last split name in each one's path."""
    for file in files:
        if not file.is_file():
            raise DataError(f"There is no file {file}.")
    words = [_split_word((file.relative_to(root) if root else Path(file.name)).as_posix()) for file in files]
    tests = [name for name in TEST_NAMES if name in words]
    if split == "test" and not tests:
        found = ", ".join(sorted({word or "no such word" for word in words}))
        raise DataError(
            f"No test split in {root or ', '.join(map(str, files[:3]))}: expected parquet files with one of "
            f"{', '.join(TEST_NAMES)} in their path; found {found}."
        )
    if split == "test":
        files = [file for file, word in zip(files, words, strict=True) if word == tests[0]]
    elif len(set(words)) > 1:  # a lone test file is opened when asked for by name
        files = [file for file, word in zip(files, words, strict=True) if word not in TEST_NAMES]
        if not files:
            raise DataError(f"No training split among the parquet files: they are named {', '.join(tests)}.")
    return ParquetSource(files, root=root)


def _split_word(path: str) -> str | None:
    """The last word of a path that names a split."""
    words = [word for word in _WORD.findall(path.lower()) if word == "train" or word in TEST_NAMES]
    return words[-1] if words else None


def _parquet_below(root: Path) -> list[Path]:
    files = (file for file in root.rglob("*.parquet") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts))


def shared_labels(train: Source, test: Source) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str] | None]:
    """Labels of both sources in one numbering.

    Folders and string columns number the classes they contain, so that a class missing from one of two sources would
    shift the numbers of the rest. With class names in both, labels are matched by name: train's classes come first, in
    their order, then any that test alone has.

    Returns:
        Train labels (N,) int64, test labels (M,) int64, and the class names or None.

    Raises:
        DataError: where either has no labels.
    """
    for part, source in (("training", train), ("test", test)):
        if source.labels is None:
            raise DataError(f"The {part} images ({source.name}) have no labels.")
    assert train.labels is not None
    assert test.labels is not None
    if train.classes is None or test.classes is None or train.classes == test.classes:
        return train.labels, test.labels, train.classes or test.classes
    classes = train.classes + [name for name in test.classes if name not in train.classes]
    number = np.array([classes.index(name) for name in test.classes], dtype=np.int64)
    return train.labels, np.where(test.labels < 0, -1, number[test.labels]), classes
