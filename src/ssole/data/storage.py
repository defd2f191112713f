"""Storage: local files and files behind URLs, their names, patterns of names, and fingerprints.

A *location* is a path or a URL, as text. When files are read, only this module treats the two differently.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from ssole.data.remote import filesystem, open_remote, read_remote
from ssole.errors import DataError
from ssole.files import require_regular
from ssole.progress import data_size

MAX_BYTES = 1 << 30
"""Largest file that is read whole, unless its reader says otherwise: no image has more."""

CONNECTIONS = 8
"""Connections to a server at once, for requests about many files."""

_URL = re.compile(r"[A-Za-z][\w+.:-]+://")  # two letters at least: C:// is a drive
# Names that file systems give to a property that changes when a file does.
_VERSIONS = {"etag", "last-modified", "lastmodified", "mtime", "updated", "created", "content-md5", "commit_hash"}
_BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
_MAX_BRACE_FILES = 100_000  # files that braces may stand for: more are probably a mistake


def is_remote(location: str) -> bool:
    """Whether a location is a URL such as ``s3://bucket/data.tar``, rather than a path."""
    return _URL.match(location) is not None


def name_of(location: str) -> str:
    """Name of a file, without its folder and without a URL's query."""
    return absolute(location).rpartition("/")[2] if is_remote(location) else Path(location).name


def suffix_of(location: str) -> str:
    """Lower-case suffix with its dot, or an empty text."""
    return os.path.splitext(name_of(location))[1].lower()


def folder_of(location: str) -> str:
    """Folder of a file."""
    return location.partition("?")[0].rpartition("/")[0] if is_remote(location) else str(Path(location).parent)


def absolute(location: str) -> str:
    """Absolute path, or URL without its query, which may hold secrets."""
    return location.partition("?")[0] if is_remote(location) else os.path.abspath(location)


def relative_to(location: str, folder: str) -> str:
    """Path of a file below a folder that holds it, with forward slashes."""
    if is_remote(location):
        return absolute(location).removeprefix(folder).lstrip("/")
    return Path(location).relative_to(folder).as_posix()


def common_folder(locations: Sequence[str]) -> str:
    """Deepest folder that holds all of these files; `DataError` if there is none."""
    folders = [folder_of(location) for location in locations]
    if len(set(folders)) == 1:
        return folders[0]
    try:
        if not any(map(is_remote, folders)):
            return os.path.commonpath(folders)
        columns = zip(*(folder.split("/") for folder in folders), strict=False)
        shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    except ValueError:  # paths absolute and relative, or on two drives
        shared = []
    if len(shared) < 3:  # a protocol, nothing between two slashes, and a server
        raise DataError(f"These files have no folder in common: {locations[0]} to {locations[-1]}.")
    return "/".join(shared)


