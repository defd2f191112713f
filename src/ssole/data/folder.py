"""Folders of images, at any depth, and lists of image files."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from ssole.data.base import MAX_FILES, Source, evenly_spaced
from ssole.data.labels import number_texts
from ssole.data.storage import data_errors, folder_of, is_remote, name_of, read_bytes, suffix_of
from ssole.errors import DataError, listed, without_secrets

# Formats that Pillow registers but that hold documents, video, scientific grids or programs.
_NOT_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
SPECIAL = "pipe, socket or device"
"""Key of special files in `Source.ignored`."""
_CAMERA_FILES = {".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
_OTHER_IMAGES = {".heic", ".heif", ".hif", ".avif", ".jxl"} | _CAMERA_FILES

_TABLES = {".csv": ",", ".tsv": "\t"}
LIST_SUFFIXES = (".txt", *_TABLES)
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image")
_LABEL_COLUMNS = ("label", "labels", "class", "target")
# Entries that are surely below the root, as most are: relative, without protocol or drive, no part begins with a dot.
_PLAIN = re.compile(r"[^/\\.:][^/\\:]*(?:/[^/\\.:][^/\\:]*)*")


class FileSource(Source):
    """Base class of sources whose images are files below one root, a folder or a URL."""

    root: str
    _paths: list[str]  # below the root, with forward slashes

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, i: int) -> str:
        return self._paths[i]

    def read(self, i: int) -> bytes:
        path = self._paths[i]
        if not is_remote(self.root):
            return read_bytes(os.path.join(self.root, path), where=path)
        quoted = quote(path, errors="surrogateescape") if self.root.startswith("http") else path
        return read_bytes(f"{self.root}/{quoted}", where=path, inside=self.root)

    def files(self) -> list[str] | None:
        return self.files_of(range(len(self)))

    def files_of(self, positions: Sequence[int] | NDArray[np.int64]) -> list[str] | None:
        if is_remote(self.root):  # one request for each image would take too long
            return None
        chosen = (positions[k] for k in evenly_spaced(len(positions), MAX_FILES))
        return [os.path.join(self.root, self._paths[i]) for i in chosen]


class FolderSource(FileSource):
    """Source of all images below a folder, in the order of their paths.

    Images are known by their suffix: all those that Pillow opens. Names that begin with a dot are skipped and counted
    in `.hidden`. Links are followed, and each real folder is visited once, so loops end. Other files are counted by
    suffix in `.ignored`. Pipes, sockets and devices are counted there too, whatever their name.

    Labels are the first-level sub-folders if every image lies in one and there are at least two.

    Args:
        root: The folder. An image's id is its path below the folder, with forward slashes.
        inside: Take only the images in this sub-folder of the root; the first level is then the one below it.

    Raises:
        DataError: the folder cannot be listed, is empty or holds no image.
    """

    def __init__(self, root: str | os.PathLike[str], *, inside: str = "") -> None:
        folder = Path(root) / inside
        self.name = folder.name or str(folder)
        self.identity = f"{Path(root).resolve()}\n{inside}" if inside else str(folder.resolve())  # ids differ
        self.root = os.fspath(root)
        paths, self.ignored, self.hidden = find_files(folder, image_suffixes())
        if not paths:
            hidden = f" ({self.hidden} hidden, whose names begin with a dot)" if self.hidden else ""
            if not self.ignored:
                raise DataError(f"The folder {folder} is empty: it holds no files that are visible{hidden}.")
            raise DataError(
                f"The folder {folder} holds no images (known by suffixes such as .jpg), only other files: "
                f"{suffix_counts(self.ignored)}{hidden}."
            )
        self.labels, self.classes, self.why_unlabelled = _folder_labels(paths)
        self._paths = [f"{inside}/{path}" for path in paths] if inside else paths


class ListSource(FileSource):
    """Source of the image files that a list names.

    ``.txt`` holds one path a line; empty lines are skipped. ``.csv`` and ``.tsv`` have a header with a column path,
    file, filename, file_name, filepath or image, and perhaps a column of labels: label, labels, class or target. If all
    labels are integers they stay as they are, else they are names. An empty label is unknown (−1).

    Paths are relative to the root, or absolute and below it. None may leave it, so that a list from elsewhere can only
    read images beside it; redirects of a web server may not leave it either. Links within the root are followed,
    because its owner made them. Missing files are only noticed when they are read.

    Args:
        file: The list, as a path or URL.
        root: The folder that the paths are relative to and must not leave; by default that of the list. An image's id
            is its path below this folder, with forward slashes.

    Raises:
        DataError: the list cannot be read, names no file or has no column of paths, or a path leaves the root.
    """

    def __init__(self, file: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> None:
        file = os.fspath(file)
        root = folder_of(file) if root is None else os.fspath(root)
        self.name = name_of(file)
        self.root = root.rstrip("/") if is_remote(root) else os.path.abspath(root)
        self.identity = without_secrets(f"{self.root}/{self.name}")  # two lists may have one root
        # names that are not valid text are kept, as they are in a folder
        data = read_bytes(file, where=file)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell's > and Excel write
            text = data.decode("utf-16", errors="replace")
        else:
            text = data.decode("utf-8-sig", errors="surrogateescape")
        labels: list[str] | None = None
        if delimiter := _TABLES.get(suffix_of(file)):
            entries, labels, self.why_unlabelled = _columns(text, delimiter, file)
        else:
            entries = [stripped for line in text.split("\n") if (stripped := line.strip())]
        if not entries:
            raise DataError(f"{file} names no files.")
        self._paths = list(_below_root(entries, self.root, file))
        if labels is not None:
            import pyarrow as pa

            with data_errors(f"The labels of {file} are not all UTF-8"):
                column = pa.array([label or None for label in labels], pa.string())
            self.labels, self.classes = number_texts(column)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot, of the image formats that the installed Pillow opens."""
    from PIL import Image

    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in Image.OPEN and kind not in _NOT_PHOTOS)


