"""Numbers for labels: those of a column of texts or numbers, and those of two sources that share classes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import Source
from ssole.errors import DataError


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is a type of text."""
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_fractional(kind: Any) -> bool:
    """Whether an Arrow type can hold fractions. pandas writes integers as such a type where some are missing."""
    import pyarrow.types as types

    return bool(types.is_floating(kind) or types.is_decimal(kind))


def whole_numbers(column: Any) -> Any:
    """The column, as integers (null for NaN) if its type can hold fractions; None if some values have a fraction."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not is_fractional(column.type):
        return column
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def number_labels(column: Any) -> tuple[NDArray[np.int64], list[str] | None]:
    """Labels of an Arrow column as integers (−1 for null), and their class names if they were texts, else None.

    Integers stay as they are. Texts are numbered in alphabetical order, and integers beyond 63 bits by their value.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    classes = None
    if text := is_text(column.type):
        column = column.cast(pa.large_string())  # views, as Polars writes them, cannot be numbered
    if text or (types.is_uint64(column.type) and (pc.max(column).as_py() or 0) >= 2**63):
        names = sorted(pc.unique(column.drop_null()).to_pylist())
        column = pc.index_in(column, value_set=pa.array(names, type=column.type))
        classes = [str(name) for name in names]
    return pc.fill_null(column.cast(pa.int64()), -1).to_numpy().astype(np.int64), classes


def number_integers(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], list[str] | None]:
    """Labels of an array, like :func:`number_labels`: integers stay as they are unless some are beyond 63 bits."""
    if labels.dtype != np.uint64 or labels.max(initial=0) < 2**63:
        return labels.astype(np.int64), None
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


def number_texts(column: Any) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Labels of an Arrow column of texts: integers if all are integers, else numbered names; None if all are null.

    `3.0` is an integer: pandas writes integers like this where some of a column are missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return None, None
    with suppress(pa.ArrowInvalid):  # some texts are names
        return number_labels(column.cast(pa.int64()))
    if pc.all(pc.match_substring_regex(column, r"^-?[0-9]{1,15}(\.0*)?$")).as_py():  # 15 digits: exact in float64
        column = column.cast(pa.float64()).cast(pa.int64())
    return number_labels(column)


def shared_labels(train: Source, test: Source) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str] | None]:
    """Labels of two sources in one numbering, since each numbers only the classes that it contains.

    Classes are matched by name: first come those of train in their order, then further ones of test. If only one source
    has names, the integers of the other are names too if at least one of them is among the names ("7" beside "other").
    Otherwise they are positions among the names.

    Returns:
        Train labels (N,) int64, test labels (M,) int64, and the class names or None.

    Raises:
        DataError: one of the sources has no labels.
    """
    if train.labels is None or test.labels is None:
        part, source = ("training", train) if train.labels is None else ("test", test)
        why = f": {source.why_unlabelled}" if source.why_unlabelled else ""
        raise DataError(f"The {part} images ({source.name}) have no labels{why}.")
    train_labels, train_names = _named(train, test.classes)
    test_labels, test_names = _named(test, train.classes)
    if train_names is None or test_names is None or train_names == test_names:
        return train_labels, test_labels, train_names or test_names
    known = set(train_names)
    classes = train_names + [name for name in test_names if name not in known]
    number_of = {name: number for number, name in reversed([*enumerate(classes)])}  # of equal names, the first
    numbers = np.array([number_of[name] for name in test_names] or [-1], dtype=np.int64)  # [-1]: no label to look up
    return train_labels, np.where(test_labels < 0, -1, numbers[test_labels]), classes


def _named(source: Source, names: list[str] | None) -> tuple[NDArray[np.int64], list[str] | None]:
    """Labels and class names of a source. If it has no names, its integers are names if one of them is in `names`."""
    assert source.labels is not None
    if source.classes is None and names is not None:
        values = np.unique(source.labels[source.labels >= 0])
        if not set(own := [str(value) for value in values]).isdisjoint(names):
            return np.where(source.labels < 0, -1, np.searchsorted(values, source.labels)), own
    return source.labels, source.classes


def number_ids(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (N,), −1 where unknown. If some are N or more, such as ids of species, all are numbered anew from 0."""
    if labels.max(initial=-1) < len(labels):
        return labels
    numbers = np.full_like(labels, -1)
    numbers[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return numbers
