"""Images in a folder, however deep, and the listing of their paths."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssole.data.arrow import Paths, load_table, save_table
from ssole.data.base import files_digest
from ssole.data.storage import read_bytes
from ssole.errors import DataError


class FolderSource:
    """Every image below a folder, in the order of their paths; a :class:`~ssole.data.base.Source`.

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
            (:func:`~ssole.data.folder.list_images` says what that notices).

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


# Formats that Pillow registers but that hold documents, video, scientific grids or programs rather than pixels.
_NOT_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
_VERSION = 1  # of the kept file
# The steps in which file systems note times of change, at their longest. A file may come within the same step as the
# scan that missed it, so a folder that changed so shortly before its scan is not taken for unchanged.
_TICK = 2_000_000_000  # ns


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images below a folder, and what else was met.

    Attributes:
        paths: Sorted, relative to the folder, with forward slashes.
        ignored: How many other visible files there are, by suffix.
        hidden: How many files and folders there are whose name begins with a dot.
        changed: When each folder visited had last changed, in ns since the epoch, just before it was listed.
        scanned: When the scan began, in ns since the epoch.
    """

    paths: Paths
    ignored: Counter[str]
    hidden: int
    changed: dict[str, int]
    scanned: int


def list_images(folder: Path, kept: Path | None = None) -> Listing:
    """The listing of a folder: the one kept in a file if it still holds, else a new one, which is then kept there.

    Whether it holds is told by the times of change of all folders below, so that files that come, go or get another
    name are noticed. A file that is overwritten in place is not; its path, which is all that is kept, stays right.

    Raises:
        DataError: where a folder cannot be listed, or the file cannot be written.
    """
    if kept is None:
        return scan(folder)
    listing = _load(kept, folder)
    if listing is None:
        listing = scan(folder)
        keep(listing, folder, kept)
    return listing


def keep(listing: Listing, folder: Path, kept: Path) -> None:
    """Write the listing of a folder to a file, for :func:`list_images`; `DataError` where it cannot be written."""
    try:
        _save(kept, listing, folder)
    except OSError as error:
        raise DataError(f"Cannot keep the listing of {folder} in {kept}: {error.strerror or error}.") from error


def scan(folder: Path) -> Listing:
    """Look through a folder and all below it; links are followed, and each real folder is visited once."""
    images: list[str] = []
    ignored: Counter[str] = Counter()
    hidden = 0
    changed: dict[str, int] = {}
    visited: set[tuple[int, int]] = set()
    waiting, begin = [""], time.time_ns()
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(folder / here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            changed[here] = status.st_mtime_ns
            entries = sorted(os.scandir(folder / here), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise DataError(f"Cannot list the folder {folder / here}: {error.strerror or error}.") from error
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            if entry.name.startswith("."):
                hidden += 1
            elif _is_folder(entry):
                waiting.append(path)
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in image_suffixes():
                images.append(path)
            else:
                ignored[suffix] += 1
    return Listing(paths=Paths(sorted(images)), ignored=ignored, hidden=hidden, changed=changed, scanned=begin)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, which is told like other broken links when it is read
        return False


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot, of the image formats that the installed Pillow opens."""
    from PIL import Image

    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in Image.OPEN and kind not in _NOT_PHOTOS)


def _load(kept: Path, folder: Path) -> Listing | None:
    """The kept listing, or None where there is none of this folder or the folder has changed since."""
    loaded = load_table(kept)
    if loaded is None or any(loaded[1].get(name) != value for name, value in _conditions(folder).items()):
        return None
    table, facts = loaded
    is_folder = table.column("changed").is_valid()
    folders = table.filter(is_folder)
    names = Paths.from_arrow(folders.column("path").combine_chunks())
    changed = dict(zip((names[i] for i in range(len(names))), folders.column("changed").to_pylist(), strict=True))
    if any(
        time_of != _changed(folder / name) or time_of > facts["scanned"] - _TICK for name, time_of in changed.items()
    ):
        return None
    images = table.slice(0, len(table) - len(folders)).column("path").combine_chunks()
    return Listing(
        paths=Paths.from_arrow(images),
        ignored=Counter(facts["ignored"]),
        hidden=facts["hidden"],
        changed=changed,
        scanned=facts["scanned"],
    )


def _save(kept: Path, listing: Listing, folder: Path) -> None:
    import pyarrow as pa

    folders = Paths(listing.changed).array
    columns = {
        "path": pa.concat_arrays([listing.paths.array, folders]),
        "changed": pa.concat_arrays(
            [pa.nulls(len(listing.paths), pa.int64()), pa.array(listing.changed.values(), pa.int64())]
        ),
    }
    facts = {"scanned": listing.scanned, "ignored": listing.ignored, "hidden": listing.hidden}
    save_table(kept, columns, **_conditions(folder), **facts)


def _conditions(folder: Path) -> dict[str, object]:
    """What a kept listing must agree with."""
    return {"version": _VERSION, "folder": str(folder.absolute()), "suffixes": sorted(image_suffixes())}


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
