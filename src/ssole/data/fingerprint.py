"""What tells one set of images from another, and from itself after a change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssole.data.remote import is_remote
from ssole.errors import DataError

if TYPE_CHECKING:
    from ssole.data.paths import Paths
    from ssole.data.sources import Source

_STATS = 100_000  # files that are asked for their size and time, which takes about a second
_PROBES = 16  # images whose content stands for all, where the source has no fingerprint of its own


def ids_digest(source: Source) -> str:
    """A hash of the ids, in order."""
    ids = "\0".join(source.id(i) for i in range(len(source)))
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()  # file names need not be valid text


def fingerprint(source: Source) -> str:
    """A hash that changes with the images: of their ids, and of what the source says or shows of their content.

    A source may have a method ``fingerprint() -> str | None``, best made of :func:`files_digest`. Without one, or where
    it gives None, the content of a few images, evenly spread, is looked at; a change of others alone goes unnoticed.
    """
    method = getattr(source, "fingerprint", None)
    own = method() if callable(method) else None
    content = _probed(source) if own is None else str(own)
    return hashlib.sha256(f"{len(source)} {ids_digest(source)} {content}".encode()).hexdigest()


def files_digest(root: str | os.PathLike[str], paths: Sequence[str] | Paths) -> str | None:
    """A hash of the sizes and times of files below a root: of all, or of 100,000 spread evenly. None of remote ones."""
    n = len(paths)
    if is_remote(os.fspath(root)) or is_remote(paths[0]):
        return None
    digest = hashlib.sha256()
    for k in range(min(n, _STATS)):
        try:
            status = os.stat(os.path.join(root, paths[k * n // min(n, _STATS)]))
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"missing ")
    return digest.hexdigest()


def place(source: Source) -> str:
    """What stays the same when images are added or changed: the folder they are in, else their ids."""
    root = getattr(source, "root", None)
    if root is None:
        return ids_digest(source)
    return str(root) if "://" in str(root) else str(Path(root).resolve())


def _probed(source: Source) -> str:
    digest, n = hashlib.sha256(), len(source)
    for i in sorted({k * n // _PROBES for k in range(_PROBES)}):
        try:
            data = source.read(i)
        except DataError as error:
            data = str(error).encode("utf-8", "surrogatepass")
        digest.update(data if isinstance(data, bytes) else repr(data.shape).encode() + data.tobytes())
    return digest.hexdigest()
