"""Where the packed cache of a source is: found by the next run, made anew when the images changed, and bounded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.data.base import identify
from ssole.data.packed import PackedImages, remove_unless_open
from ssole.data.storage import cache_folder
from ssole.files import write_text_atomically

if TYPE_CHECKING:
    from ssole.data.base import Source

DISK_SHARE = 0.5
"""Share of the disk's free bytes, and of those that caches have, that caches may take by default."""

DECODER = 1
"""The version of :func:`ssole.data.decode.decode`: raise it with every change of the pixels that it gives."""

_TEMPORARY = "-temporary"  # how the folder's name ends


def open_cache(
    source: Source,
    *,
    parent: Path | None,
    shrink_to: int | None,
    channels: int | None,
    limit: int | None,
    expected: int,
) -> PackedImages | None:
    """The cache of a source's images, decoded in one way; empty at first. None, with a warning, where none can be made.

    It is a folder named ``SOURCE-WHICH-STATE`` below the parent: the hash WHICH is of the data's place and the way of
    decoding, STATE of the data's content (:func:`~ssole.data.base.identify`) and of what decodes. One of another
    state is out of date, and removed with a warning. Where the source cannot tell a change of its content, the cache is
    for this run alone, and removed on closing it.

    All caches below the parent share the disk: while they and this one would take more than half of what is free and
    what they have, the one that was opened longest ago is removed, with a warning. None is that a process has open.

    Args:
        parent: By default the folder ``packed`` in :func:`~ssole.data.storage.cache_folder`.
        shrink_to, channels: As for :func:`ssole.data.decode.decode`.
        limit: Bytes of pixels; by default half of what is free on the disk and of what this cache has.
        expected: Bytes that the pixels of all images will take, more or less.
    """
    import PIL

    parent = cache_folder() / "packed" if parent is None else parent
    place, content = identify(source)
    about = {"source": source.name, "place": place, "shrink_to": shrink_to, "channels": channels}
    state = {"images": len(source), "content": content, "decoder": DECODER, "pillow": PIL.__version__}
    prefix = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', source.name)[:40]}-{_digest(about)}-"
    folder = parent / (prefix + _digest(state))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_TEMPORARY, dir=parent))
        folder.mkdir(exist_ok=True)
        write_text_atomically(folder / "about.json", json.dumps(about | state, indent=2) + "\n")
        _remove_outdated(parent, prefix, folder, source.name)
        room = _make_room(parent, folder, source.name, expected if limit is None else min(expected, limit))
        limit = room if limit is None else limit
        packed = PackedImages(folder, len(source), limit=limit, temporary=content is None)
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {folder} ({error}), so they are decoded in every epoch: name another "
            "folder by the environment variable SSOLE_CACHE",
            stacklevel=2,
        )
        return None
    if expected > limit:
        packed.tell(_too_large(packed, source.name, expected))
    return packed


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _remove_outdated(parent: Path, prefix: str, folder: Path, name: str) -> None:
    """Remove what a run that was killed left behind, and caches of these images in another state."""
    for other in _others(parent, folder):
        if other.name.endswith(_TEMPORARY):
            remove_unless_open(other)
        elif other.name.startswith(prefix) and remove_unless_open(other):
            warnings.warn(
                f"{name} changed since its decoded images were kept in {other} (or how they are decoded did): they are "
                "removed, and the images are decoded anew",
                stacklevel=3,
            )


def _make_room(parent: Path, folder: Path, name: str, expected: int) -> int:
    """Remove the caches used least recently, until there is room for one more; the bytes that it may take."""
    there, free = _size(folder), shutil.disk_usage(parent).free
    sizes = {other: _size(other) for other in _others(parent, folder)}
    together = int(DISK_SHARE * (free + there + sum(sizes.values())))
    for other in sorted(sizes, key=_opened):
        if sum(sizes.values()) + max(there, expected) <= together:
            break
        if remove_unless_open(other):
            free += sizes.pop(other)
            warnings.warn(
                f"the decoded images in {other} are removed, as used least recently, to make room for those of {name}",
                stacklevel=3,
            )
    return int(DISK_SHARE * (free + there))


def _others(parent: Path, folder: Path) -> list[Path]:
    """The caches below a folder, but for one."""
    found = (about.parent for about in parent.glob("*/about.json") if (about.parent / "pixels.bin").is_file())
    return [other for other in found if other != folder]


def _opened(cache: Path) -> float:
    """When it was last opened, for about.json is written then."""
    try:
        return (cache / "about.json").stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


def _size(cache: Path) -> int:
    try:
        return (cache / "pixels.bin").stat().st_size
    except FileNotFoundError:  # it is new, or another process has just removed it
        return 0


def _too_large(packed: PackedImages, name: str, expected: int) -> str:
    from rich.filesize import decimal

    return (
        f"the decoded images of {name} will take about {decimal(expected)}, and their cache in {packed.folder} may "
        f"take {decimal(packed.limit)}: about {packed.limit / expected:.0%} of them are kept, and the others are "
        "decoded in every epoch. Make room on the disk, or name a folder on a larger one by the environment variable "
        "SSOLE_CACHE"
    )
