"""Files of this machine and files behind a URL, told apart here and nowhere else.

A *location* is either of them, as text.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from ssole.data import remote
from ssole.data.remote import is_remote
from ssole.errors import DataError

CONNECTIONS = 8  # to a server at once while it is asked about many files


def name_of(location: str) -> str:
    """The file's name, without its folder and without a URL's query."""
    return urlsplit(location).path.rpartition("/")[2] if is_remote(location) else Path(location).name


def suffix_of(location: str) -> str:
    """Lower-case suffix with its dot, or an empty text."""
    return os.path.splitext(name_of(location))[1].lower()


def folder_of(location: str) -> str:
    """What the file lies in."""
    return location.partition("?")[0].rpartition("/")[0] if is_remote(location) else str(Path(location).parent)


def relative_to(location: str, folder: str) -> str:
    """A file's path below a folder that holds it, with forward slashes."""
    if is_remote(location):
        return location.partition("?")[0].removeprefix(folder).lstrip("/")
    return Path(location).relative_to(folder).as_posix()


def common_folder(locations: list[str]) -> str:
    """The deepest folder that holds all of these files; `DataError` where there is none."""
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


def read_bytes(location: str, *, where: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes `start` to `end` of a file, or all of them; safe to call from several threads.

    Raises:
        DataError: beginning with `where`, when the file cannot be read or does not hold these bytes.
    """
    try:
        data = remote.read(location, start, end) if is_remote(location) else _read(location, start, end)
    except DataError:
        raise
    except Exception as error:  # here OSError, or ValueError for a NUL in the name; of fsspec's clients any
        raise DataError(f"{where}: cannot read the file ({_reason(error)}).") from error
    if end is not None and len(data) != end - start:
        cause = "its server ignores ranges: download it" if len(data) > end - start else "it was cut short or replaced"
        raise DataError(f"{where}: {name_of(location)} gave {len(data)} bytes in place of {end - start}; {cause}.")
    return data


def open_binary(location: str) -> BinaryIO:
    """A file that can be read and sought in; `DataError` where it cannot be opened."""
    try:
        return remote.open_binary(location) if is_remote(location) else open(location, "rb")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Cannot open {location} ({_reason(error)}).") from error


def stamp(location: str) -> str:
    """A text that changes when the file does: its size and time of change, or what a server keeps in place of that.

    Raises:
        DataError: where there is no such file.
    """
    try:
        if is_remote(location):
            return remote.stamp(location)
        status = os.stat(location)
        return f"{status.st_size} {status.st_mtime_ns}"
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"There is no file {location} ({_reason(error)}).") from error


def place_of(locations: list[str]) -> str:
    """Where these files are, whatever their order: absolute paths and URLs, without queries, which may hold secrets."""
    return "\n".join(sorted(loc.partition("?")[0] if is_remote(loc) else os.path.abspath(loc) for loc in locations))


def versions_digest(urls: list[str]) -> str | None:
    """A hash of what the server tells of these files that changes when one does; None where it tells too little."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            versions = list(pool.map(remote.version, urls))
        except Exception:  # noqa: BLE001 - fsspec's clients have errors of their own; reading the files will tell
            return None
    known = [version for version in versions if version is not None]
    return hashlib.sha256("\n".join(known).encode()).hexdigest() if len(known) == len(urls) else None


def _read(path: str, start: int, end: int | None) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(end - start)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def cache_folder() -> Path:
    """Where downloads and built data are kept: ``$SSOLE_CACHE``, else ``ssole`` in the platform's cache folder."""
    if given := os.environ.get("SSOLE_CACHE"):
        return Path(given).expanduser()
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ssole"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssole"
