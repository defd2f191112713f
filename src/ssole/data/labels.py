"""Labels as numbers, whatever they were written as."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.errors import DataError


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