def suffix_counts(ignored: Mapping[str, int]) -> str:
    """Most frequent suffixes in words, with the number of files of each."""
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in Counter(ignored).most_common(8))


def unread_images(ignored: Mapping[str, int]) -> str:
    """Note on ignored files whose suffixes are of image formats that Pillow does not open; empty if there are none."""
    others = {suffix: count for suffix, count in ignored.items() if suffix in _OTHER_IMAGES - image_suffixes()}
    if not others:
        return ""
    return f"not read, though they look like images: {suffix_counts(others)} (to use them, convert them to JPEG or PNG)"


def find_files(folder: Path, suffixes: Set[str]) -> tuple[list[str], Counter[str], int]:
    """Sorted paths of files with these suffixes below a folder, its other files by suffix, and how many are hidden."""
    paths: list[str] = []
    ignored: Counter[str] = Counter()
    hidden = 0
    visited: set[tuple[int, int] | str] = set()
    waiting = [""]
    while waiting:
        here = waiting.pop()
        folders = []
        with data_errors(f"Cannot list the folder {folder / here}"):
            status = os.stat(folder / here)
            # some file systems, on Windows above all, have no numbers of files, and give 0 for all
            this = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder / here)
            if this in visited:
                continue
            visited.add(this)
            entries = list(os.scandir(folder / here))
        prefix = f"{here}/" if here else ""
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                hidden += 1
            elif (kind := entry_kind(entry)) == "folder":
                folders.append(prefix + name)
            elif kind == SPECIAL:
                ignored[SPECIAL] += 1
            elif (suffix := os.path.splitext(name)[1].lower()) in suffixes:
                paths.append(prefix + name)
            else:
                ignored[suffix] += 1
        waiting += sorted(folders, reverse=True)  # of several links to one folder, the first is followed
    return sorted(paths), Counter(dict(sorted(ignored.items()))), hidden  # scandir has no fixed order


def entry_kind(entry: os.DirEntry[str]) -> str:
    """Kind of an entry: folder, file or special file. A broken link counts as a file, which is then unreadable."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not os.path.exists(entry.path) else SPECIAL
    except OSError:  # a link to itself
        return "file"


def _folder_labels(paths: list[str]) -> tuple[NDArray[np.int64] | None, list[str] | None, str | None]:
    """Labels and class names from the first-level folders, or the reason for none if a few images lie outside them."""
    tops = [path.partition("/")[0] for path in paths if "/" in path]
    classes = sorted(set(tops))
    if len(classes) < 2 or 2 * len(tops) <= len(paths):
        return None, None, None
    if len(tops) < len(paths):
        outside = [path for path in paths if "/" not in path]
        lie = "lies" if len(outside) == 1 else "lie"
        return None, None, f"{listed(outside, 1)} {lie} outside the folders of the classes"
    number = {top: label for label, top in enumerate(classes)}
    return np.array([number[top] for top in tops], dtype=np.int64), classes, None


def _columns(text: str, delimiter: str, location: str) -> tuple[list[str], list[str] | None, str | None]:
    """Paths and labels of a table; or None, and why further columns hold no labels.

    A row without a path is a `DataError`: skipping it would shift the labels.
    """
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    entries: list[str] = []
    labels: list[str] = []
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        path, label = (
            next((header.index(name) for name in names if name in header), None)
            for names in (_PATH_COLUMNS, _LABEL_COLUMNS)
        )
        if path is None:
            raise DataError(
                f"{location} begins with {header}; its header must name a column of paths: {', '.join(_PATH_COLUMNS)}."
            )
        for row in rows:
            if not row:
                continue
            entries.append(row[path].strip())
            if label is not None:
                labels.append(row[label].strip())
            if not entries[-1]:
                raise DataError(f"{location}, line {rows.line_num}: the row {row} has no path.")
    except csv.Error as error:
        raise DataError(f"{location}, line {rows.line_num}: {error}.") from error
    except IndexError as error:
        raise DataError(f"{location}, line {rows.line_num}: fewer columns than the header {header}.") from error
    if label is not None:
        return entries, labels, None
    why = f"none of its columns {', '.join(header)} is called {', '.join(_LABEL_COLUMNS)}"
    return entries, None, why if len(header) > 1 else None


def _below_root(entries: list[str], root: str, location: str) -> Iterator[str]:
    """Entries of a list as paths below the root, without ``..``."""
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
    # join takes an absolute entry as it is; the normalised path is the one read later, so no link can lead .. elsewhere
    path = os.path.normpath(os.path.join(prefix, entry))
    is_inside = os.path.normcase(path).startswith(os.path.normcase(prefix))  # where Windows knows no capitals
    return path[len(prefix) :].replace(os.sep, "/") if is_inside else None


def _inside_url(entry: str, prefix: str) -> str | None:
    if entry.startswith(prefix):  # a whole URL, where %20 stands for a space
        entry = entry.removeprefix(prefix)
        entry = unquote(entry, errors="surrogateescape") if prefix.startswith("http") else entry
    path = posixpath.normpath(entry)
    return None if is_remote(entry) or path.startswith(("/", "../")) or path in (".", "..") else path
