"""Record of the images that a run or a comparison was started on, so that going on with others is an error.

images.json   number of images, hash of their ids, fingerprint of the source, hashes of some images' contents, and the
              latest time at which the system changed one of the files
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import Any

from ssole.data.arrays import is_array
from ssole.data.base import Source, content_digests
from ssole.data.storage import is_remote
from ssole.errors import ConfigError, DataError
from ssole.files import read_json, write_json_atomically
from ssole.training.run import Run, writing

IMAGES_FILE = "images.json"
_SAMPLE = 32  # images whose contents are compared


def keep_or_compare_images(run: Run, source: Source, *, name: str = IMAGES_FILE, allowed: bool = False) -> None:
    """Write the record of the images, or raise a DataError unless they are those of the record, in their order.

    A run has no record yet if it is new, or was killed before it could write one.

    Replaced images are recognised by the sizes and modification times of their files and by the contents of 32 images:
    of an array by the contents alone, and not at all if an object or source names no files. A file that keeps its size
    and modification time is recognised by its ctime, which no program can set; but if the ctimes of all files are new,
    they were probably copied, and that is no change. With `allowed`, replaced images give a warning, and the record is
    written anew.
    """
    path, ctimes = run.path / name, _ctimes(source)
    now = _record(source, ctimes)
    if not path.is_file():
        _write(run, name, now)
        return
    before = read_json(path)
    if not isinstance(before.get("images"), int) or not isinstance(before.get("ids"), str):
        raise ConfigError(f"{path} is damaged: it does not say which images there were at the start")
    if before["images"] != now["images"]:
        raise DataError(
            f"{path}: started on {before['images']} images and the data now hold {now['images']}: resuming needs the "
            "same"
        )
    if before["ids"] != now["ids"]:
        raise DataError(
            f"{path}: started on as many images ({now['images']}) by other names or in another order: resuming needs "
            "the same, since the views of an image depend on its index"
        )
    if (change := _content_change(before, now) or _ctime_change(before, ctimes)) is None:
        return
    if not allowed:
        raise DataError(f"{path}: {change}. Put those of the start back, or go on with these by --allow-changes images")
    warnings.warn(f"{path}: {change}; the run goes on with them", stacklevel=2)
    _write(run, name, now)


def _write(run: Run, name: str, record: dict[str, Any]) -> None:
    with writing(run, name):
        write_json_atomically(run.path / name, record, indent=None)


def _record(source: Source, ctimes: dict[str, int]) -> dict[str, Any]:
    has_contents = source.files() is not None or is_array(source)  # others may be slow or random
    return {
        "images": len(source),
        "ids": source.ids_fingerprint,
        "fingerprint": source.fingerprint(),
        "contents": content_digests(source, _SAMPLE) if has_contents else {},
        "latest_change": max(ctimes.values(), default=None),
    }


def _ctimes(source: Source) -> dict[str, int]:
    """Times in nanoseconds at which the system last changed the local files of a source, or their names."""
    found = {}
    for location in source.files() or ():
        if not is_remote(location):
            with suppress(OSError):  # reading the file will raise it again
                found[location] = os.stat(location).st_ctime_ns
    return found


def _ctime_change(before: dict[str, Any], ctimes: dict[str, int]) -> str | None:
    """Sentence about files that changed since a record of the same images; None if none did, or all."""
    latest = before.get("latest_change")
    later = [location for location, time in ctimes.items() if isinstance(latest, int) and time > latest]
    if not later or len(later) == len(ctimes):
        return None
    return (
        f"{len(later)} of {len(ctimes)} files were replaced or changed since the run was started, such as "
        f"{later[0]}, though sizes and times of modification are the same"
    )


def _content_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Sentence about a change between two records of images of the same names; None if none is known."""
    earlier = before.get("contents")
    earlier = earlier if isinstance(earlier, dict) else {}  # runs of the first version have none
    both = earlier.keys() & now["contents"].keys()
    others = [name for name in now["contents"] if name in both and earlier[name] != now["contents"][name]]
    if others:
        return f"{len(others)} of {len(both)} images that were compared have other contents now, such as {others[0]}"
    known = before.get("fingerprint") is not None and now["fingerprint"] is not None
    if known and before["fingerprint"] != now["fingerprint"]:
        return (
            f"sizes or times of change of the files are others than at the start, though {len(both)} images that were "
            "compared are the same (as after copying the files)"
        )
    return None
