"""Lists of image files: one path a line, or a table with a column of paths."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ssole.data.arrow import Paths
from ssole.data.base import files_digest, number_texts
from ssole.data.remote import is_remote
from ssole.data.storage import folder_of, name_of, read_bytes, suffix_of
from ssole.errors import DataError

_TABLES = {".csv": ",", ".tsv": "\t"}
LIST_SUFFIXES = (".txt", *_TABLES)
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image")
# Relative, without a protocol or drive, and no part begins with a dot: a path that leads nowhere else, told quickly.
_PLAIN = re.compile(r"[^/\\.:][^/\\:]*(?:/[^/\\.:][^/\\:]*)*")
_LABEL_COLUMNS = ("label", "labels", "class", "target")


class ListSource:
    """The image files that a list names; a :class:`~ssole.data.base.Source`.

    ``.txt`` holds one path a line, empty lines aside. ``.csv`` and ``.tsv`` have a header with a column path, file,
    filename, file_name, filepath or image, and perhaps one of labels: label, labels, class or target. Labels that are
    all integers are taken as they are, others are names, and an empty one is unknown (−1).

    Paths are relative to the root, or absolute and below it; none may leave it, so that a list from elsewhere reads
    nothing but images beside it. Links within the root are followed, as they are the work of whoever owns it. Whether
    the files exist is seen when they are read.

    Args:
        file: The list, as a path or URL.
        root: The folder that the paths are relative to and must not leave; by default the one the list lies in. An
            image's id is its path below the root, with forward slashes.

    Raises:
        DataError: where the list cannot be read, names nothing, has no column of paths, or a path leaves the root.
    """

    labels: NDArray[np.int64] | None

    def __init__(self, file: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> None:
        location = os.fspath(file)
        self.name = name_of(location)
        root = folder_of(location) if root is None else os.fspath(root)
        self.root = root.rstrip("/") if is_remote(root) else os.path.abspath(root)
        self.place = f"{self.root}/{self.name}"  # two lists may have one root
        # names that are no valid text survive, as they do in a folder
        text = read_bytes(location, where=location).decode("utf-8-sig", errors="surrogateescape")
        if delimiter := _TABLES.get(suffix_of(location)):
            entries, labels = _columns(text, delimiter, location)
        else:
            entries, labels = [stripped for line in text.split("\n") if (stripped := line.strip())], None
        if not entries:
            raise DataError(f"{location} names no files.")
        self._paths = Paths(_below_root(entries, self.root, location))
        self.labels, self.classes = _numbers(labels, location)

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, i: int) -> str:
        return self._paths[i]

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; `DataError` where the file cannot be read."""
        path = self._paths[i]
        if is_remote(self.root):
            path = quote(path, errors="surrogateescape") if self.root.startswith("http") else path
            return read_bytes(f"{self.root}/{path}", where=self._paths[i])
        return read_bytes(os.path.join(self.root, path), where=path)

    def fingerprint(self) -> str | None:
        """Changes when a file gets another size or time; None where the files are remote."""
        return files_digest(self.root, self._paths)


def _columns(text: str, delimiter: str, location: str) -> tuple[list[str], list[str] | None]:
    """The paths and labels of a table; `DataError` for a row without a path, as labels would shift without it."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    entries: list[str] = []
    labels: list[str] = []
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        path, label = _column(header, _PATH_COLUMNS), _column(header, _LABEL_COLUMNS)
        if path is None:
            raise DataError(
                f"{location} begins with {header}; its header must name a column of paths: {', '.join(_PATH_COLUMNS)}."
            )
        for row in rows:
            if row:
                entries.append(row[path].strip())
                labels.append(row[label or 0].strip())
                if not entries[-1]:
                    raise DataError(f"{location}, line {rows.line_num}: the row {row} has no path.")
    except csv.Error as error:
        raise DataError(f"{location}, line {rows.line_num}: {error}.") from error
    except IndexError as error:
        message = f"{location}, line {rows.line_num}: fewer columns than the header {header}."
        raise DataError(message) from error
    return entries, None if label is None else labels


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _numbers(labels: list[str] | None, location: str) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    import pyarrow as pa

    if labels is None:
        return None, None
    try:
        column = pa.array([label or None for label in labels], pa.string())
    except UnicodeEncodeError as error:
        raise DataError(f"The labels of {location} are not all UTF-8: {error}") from error
    return number_texts(column, where=f"The labels of {location}")


def _below_root(entries: list[str], root: str, location: str) -> Iterator[str]:
    """Each entry as a path below the root, without ``..``."""
    inside = _inside_url if is_remote(root) else _inside_folder
    prefix = root if root.endswith(("/", os.sep)) else root + ("/" if is_remote(root) else os.sep)
    for entry in entries:
        path = entry if _PLAIN.fullmatch(entry) else inside(entry, prefix)
        if path is None:
            raise DataError(
                f"{location} names {entry!r}, which is outside of {root}, and a list may only read below the folder it "
                "lies in. Move the list into a folder that holds all of its images (absolute paths below that are "
                "fine), or name that folder: ListSource(list, root=FOLDER)."
            )
        yield path


def _inside_folder(entry: str, prefix: str) -> str | None:
    # an absolute entry replaces the root; what is read later is this text, so links cannot lead .. elsewhere
    path = os.path.normpath(os.path.join(prefix, entry))
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else None


def _inside_url(entry: str, prefix: str) -> str | None:
    entry = entry.removeprefix(prefix)
    path = posixpath.normpath(entry)
    return None if is_remote(entry) or path.startswith(("/", "../")) or path in (".", "..") else path
