"""Opening of data: from a path, pattern, name, URL, array or object to a source."""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssole.data.arrays import TORCHVISION, ArraySource, open_npy, open_npz, open_torchvision
from ssole.data.base import NoTestImages, Source, Spec, Split
from ssole.data.describe import are_paths
from ssole.data.digits_m import CLASSES as DIGIT_CLASSES
from ssole.data.digits_m import digits_m
from ssole.data.folder import LIST_SUFFIXES, FolderSource, ListSource, entry_kind, find_files, image_suffixes
from ssole.data.objects import ObjectSource
from ssole.data.parquet import ParquetSource, image_column
from ssole.data.storage import (
    common_folder,
    data_errors,
    expand,
    files_below,
    folder_of,
    has_pattern,
    is_remote,
    name_of,
    relative_to,
    suffix_of,
)
from ssole.data.tars import TarSource
from ssole.errors import DataError, listed

_ONE_FILE = (*LIST_SUFFIXES, ".npy", ".npz")  # kinds where one file is a whole data set
_FILES = (".parquet", ".tar", *_ONE_FILE)
_TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split
_COMPRESSED_TAR = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst)|tgz)$")
_SHARD_SUFFIXES = frozenset({".parquet", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"})
_MAX_SIBLINGS = 10_000  # names that a mistyped one is compared with, which takes a third of a second


def open_source(spec: Spec, *, split: Split = "train") -> Source:
    """Source of the images that a user gave as data.

    Args:
        spec: One of

            * ``"digits-m"``, the dataset that comes with ssole;
            * a torchvision name: cifar10, cifar100, stl10, stl10-unlabeled, mnist, fashion-mnist, kmnist, svhn
              (downloaded once; a folder of the same name needs ``./`` before it);
            * a folder of images, at any depth (:class:`FolderSource`);
            * a list of image files, ``.txt``, ``.csv`` or ``.tsv`` (:class:`ListSource`);
            * a parquet file (:class:`ParquetSource`) or tar shard (:class:`TarSource`), several, a folder of them, or a
              pattern such as ``"data/*.parquet"`` or ``"shard-{0000..0099}.tar"``;
            * a NumPy file, ``.npy`` or ``.npz`` (:mod:`ssole.data.arrays`);
            * any of these files, patterns, or folders of parquet files or tars, behind a URL that fsspec reads, such as
              ``s3://``, ``gs://``, ``hf://``, ``https://``;
            * several image files, as a sequence of paths or URLs;
            * an array (N, H, W) or (N, H, W, C), uint8 or uint16;
            * any object with ``__len__`` and ``__getitem__``, such as a torch dataset, or a list of Pillow images
              (:class:`ObjectSource`);
            * a source of your own, a subclass of :class:`ssole.data.base.Source`, which is returned as it is.

        split: For a folder with ``train/`` beside ``test/`` (or ``val/``, ``valid/``, ``validation/``, the first that
            exists, in any case), the sub-folder; likewise for files with these words in their paths, and for arrays of
            a ``.npz`` with these words in their names. A folder or files without such names are all "train". Asking
            them for "test" is an error, so that no model is tested on its training images by accident. One folder of
            images, or one file, that is itself named after a test split is opened for either, and so are sources,
            arrays and objects.

    Raises:
        DataError: nothing of that name exists (the message suggests close names), no image is found, the split is
            missing, or reading a URL needs a package that is missing.
    """
    if split not in ("train", "test"):
        raise DataError(f"The split must be 'train' or 'test', not {split!r}.")
    if isinstance(spec, np.ndarray):
        return ArraySource(spec)
    if isinstance(spec, Source):
        return spec
    if are_paths(spec):
        return _open_files([os.path.expanduser(file) for file in spec], None, split)
    if not isinstance(spec, (str, os.PathLike)):
        return ObjectSource(spec)  # which raises an error for any other type
    text = os.fspath(spec)
    if text == "digits-m":
        images, labels = digits_m(split)
        return ArraySource(images, labels, classes=DIGIT_CLASSES, name=f"digits-m/{split}")
    if text.lower() in TORCHVISION:
        return open_torchvision(text.lower(), split)
    return _open_url(text, split) if is_remote(text) else _open_path(text, split)


def open_test_images(spec: Spec) -> Source:
    """Source of images given for testing: their test split, or all of them if there is none."""
    try:
        return open_source(spec, split="test")
    except NoTestImages:
        return open_source(spec, split="train")


def _open_path(text: str, split: Split) -> Source:
    expanded = os.path.expanduser(text)  # as text, because the path of an empty text is the working directory
    path = Path(expanded)
    if os.path.isdir(expanded):
        return _open_folder(path, split)
    if os.path.exists(expanded):
        return _open_files([str(path)], None, split)
    if has_pattern(text):
        return _open_files(expand(text), None, split)
    siblings: list[str] = []
    with suppress(OSError, ValueError):  # there is no such folder, or it cannot be listed
        siblings = os.listdir(path.parent)[:_MAX_SIBLINGS]
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings)]
    close += difflib.get_close_matches(text.lower(), ["digits-m", *TORCHVISION])
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise DataError(f"There is no dataset, folder or file named {text!r} (looked in {path.parent.absolute()}).{hint}")


