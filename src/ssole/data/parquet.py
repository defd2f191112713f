"""Source of images in parquet files, in the layout of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ssole.data.base import Source
from ssole.data.labels import is_fractional, is_text, number_labels, whole_numbers
from ssole.data.storage import absolute, data_errors, files_fingerprint, is_remote, name_of, open_binary, relative_to
from ssole.errors import DataError, listed, without_secrets
from ssole.files import parse_json, require_regular
from ssole.memory import check_memory

_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "bytes")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
_BATCH_ROWS = 1024  # Arrow cannot read nested columns of more than 2 GiB; small batches stay below that


class ParquetSource(Source):
    """Source of images in parquet files that share a schema, one image a row.

    The image column holds encoded images: a struct with `bytes` (Hugging Face's ``Image``), or binary. The label
    column, if any, holds integers or strings; a null label is −1. Class names come from Hugging Face's ``ClassLabel``
    when present, else from the strings. All encoded images are held in memory, and `read` copies one of them.

    Args:
        files: One or more parquet files, as paths or URLs. Images have the order of files and of rows.
        root: Folder or URL. An image's id is ``path:row`` with the file's path below it; by default the file's name.
        image_column, label_column: Columns to use; by default they are found by type and name.

    Raises:
        DataError: a file is not parquet, schemas differ, no image column or named column is found, there are no rows,
            or the encoded images would not fit into memory.
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        root: str | os.PathLike[str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        import pyarrow as pa

        paths = [os.fspath(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
        if not paths:
            raise DataError("No parquet file was given.")
        self._files = paths
        chosen = [] if image_column is None else [image_column]  # two image columns of one file need two caches
        self.identity = without_secrets("\n".join(sorted(map(absolute, paths)) + chosen))
        schema = _open(paths[0]).schema_arrow
        features = _features(schema)
        image = _image_column(schema, features, image_column, paths[0])
        label = _label_column(schema, features, label_column, paths[0])
        stem = os.path.splitext(name_of(paths[0]))[0]
        self.name = listed([stem, *paths[1:]], 1)
        self._names = [name_of(path) if root is None else relative_to(path, os.fspath(root)) for path in paths]
        _check_memory(paths, image)
        self._state_read = files_fingerprint(paths)  # before they are read: what is read is never older than it
        parts = [_read(path, image, label) for path in paths]
        self._images = pa.chunked_array([chunk for images, _ in parts for chunk in images], pa.large_binary())
        self._starts = np.cumsum([0] + [sum(map(len, images)) for images, _ in parts])
        if len(self._images) == 0:
            raise DataError(f"{listed(paths, 1)} holds no rows.")
        if label is not None:
            chunks = [chunk for _, labels in parts for chunk in labels]
            self._set_labels(label, chunks, features.get(label, {}).get("names"), required=label_column is not None)
        elif unread := [f"{field.name!r} is of type {field.type}" for field in schema if field.name in _LABEL_NAMES]:
            self.why_unlabelled = f"the column {unread[0]}, and labels are integers or texts"

    def _set_labels(self, column: str, chunks: list[Any], names: Any, *, required: bool) -> None:
        """Set labels and class names, or the reason why there are none; a DataError if they are `required`.

        `names` are the class names that Hugging Face's description of the column has, if any.
        """
        import pyarrow as pa

        with data_errors(f"{listed(self._files, 1)}: the labels are damaged, or of different types"):
            # integers of several widths become those of the widest
            table = pa.concat_tables([pa.table({column: chunk}) for chunk in chunks], promote_options="permissive")
            numbers = whole_numbers(table.column(column))
            if numbers is not None:
                self.labels, self.classes = number_labels(numbers)
            elif required:
                raise DataError(f"{listed(self._files, 1)}: the column {column!r} holds numbers that are not whole")
            else:
                self.why_unlabelled = f"the column {column!r} holds numbers that are not whole"
        integers = self.labels if self.classes is None else None  # texts name their classes themselves
        are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if integers is not None and are_names and len(names) > integers.max():
            self.classes = names

    def __len__(self) -> int:
        return len(self._images)

    def id(self, i: int) -> str:
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        return f"{self._names[file]}:{i - int(self._starts[file])}"

    def read(self, i: int) -> bytes:
        data: bytes | None = self._images[i].as_py()
        if data is None:
            raise DataError(f"{self.id(i)}: the row has no image bytes (null).")
        return data

    def files(self) -> list[str]:
        return self._files

    def state_of(self, files: list[str]) -> str | None:
        now = files_fingerprint(files)
        # If a file changed since it was read, the images in memory may be of either state: their cache is for neither.
        return now if now is None or now == self._state_read else f"{self._state_read} {now}"


def image_column(file: str) -> str | None:
    """Name of the column that holds the images of a parquet file, or None."""
    try:
        schema = _open(file).schema_arrow
        return _image_column(schema, _features(schema), None, file)
    except DataError:
        return None


def _open(path: str) -> Any:
    import pyarrow.parquet as pq

    with data_errors(f"Cannot read {path} as parquet"):
        if is_remote(path):
            return pq.ParquetFile(open_binary(path))
        require_regular(path)
        return pq.ParquetFile(path, memory_map=True)


def _check_memory(paths: list[str], image: str) -> None:
    """Raise a DataError if the encoded images would not fit into memory."""
    what = f"The encoded images of {listed(paths, 1)}"
    hint = "Give fewer files, or unpack them into a folder of images, which is read file by file."
    files = [_open(path).metadata for path in paths]
    groups = [metadata.row_group(group) for metadata in files for group in range(metadata.num_row_groups)]
    # The size of all columns first, an upper bound: metadata of a single one crash the process if they are damaged.
    with suppress(DataError):
        check_memory(sum(group.total_byte_size for group in groups), what, hint)
        return
    columns = [group.column(column) for group in groups for column in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == image)
    check_memory(size, what, hint)


def _read(path: str, image: str, label: str | None) -> tuple[list[Any], list[Any]]:
    """Encoded images and labels of a file, as Arrow arrays."""
    import pyarrow as pa
    import pyarrow.compute as pc

    file = _open(path)
    wanted = [image] if label is None else [image, label]
    if missing := [name for name in wanted if name not in file.schema_arrow.names]:
        raise DataError(f"{path} lacks the column {missing[0]!r} of the first file; it has {file.schema_arrow.names}.")
    images, labels = [], []
    with data_errors(f"{path} is damaged, or cannot be read"):
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
            column = batch.column(image)
            column = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
            images.append(column.cast(pa.large_binary()))
            labels += [batch.column(label)] if label is not None else []
    return images, labels


def _features(schema: Any) -> dict[str, Any]:
    """Description of the columns by Hugging Face, from the schema's metadata; empty without one."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _image_column(schema: Any, features: dict[str, Any], given: str | None, path: str) -> str:
    """Name of the image column: the one given, else found by Hugging Face's description, name or type."""
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            if index < 0:
                return False
            kind = kind.field(index).type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    possible = [field.name for field in schema if holds_images(field.type)]
    named = [name for name in possible if features.get(name, {}).get("_type") == "Image"]
    named += [name for name in _IMAGE_NAMES if name in possible]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if given is not None and given not in possible:
        raise DataError(f"{path}: the column {given!r} does not hold encoded images. Columns: {columns}.")
    if given is None and not named and len(possible) != 1:
        several = f"several columns may hold images, {possible}: choose one by ParquetSource(files, image_column=NAME)"
        problem = several if possible else "no image column"
        raise DataError(f"{path}: {problem}. Expected a struct with `bytes`, or binary. Columns: {columns}.")
    return given or (named or possible)[0]


def _label_column(schema: Any, features: dict[str, Any], given: str | None, path: str) -> str | None:
    """Name of the label column: the one given, else found by name, else by Hugging Face's description, else None."""
    import pyarrow.types as types

    def holds_labels(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(is_text(kind) or types.is_integer(kind) or types.is_boolean(kind) or is_fractional(kind))

    possible = [field.name for field in schema if holds_labels(field.type)]
    if given is not None and given not in possible:
        raise DataError(f"{path}: there is no column {given!r} of integers or strings. Columns: {schema.names}.")
    named = [name for name in _LABEL_NAMES if name in possible]
    named += [name for name in possible if features.get(name, {}).get("_type") == "ClassLabel"]
    named.sort(key=lambda name: is_fractional(schema.field(name).type))  # fractions last: they may be no classes
    return given or (named[0] if named else None)
