"""Images in a folder, however deep."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssole.errors import DataError

# Formats that Pillow registers but that hold documents, video, scientific grids or programs rather than pixels.
_NOT_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


class FolderSource:
    """Every image below a folder, in the order of their paths; a :class:`~ssole.data.sources.Source`.

    Images are known by their suffix, whichever Pillow opens. Names that begin with a dot are skipped. Links are
    followed, and each real folder is visited once, so loops end. Other files are counted, by suffix, in `.ignored`.

    `labels` come from the first-level sub-folders when every image lives in one and there are at least two; they are
    never needed.

    Args:
        root: The folder; an image's id is its path below it, with forward slashes.
        inside: Take only what lies in this sub-folder of the root; the first level is then that below it.

    Raises:
        DataError: where the folder cannot be listed, is empty or holds no image.
    """

    def __init__(self, root: str | os.PathLike[str], *, inside: str = "") -> None:
        self.root = Path(root)
        self.name = (self.root / inside).name or str(self.root)
        found, self.ignored = scan(self.root / inside)
        if not found:
            raise DataError(_no_images(self.root / inside, self.ignored))
        self._paths = [f"{inside}/{path}" if inside else path for path in found]
        self.labels, self.classes = _labels(found)

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, i: int) -> str:
        return self._paths[i]

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; `DataError` where the file cannot be read."""
        try:
            return (self.root / self._paths[i]).read_bytes()
        except OSError as error:
            raise DataError(f"{self._paths[i]}: cannot read the file ({error.strerror or error}).") from error


def scan(folder: Path) -> tuple[list[str], Counter[str]]:
    """Sorted paths of the images below a folder, relative to it, and how many other files there are by suffix."""
    images: list[str] = []
    ignored: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(folder / here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder / here), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise DataError(f"Cannot list the folder {folder / here}: {error.strerror or error}.") from error
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append(path)
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in image_suffixes():
                images.append(path)
            else:
                ignored[suffix] += 1
    return sorted(images), ignored


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot, of the image formats that the installed Pillow opens."""
    from PIL import Image

    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in Image.OPEN and kind not in _NOT_PHOTOS)


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the visible sub-folders."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _labels(paths: list[str]) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    classes = sorted(set(tops))
    if "" in classes or len(classes) < 2:
        return None, None
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[top] for top in tops], dtype=np.int64), classes


def _no_images(folder: Path, ignored: Counter[str]) -> str:
    if not ignored:
        return f"The folder {folder} is empty: it holds no files that are visible."
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common(8))
    return f"The folder {folder} holds no images (known by suffixes such as .jpg), only other files: {kinds}."
