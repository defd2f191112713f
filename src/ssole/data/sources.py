"""Where images come from: one small protocol, and one function that turns what a user typed into a source."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np

from ssole.data.arrays import ArraySource, open_npy, open_npz
from ssole.data.base import TEST_NAMES, Source, Spec, Split, files_of_split, split_word
from ssole.data.digits_m import CLASSES as DIGIT_CLASSES
from ssole.data.digits_m import digits_m
from ssole.data.folder import FolderSource, image_suffixes, subfolders
from ssole.data.lists import LIST_SUFFIXES, ListSource
from ssole.data.objects import ObjectSource
from ssole.data.parquet import ParquetSource, image_column
from ssole.data.patterns import expand, has_pattern
from ssole.data.remote import files_below, is_remote
from ssole.data.storage import common_folder, name_of, suffix_of
from ssole.data.tars import TarSource
from ssole.data.torchvision_sets import KNOWN, torchvision_arrays
from ssole.errors import DataError

_ONE_FILE = (*LIST_SUFFIXES, ".npy", ".npz")  # kinds of which one file is a whole data set
_FILES = (".parquet", ".tar", *_ONE_FILE)


def open_source(spec: Spec, *, split: Split = "train", listing: str | os.PathLike[str] | None = None) -> Source:
    """Open what a user gave as data.

    Args:
        spec: One of

            * ``"digits-m"``, the dataset that comes with ssole;
            * a torchvision name: cifar10, cifar100, stl10, stl10-unlabeled, mnist, fashion-mnist, kmnist, svhn
              (downloaded once; a folder of the same name needs ``./`` before it);
            * a folder of images, at any depth (:class:`FolderSource`);
            * a list of image files, ``.txt``, ``.csv`` or ``.tsv`` (:class:`ListSource`);
            * a parquet file (:class:`ParquetSource`) or tar shard (:class:`TarSource`), several, a folder of them, or a
              pattern such as ``"data/*.parquet"`` or ``"shard-{0000..0099}.tar"``;
            * a NumPy file, ``.npy`` or ``.npz`` (:func:`~ssole.data.arrays.open_npy`,
              :func:`~ssole.data.arrays.open_npz`);
            * any of these files, patterns, or folders of parquet files or tars, behind a URL that fsspec reads, such as
              ``s3://``, ``gs://``, ``hf://``, ``https://``;
            * several image files, as a sequence of paths or URLs;
            * an array (N, H, W) or (N, H, W, C), uint8 or uint16;
            * any object with ``__len__`` and ``__getitem__``, such as a torch dataset, or a list of Pillow images
              (:class:`ObjectSource`);
            * any :class:`Source`, which is returned as is, as are arrays and objects, whatever the split.
        split: For a folder with ``train/`` beside ``test/`` (or ``val/``, ``valid/``, ``validation/``, the first there
            is), the sub-folder; likewise for files with these words in their paths, and for arrays of a ``.npz`` named
            after them. A folder or files without such names are all "train", and asking them for "test" is an error, so
            that nothing is tested on what it was trained on unawares. One folder or file that is itself named after a
            test split is opened for either.
        listing: A file, for instance in the run folder, to keep the paths of a folder of images in; it then opens
            again without being looked through (:class:`FolderSource`). Other kinds have no need of it.

    Raises:
        DataError: where nothing of that name exists (it suggests close names), no image is found, the split is missing,
            or reading a URL needs a package that is missing.
    """
    if split not in ("train", "test"):
        raise DataError(f"The split must be 'train' or 'test', not {split!r}.")
    if isinstance(spec, np.ndarray):
        return ArraySource(spec)
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, (list, tuple)) and all(isinstance(file, (str, os.PathLike)) for file in spec):
        return _open_files([os.fspath(file) for file in spec], None, split)
    if not isinstance(spec, (str, os.PathLike)):
        return ObjectSource(spec)  # which says so if it is none
    text = os.fspath(spec)
    if text == "digits-m":
        images, labels = digits_m(split)
        return ArraySource(images, labels, classes=DIGIT_CLASSES, name=f"digits-m/{split}")
    if (known := text.lower()) in KNOWN:
        arrays = torchvision_arrays(known, split)
        return ArraySource(arrays.images, arrays.labels, classes=arrays.classes, name=f"{known}/{split}")
    return _open_url(text, split) if is_remote(text) else _open_path(text, split, listing)


def _open_path(text: str, split: Split, listing: str | os.PathLike[str] | None) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, split, listing)
    if path.is_file():
        return _open_files([str(path)], None, split)
    if has_pattern(text):
        return _open_files(expand(text), None, split)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings)]
    close += difflib.get_close_matches(text.lower(), ["digits-m", *KNOWN])
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise DataError(f"There is no dataset, folder or file named {text!r} (looked in {path.parent.absolute()}).{hint}")


def _open_url(url: str, split: Split) -> Source:
    if has_pattern(url):
        return _open_files(expand(url), None, split)
    if _kind(url) in _FILES:
        return _open_files([url], None, split)
    root = url.rstrip("/")
    files = files_below(root)
    for kind in (".parquet", ".tar"):
        if chosen := [file for file in files if _kind(file) == kind]:
            return _open_files(chosen, root, split)
    raise DataError(
        f"There are no .parquet or .tar files below {url}, only {len(files)} others. Images behind a URL are read from "
        "such files, or from a list of them (.txt or .csv) that lies there."
    )


def _open_folder(root: Path, split: Split, listing: str | os.PathLike[str] | None) -> Source:
    try:
        images = _open_images(root, split, listing)
    except DataError:
        if not (files := _shards_below(root)):
            raise
        return _open_files(files, str(root), split)
    # Tars beside images are mostly what these were unpacked from; parquet files may be tables of anything.
    parquet = (
        [file for file in _shards_below(root) if _kind(file) == ".parquet"] if ".parquet" in images.ignored else []
    )
    if parquet and image_column(parquet[0]) is not None:
        raise DataError(
            f"{root} holds both {len(images)} image files and {len(parquet)} parquet files of images, such as "
            f"{Path(parquet[0]).relative_to(root)}. Name the sub-folder or the files you mean."
        )
    return images


def _open_images(root: Path, split: Split, listing: str | os.PathLike[str] | None) -> FolderSource:
    names = subfolders(root)
    tests = [name for name in TEST_NAMES if name in names]
    # A dataset may well have a *class* called train; with a test folder, or nothing else, beside it, it is a split.
    if "train" in names and (tests or len(names) == 1):
        if split == "test" and not tests:
            raise DataError(f"{root} has train/ but no test split; expected one of {', '.join(TEST_NAMES)} beside it.")
        return FolderSource(root, inside="train" if split == "train" else tests[0], listing=listing)
    if split == "test" and split_word(root.name) not in TEST_NAMES:
        raise DataError(
            f"{root} is not divided into splits, so it has no test images. Put them into {root / 'train'} and "
            f"{root / 'test'}, or name a folder of test images."
        )
    return FolderSource(root, listing=listing)


def _shards_below(root: Path) -> list[str]:
    """Parquet files if the first holds images, else tars, else what parquet there is: its error says what it lacks.

    Shards of tars often have tables of captions beside them, but images in both are an error.
    """
    visible = [path for path in root.rglob("*") if path.suffix.lower() in (".parquet", ".tar") and path.is_file()]
    visible = [path for path in visible if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    parquet, tars = (sorted(str(p) for p in visible if _kind(str(p)) == kind) for kind in (".parquet", ".tar"))
    if not parquet or not tars:
        return parquet or tars
    if image_column(parquet[0]) is None:
        return tars
    raise DataError(
        f"{root} holds both {len(parquet)} parquet files of images and {len(tars)} tars, such as {parquet[0]} and "
        f"{tars[0]}. Name the files you mean."
    )


def _open_files(files: list[str], root: str | None, split: Split) -> Source:
    if not files:
        raise DataError("No file was given.")
    if missing := next((file for file in files if not is_remote(file) and not os.path.isfile(file)), None):
        raise DataError(f"There is no file {missing}.")
    kinds = {_kind(file) for file in files}
    if kinds <= image_suffixes() and len(files) > 1:
        if split == "test":
            raise DataError(
                f"{files[0]} and {len(files) - 1} more image files have no test split: they are all training images. "
                "Name the test images on their own."
            )
        return ObjectSource(files, name=f"{len(files)} files")
    if len(kinds) > 1 or not kinds <= set(_FILES):
        raise DataError(
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} cannot be opened as one data set: "
            f"expected a folder of images, several image files, or files of one kind among {', '.join(_FILES)}; "
            f"got {sorted(kinds)}."
        )
    root = common_folder(files) if root is None else root
    kind = kinds.pop()
    if kind == ".npz" and len(files) == 1:
        return open_npz(files[0], split, whole=split_word(name_of(files[0])) in TEST_NAMES)
    files = files_of_split(files, root, split)
    if kind in _ONE_FILE:
        if len(files) > 1:
            raise DataError(f"Name one {kind} file; {files[0]} and {len(files) - 1} more were given.")
        return open_npy(files[0]) if kind == ".npy" else ListSource(files[0])
    return ParquetSource(files, root=root) if kind == ".parquet" else TarSource(files, root=root)


def _kind(file: str) -> str:
    """The suffix; .tar for compressed tars too, which only then get an error of their own."""
    name = name_of(file).lower()
    return ".tar" if ".tar." in name or name.endswith(".tgz") else suffix_of(file)