@contextmanager
def data_errors(what: str) -> Iterator[None]:
    """Context that raises any error as a DataError: `what`, with the reason in brackets. A DataError passes unchanged.

    Files raise errors of many types: OSError, ValueError for a NUL in the name, those of Arrow and zipfile for damage,
    and those of the clients of fsspec.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{what} ({reason.rstrip('.')}).") from error


def read_bytes(
    location: str,
    *,
    where: str,
    start: int = 0,
    end: int | None = None,
    most: int = MAX_BYTES,
    inside: str | None = None,
) -> bytes:
    """Bytes of a file; safe to call from several threads.

    Args:
        location, where: The file, and its name in errors.
        start, end: The part of it; by default all.
        most: Bytes that may be read: a link to a device, a sparse file or a server could go on without end.
        inside: Folder (a URL) that the redirects of a web server may not leave.

    Raises:
        DataError: the file cannot be read, is too large, or does not hold these bytes; the message begins with `where`.
    """
    wanted = None if end is None else end - start
    if wanted is not None and wanted > most:
        raise DataError(f"{where}: it has {data_size(wanted)}, and at most {data_size(most)} are read.")
    with data_errors(f"{where}: cannot read the file"):
        if is_remote(location):
            data = read_remote(location, start, end, most if wanted is None else wanted, inside=inside)
        else:
            with open(location, "rb", opener=_open_regular) as file:  # through fsspec, it would take twice as long
                size = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
                data = file.read(min(size, most + 1) if wanted is None else wanted)
    if wanted is None and len(data) > most:
        raise DataError(f"{where}: the file has more than {data_size(most)}, and is not read.")
    if wanted is not None and len(data) != wanted:
        cause = "its server ignores ranges: download it" if len(data) > wanted else "it was cut short or replaced"
        raise DataError(f"{where}: {name_of(location)} gave {len(data)} bytes in place of {wanted}; {cause}.")
    return data


def open_binary(location: str) -> BinaryIO:
    """File that is open for reading and seeking; `DataError` if it cannot be opened."""
    with data_errors(f"Cannot open {location}"):
        if is_remote(location):
            return open_remote(location)
        return open(location, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    require_regular(path)
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # in case a pipe takes its place just now


def file_fingerprint(location: str) -> tuple[str, bool]:
    """Text that changes when the file does, and whether that is certain.

    For a local file it holds the size and time of change, for a remote file the size and any versions that the server
    tells. With the size alone, a changed file of the same size has the same text.

    Raises:
        DataError: there is no such file.
    """
    with data_errors(f"There is no file {location}"):
        if not is_remote(location):
            status = os.stat(location)
            return f"{status.st_size} {status.st_mtime_ns}", True
        fs, path = filesystem(location)
        info = fs.info(path)
    versions = {key: str(info[key]) for key in sorted(info) if key.lower() in _VERSIONS}
    return json.dumps([info.get("size"), versions]), bool(versions)


def files_fingerprint(locations: Sequence[str]) -> str | None:
    """Hash that changes when one of these files does; None if a server does not tell enough."""
    remote = is_remote(locations[0])

    def fingerprint(location: str) -> tuple[str, bool]:
        try:
            return file_fingerprint(location)
        except DataError:  # reading the file will raise it again
            return "missing", not remote

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list((pool.map if remote else map)(fingerprint, locations))
    if not all(certain for _, certain in found):
        return None
    return hashlib.sha256("\n".join(text for text, _ in found).encode()).hexdigest()


def files_below(url: str) -> list[str]:
    """Sorted URLs of the files below a remote folder (no slash at its end); `DataError` if it cannot be listed."""
    with data_errors(f"Cannot list {url}, so name the files, as in shard-{{000..099}}.tar"):
        fs, path = filesystem(url)
        return sorted(f"{url}/{file.removeprefix(path).lstrip('/')}" for file in fs.find(path))


def has_pattern(text: str) -> bool:
    """Whether a text is a pattern such as ``data/*.tar`` or ``shard-{0000..0099}.tar``."""
    return _has_wildcard(text) or _BRACES.search(text) is not None


def expand(pattern: str) -> list[str]:
    """Files of a pattern.

    Braces count, ``{0000..0099}``, or list, ``{a,b}``, as in a shell; these files need not exist. ``*``, ``?`` and
    ``[...]`` match existing files, sorted. In URLs only ``*`` is a wildcard, because ``?`` begins a query.

    Raises:
        DataError: nothing matches, braces stand for more than 100,000 files, or a server does not list its files.
    """
    import bracex

    try:
        # a backslash would escape a brace, also on Windows
        names = dict.fromkeys(bracex.iexpand(pattern.replace(os.sep, "/"), keep_escapes=True, limit=_MAX_BRACE_FILES))
    except bracex.ExpansionLimitException as error:
        raise DataError(f"The braces of {pattern!r} stand for more than {_MAX_BRACE_FILES} files.") from error
    found: list[str] = []
    for name in map(os.path.expanduser, names):
        found += _matches(name) if _has_wildcard(name) else [name]
    if not found:
        raise DataError(f"No file matches the pattern {pattern!r}.")
    return list(dict.fromkeys(found))  # two names of a pattern may match the same file


def cache_folder() -> Path:
    """Folder of downloads and caches: ``$SSOLE_CACHE``, else ``ssole`` in the platform's cache folder."""
    if given := os.environ.get("SSOLE_CACHE"):
        return Path(os.path.expanduser(given))
    from platformdirs import user_cache_path

    return user_cache_path("ssole", appauthor=False)


def _has_wildcard(text: str) -> bool:
    return "*" in text if is_remote(text) else glob.has_magic(text)


def _matches(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    with data_errors(f"Cannot list {pattern}, so name the files, as in shard-{{000..099}}.tar"):
        fs, path = filesystem(pattern)
        return sorted(fs.unstrip_protocol(file) for file in fs.glob(path))
