"""What tells one set of images from another, and from itself after a change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ssole.data.remote import is_remote
from ssole.data.spread import spread

if TYPE_CHECKING:
    from ssole.data.paths import Paths
    from ssole.data.sources import Source

_STATS = 100_000  # files that are asked for their size and time, which takes about a second


class Identity(NamedTuple):
    """What a set of images is known by."""

    place: str
    """What stays the same when images are added or changed."""
    content: str | None
    """A hash that changes with the images; None where the source cannot tell."""


def identify(source: Source) -> Identity:
    """Tell a source from others, and from itself after a change.

    The place is the source's attribute `place`, a text, else its `root`, else a hash of its ids. The content is a hash
    of the ids and of what the source's method ``fingerprint() -> str | None`` says, best made of :func:`files_digest`;
    where there is none, or it gives None, nothing short of reading every image would notice a change.
    """
    ids = ids_digest(source)
    method = getattr(source, "fingerprint", None)
    own = method() if callable(method) else None
    content = None if own is None else hashlib.sha256(f"{len(source)} {ids} {own}".encode()).hexdigest()
    return Identity(_place(source) or ids, content)


def files_digest(root: str | os.PathLike[str], paths: Sequence[str] | Paths) -> str | None:
    """A hash of the sizes and times of files below a root: of all, or of 100,000 spread evenly. None of remote ones."""
    if is_remote(os.fspath(root)) or is_remote(paths[0]):
        return None
    digest = hashlib.sha256()
    for i in spread(len(paths), _STATS):
        try:
            status = os.stat(os.path.join(root, paths[i]))
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"missing ")
    return digest.hexdigest()


def ids_digest(source: Source) -> str:
    ids = "\0".join(source.id(i) for i in range(len(source)))
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()  # file names need not be valid text


def _place(source: Source) -> str | None:
    if (place := getattr(source, "place", None)) is not None:
        return str(place)
    if (root := getattr(source, "root", None)) is not None:
        return str(root) if is_remote(str(root)) else str(Path(root).resolve())
    return None
