"""Where the packed cache of a source is: found again by the next run, and made anew when the images changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.data.fingerprint import fingerprint, place
from ssole.data.host import cache_folder
from ssole.data.packed import PackedImages
from ssole.files import write_text_atomically

if TYPE_CHECKING:
    from ssole.data.sources import Source

DISK_SHARE = 0.5
"""Share of the free disk that a cache may take by default."""


def open_cache(
    source: Source, *, parent: Path | None, shrink_to: int | None, channels: int | None, limit: int | None
) -> PackedImages | None:
    """The cache of a source's images, decoded in one way; empty at first. None, with a warning, where none can be made.

    It is a folder named ``SOURCE-WHICH-STATE`` below the parent: the hash WHICH is of the data's place and the way of
    decoding, STATE of the data's :func:`~ssole.data.fingerprint.fingerprint` and of the versions that decode. One of
    another state is out of date; it is removed, with a warning.

    Args:
        parent: By default the folder ``packed`` in :func:`~ssole.data.host.cache_folder`.
        shrink_to, channels: As for :func:`ssole.data.decode.decode`.
        limit: Bytes of pixels; by default what is there, and half of what is free on the disk.
    """
    parent = cache_folder() / "packed" if parent is None else parent
    about = {"source": source.name, "place": place(source), "shrink_to": shrink_to, "channels": channels}
    state = {"images": len(source), "fingerprint": fingerprint(source), **_versions()}
    prefix = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', source.name)[:40]}-{_digest(about)}-"
    folder = parent / (prefix + _digest(state))
    try:
        if parent.is_dir():
            _remove_others(parent, prefix, folder, source.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / "about.json", json.dumps(about | state, indent=2) + "\n")
        pixels = folder / "pixels.bin"
        there = pixels.stat().st_size if pixels.is_file() else 0
        allowed = there + int(DISK_SHARE * shutil.disk_usage(folder).free) if limit is None else limit
        return PackedImages(folder, len(source), limit=allowed)
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {folder} ({error}), so they are decoded in every epoch: name another "
            "folder by the environment variable SSOLE_CACHE",
            stacklevel=2,
        )
        return None


def _versions() -> dict[str, Any]:
    """What decides, besides an image's bytes, on its pixels, or whether it can be read."""
    import PIL
    from PIL import Image

    from ssole import __version__

    return {"ssole": __version__, "pillow": PIL.__version__, "largest": Image.MAX_IMAGE_PIXELS}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _remove_others(parent: Path, prefix: str, folder: Path, name: str) -> None:
    others = [path for path in parent.iterdir() if path.name.startswith(prefix) and path != folder]
    for other in others:
        warnings.warn(
            f"{name} changed since its decoded images were kept in {other} (or the versions of ssole or Pillow did): "
            "they are removed, and the images are decoded anew",
            stacklevel=2,
        )
        shutil.rmtree(other, ignore_errors=True)  # a run that still reads them has them open