def _open_url(url: str, split: Split) -> Source:
    if has_pattern(url):
        return _open_files(expand(url), None, split)
    if _kind(url) in _FILES:
        return _open_files([url], None, split)
    root = url.rstrip("/")
    files = files_below(root)
    if shards := _shards_among(files, root):
        return _open_files(shards, root, split)
    raise DataError(
        f"There are no .parquet or .tar files below {url}, only {len(files)} others. Images behind a URL are read from "
        "such files, or from a list of them (.txt or .csv) that lies there."
    )


def _open_folder(root: Path, split: Split) -> Source:
    try:
        images = _open_images(root, split)
    except DataError as error:
        if not (files := _shards_below(root)):
            raise
        try:
            return _open_files(files, str(root), split)
        except NoTestImages:
            if _split_folders(root)[1] is None:
                raise
            raise error from None  # there is a folder of test images, and none in it can be opened
    # The images were mostly unpacked from tars beside them, which is fine. Parquet files may be tables of anything.
    shards = _shards_below(root) if ".parquet" in images.ignored else []
    parquet = [file for file in shards if _kind(file) == ".parquet"]
    if parquet and image_column(parquet[0]) is not None:
        raise DataError(
            f"{root} holds both {len(images)} image files and {len(parquet)} parquet files of images, such as "
            f"{Path(parquet[0]).relative_to(root)}. Name the sub-folder or the files you mean."
        )
    return images


def _split_folders(root: Path) -> tuple[str | None, str | None]:
    """Names of the folders of training and of test images, where there are such."""
    with data_errors(f"Cannot list the folder {root}"), os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry_kind(entry) == "folder" and entry.name[0] != ".")
    names = {name.lower(): name for name in folders}  # also Train and Test
    tests = [names[name] for name in _TEST_NAMES if name in names]
    # A data set may have a *class* called train. It is a split if a test folder, or no other folder, is beside it.
    divided = "train" in names and (tests or len(folders) == 1)
    return (names["train"], tests[0] if tests else None) if divided else (None, None)


def _open_images(root: Path, split: Split) -> FolderSource:
    train, test = _split_folders(root)
    if train is not None:
        inside = train if split == "train" else test
        if inside is None:
            raise NoTestImages(f"{root} has train/ but no test split, which is {', '.join(_TEST_NAMES)} beside it.")
        return FolderSource(root, inside=inside)
    if split == "test" and _split_word(root.name) not in _TEST_NAMES:
        raise NoTestImages(
            f"{root} is not divided into splits, so it has no test images. Put them into {root / 'train'} and "
            f"{root / 'test'}, or name a folder of test images."
        )
    return FolderSource(root)


def _shards_below(root: Path) -> list[str]:
    return _shards_among([str(root / path) for path in find_files(root, _SHARD_SUFFIXES)[0]], str(root))


