"""What a folder holds, found out by looking through it, and kept."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ssole.data.paths import Paths
from ssole.data.tables import load_table, save_table
from ssole.errors import DataError

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
