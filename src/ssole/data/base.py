"""Source, the base class of all image sources, and what sources share: pixels, splits, labels, identity."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ssole.data.remote import is_remote
from ssole.data.storage import relative_to
from ssole.errors import DataError

if TYPE_CHECKING:
    from ssole.data.arrow import Paths


Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W) or (H, W, C), channels last."""


def evenly_spaced(n: int, count: int) -> list[int]:
    """Up to `count` different indices below n, evenly spaced, from 0 on."""
    count = min(n, count)
    return [k * n // count for k in range(count)]


Split = Literal["train", "test"]
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split
_WORD = re.compile(r"[A-Za-z]+")


def split_word(path: str) -> str | None:
    """The last word of a path that names a split."""
    words = [word for word in _WORD.findall(path.lower()) if word == "train" or word in TEST_NAMES]
    return words[-1] if words else None


def files_of_split(files: list[str], root: str, split: Split) -> list[str]:
    """Those of the files that belong to the split, by the last split name in each one's path below the root.

    Raises:
        DataError: when there are none.
    """
    words = [split_word(relative_to(file, root)) for file in files]
    tests = [name for name in TEST_NAMES if name in words]
    if split == "test":
        if not tests:
            found = ", ".join(sorted({word or "no such word" for word in words}))
            raise DataError(
                f"No test split in {root}: expected files with one of {', '.join(TEST_NAMES)} in their path; "
                f"found {found}."
            )
        return [file for file, word in zip(files, words, strict=True) if word == tests[0]]
    if len(set(words)) == 1:  # a lone test file is opened when asked for by name
        return files
    files = [file for file, word in zip(files, words, strict=True) if word not in TEST_NAMES]
    if not files:
        raise DataError(f"No training split among the files in {root}: they are named {', '.join(tests)}.")
    return files


def number_labels(column: Any, *, where: str) -> tuple[NDArray[np.int64], list[str] | None]:
    """An Arrow column of labels as numbers, −1 where it is null.

    Integers stay what they are. Texts are numbered in alphabetical order, and come back as the class names.

    Raises:
        DataError: beginning with `where`, when a label does not fit 64 bits.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    classes = None
    if types.is_string(column.type) or types.is_large_string(column.type):
        classes = sorted(pc.unique(column.drop_null()).to_pylist())
        column = pc.index_in(column, value_set=pa.array(classes, type=column.type))
    try:
        return pc.fill_null(column.cast(pa.int64()), -1).to_numpy().astype(np.int64), classes
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} do not fit 64-bit integers: {error}") from error


def number_texts(column: Any, *, where: str) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """:func:`number_labels` of texts, which are integers if all of them look like it; None if all are null."""
    import pyarrow as pa

    if column.null_count == len(column):
        return None, None
    with suppress(pa.ArrowInvalid):  # some are names
        column = column.cast(pa.int64())
    return number_labels(column, where=where)


_STATS = 100_000  # files that are asked for their size and time, which takes about a second


class Identity(NamedTuple):
    """What a set of images is known by."""

    place: str
    """What stays the same when images are added or changed."""
    content: str | None
    """A hash that changes with the images; None where the source cannot tell."""


def identify(source: Source) -> Identity:
    """Tell a source from others, and from itself after a change.

    The place is the source's attribute `place`, a text, else its `root`, else a hash of its ids. The content is a hash
    of the ids and of what the source's method ``fingerprint() -> str | None`` says, best made of :func:`files_digest`;
    where there is none, or it gives None, nothing short of reading every image would notice a change.
    """
    ids = ids_digest(source)
    method = getattr(source, "fingerprint", None)
    own = method() if callable(method) else None
    content = None if own is None else hashlib.sha256(f"{len(source)} {ids} {own}".encode()).hexdigest()
    return Identity(_place(source) or ids, content)


def files_digest(root: str | os.PathLike[str], paths: Sequence[str] | Paths) -> str | None:
    """A hash of the sizes and times of files below a root: of all, or of 100,000 of them, evenly spaced. None of
    remote ones."""
    if is_remote(os.fspath(root)) or is_remote(paths[0]):
        return None
    digest = hashlib.sha256()
    for i in evenly_spaced(len(paths), _STATS):
        try:
            status = os.stat(os.path.join(root, paths[i]))
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"missing ")
    return digest.hexdigest()


def ids_digest(source: Source) -> str:
    ids = "\0".join(source.id(i) for i in range(len(source)))
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()  # file names need not be valid text


def _place(source: Source) -> str | None:
    if (place := getattr(source, "place", None)) is not None:
        return str(place)
    if (root := getattr(source, "root", None)) is not None:
        return str(root) if is_remote(str(root)) else str(Path(root).resolve())
    return None


class Indexable(Protocol):
    """Anything with a length and an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class Source(Protocol):
    """Images with stable ids and, perhaps, labels; any object with these members can be trained on.

    `labels` is int64 (N,), with −1 for an image whose label is unknown, or None; `classes` names the labels 0, 1, ...
    """

    name: str
    labels: NDArray[np.int64] | None
    classes: list[str] | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | Pixels:
        """Image i, encoded or as an array (H, W) or (H, W, C), uint8 or uint16; safe to call from several threads.

        Raises `DataError`, beginning with the id, where it cannot be had.
        """
        ...

    def id(self, i: int) -> str:
        """The same for the same image in every run: its path below the root, or ``file:row``."""
        ...


Spec: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Pixels | Indexable | Source"


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