def _shards_among(files: list[str], root: str) -> list[str]:
    """The parquet files or the tars among files: those that hold images. Images in both are a DataError.

    Tar shards often have tables of captions beside them. Files of one kind are not looked into: opening them fails
    with a reason.
    """
    parquet, tars = ([file for file in files if suffix_of(file) == kind] for kind in (".parquet", ".tar"))
    tars = tars or [file for file in files if _kind(file) == ".tar"]  # compressed ones, if there are no others
    if not parquet or not tars:
        return parquet or tars
    if image_column(parquet[0]) is None:
        return tars
    raise DataError(
        f"{root} holds both {len(parquet)} parquet files of images and {len(tars)} tars, such as {parquet[0]} and "
        f"{tars[0]}. Name the files you mean."
    )


def _require_files(files: list[str]) -> None:
    """Raise a DataError unless these are regular files, or URLs."""
    if not files:
        raise DataError("No file was given.")
    for file in files:
        if is_remote(file) or os.path.isfile(file):
            continue
        if os.path.isdir(file):
            raise DataError(
                f"{file} is a folder, and only files can be given together: name one folder that holds all of them."
            )
        if os.path.exists(file):
            raise DataError(f"{file} is not a regular file but a pipe, socket or device.")
        raise DataError(f"There is no file {file}.")


def _open_files(files: list[str], root: str | None, split: Split) -> Source:
    """Source of files that are all of one kind."""
    _require_files(files)
    kinds = {_kind(file) for file in files}
    if kinds <= image_suffixes() and len(files) > 1:
        if split == "test":
            raise NoTestImages(
                f"{listed(files, 1)} image files have no test split: they are all training images. "
                "Name the test images on their own."
            )
        return ObjectSource(files, name=f"{len(files)} files")
    if len(kinds) > 1 or not kinds <= set(_FILES):
        is_image = kinds <= image_suffixes()
        hint = f" One image is no data set: give its folder, {folder_of(files[0])}." if is_image else ""
        raise DataError(
            f"{listed(files, 1)} cannot be opened as one data set: "
            f"expected a folder of images, several image files, or files of one kind among {', '.join(_FILES)}; "
            f"got {sorted(kinds)}.{hint}"
        )
    root = common_folder(files) if root is None else root
    kind = kinds.pop()
    if kind == ".npz" and len(files) == 1:
        return open_npz(files[0], split, whole=_split_word(name_of(files[0])) in _TEST_NAMES)
    files = _files_of_split(files, root, split)
    if kind in _ONE_FILE:
        if len(files) > 1:
            raise DataError(f"Name one {kind} file; {listed(files, 1)} were given.")
        return open_npy(files[0]) if kind == ".npy" else ListSource(files[0])
    return ParquetSource(files, root=root) if kind == ".parquet" else TarSource(files, root=root)


def _kind(file: str) -> str:
    """Suffix of a file. That of compressed tars is .tar too: the error on opening them says how to unpack them."""
    return ".tar" if _COMPRESSED_TAR.search(name_of(file).lower()) else suffix_of(file)


def _split_word(path: str) -> str | None:
    """Last word of a path that names a split, such as train or val."""
    words = [word for word in re.findall(r"[a-z]+", path.lower()) if word == "train" or word in _TEST_NAMES]
    return words[-1] if words else None


def _files_of_split(files: list[str], root: str, split: Split) -> list[str]:
    """Files of a split, by the last word in their path below the root that names one."""
    words = [_split_word(relative_to(file, root)) for file in files]
    tests = [name for name in _TEST_NAMES if name in words]
    if split == "test":
        if not tests:
            found = ", ".join(sorted({word or "no such word" for word in words}))
            raise NoTestImages(
                f"No test split in {root}: expected files with one of {', '.join(_TEST_NAMES)} in their path; "
                f"found {found}."
            )
        return [file for file, word in zip(files, words, strict=True) if word == tests[0]]
    if len(set(words)) == 1:  # a single test file is opened when it is given by name
        return files
    files = [file for file, word in zip(files, words, strict=True) if word not in _TEST_NAMES]
    if not files:
        raise DataError(f"No training split among the files in {root}: they are named {', '.join(tests)}.")
    return files
