"""Images in a folder, however deep."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssole.data.fingerprint import files_digest
from ssole.data.listing import Listing, keep, list_images
from ssole.data.paths import Paths
from ssole.data.storage import read_bytes
from ssole.errors import DataError


class FolderSource:
    """Every image below a folder, in the order of their paths; a :class:`~ssole.data.sources.Source`.

    Images are known by their suffix, whichever Pillow opens. Names that begin with a dot are skipped, and counted in
    `.hidden`. Links are followed, and each real folder is visited once, so loops end. Other files are counted, by
    suffix, in `.ignored`.

    `labels` come from the first-level sub-folders when every image lives in one and there are at least two; they are
    never needed.

    Args:
        root: The folder; an image's id is its path below it, with forward slashes.
        inside: Take only what lies in this sub-folder of the root; the first level is then that below it.
        listing: A file to keep the paths in, so that a million of them open again in a second rather than by looking
            through all folders. It is made anew when a folder has changed
            (:func:`~ssole.data.listing.list_images` says what that notices).

    Raises:
        DataError: where the folder cannot be listed, is empty or holds no image.
    """

    labels: NDArray[np.int64] | None

    def __init__(
        self, root: str | os.PathLike[str], *, inside: str = "", listing: str | os.PathLike[str] | None = None
    ) -> None:
        self.root = Path(root)
        self.name = (self.root / inside).name or str(self.root)
        self._folder = self.root / inside
        self._prefix = f"{inside}/" if inside else ""
        found = list_images(self._folder, None if listing is None else Path(listing))
        if len(found.paths) == 0:
            raise DataError(_no_images(self._folder, found))
        self._paths, self._listing = found.paths, found
        self.ignored, self.hidden = found.ignored, found.hidden
        self.labels, self.classes = _labels(found.paths)

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, i: int) -> str:
        return self._prefix + self._paths[i]

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; `DataError` where the file cannot be read."""
        return read_bytes(os.path.join(self._folder, self._paths[i]), where=self.id(i))

    def fingerprint(self) -> str | None:
        """Changes when a file gets another size or time; None where the files are remote."""
        return files_digest(self._folder, self._paths)

    def keep_listing(self, path: Path) -> None:
        """Write the paths to a file that can be given as `listing` from then on."""
        keep(self._listing, self._folder, path)


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the visible sub-folders."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _labels(paths: Paths) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Numbers of the first-level folders. Their images follow each other, as paths are sorted: only ends are sought."""
    counts: dict[str, int] = {}
    start = 0
    while start < len(paths):
        top, slash, _ = paths[start].partition("/")
        if not slash:
            return None, None
        end = bisect_left(paths, f"{top}0", lo=start)  # 0 comes right after / in Unicode
        counts[top] = end - start
        start = end
    if len(counts) < 2:
        return None, None
    classes = sorted(counts)
    number = {top: label for label, top in enumerate(classes)}
    return np.repeat([number[top] for top in counts], list(counts.values())).astype(np.int64), classes


def _no_images(folder: Path, found: Listing) -> str:
    unseen = f" ({found.hidden} hidden, whose names begin with a dot)" if found.hidden else ""
    if not found.ignored:
        return f"The folder {folder} is empty: it holds no files that are visible{unseen}."
    return (
        f"The folder {folder} holds no images (known by suffixes such as .jpg), only other files: "
        f"{kinds(found.ignored)}{unseen}."
    )


def kinds(ignored: Counter[str]) -> str:
    """The commonest suffixes and how many files have each."""
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common(8))
