"""Files behind a URL, through fsspec."""

from __future__ import annotations

import json
import re
import time
from typing import Any, BinaryIO

from ssole.errors import DataError

_URL = re.compile(r"[A-Za-z][\w+.:-]+://")  # two letters at least: C:// is a drive
_BLOCK = 1 << 18  # bytes fetched at once while seeking through a file
_PAUSES = (0.5, 2.0)  # seconds before a read is tried again: most failures of a network pass
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)  # which no second try mends
# What file systems call a property that changes when a file does.
_VERSIONS = {"etag", "last-modified", "lastmodified", "mtime", "updated", "created", "content-md5", "commit_hash"}


def is_remote(location: str) -> bool:
    """Whether this is a URL such as ``s3://bucket/data.tar``, rather than a path."""
    return _URL.match(location) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; `DataError` where a package for it is missing."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} needs a package that is missing ({error}): pip install 'ssole[remote]'") from error
    except ValueError as error:  # an unknown protocol
        raise DataError(f"Cannot read {url}: {error}") from error
    return fs, path


def read(url: str, start: int, end: int | None) -> bytes:
    """Bytes `start` to `end` of a file; a read that fails is tried three times. Raises what the file system raises."""
    fs, path = filesystem(url)
    limits = {} if start == 0 and end is None else {"start": start, "end": end}
    for pause in (*_PAUSES, None):
        try:
            data: bytes = fs.cat_file(path, **limits)
            return data
        except _FINAL:
            raise
        except Exception:  # fsspec's clients have errors of their own
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def open_binary(url: str) -> BinaryIO:
    """The file, for reading and seeking."""
    fs, path = filesystem(url)
    file: BinaryIO = fs.open(path, "rb", block_size=_BLOCK)
    if not file.seekable():
        raise DataError(f"The server of {url} does not serve parts of a file: download it.")
    return file


def stamp(url: str) -> str:
    """The file's size and whatever else its server tells that changes when the file does."""
    return json.dumps(_state(url))


def version(url: str) -> str | None:
    """As :func:`stamp`, but None where the server tells no more than the size, which a change may leave as it was."""
    state = _state(url)
    return json.dumps(state) if state[1] else None


def _state(url: str) -> tuple[int | None, dict[str, str]]:
    fs, path = filesystem(url)
    info = fs.info(path)
    return info.get("size"), {key: str(info[key]) for key in sorted(info) if key.lower() in _VERSIONS}


def matches(pattern: str) -> list[str]:
    """Sorted URLs of the files that match a pattern with ``*``."""
    fs, path = filesystem(pattern)
    return sorted(fs.unstrip_protocol(file) for file in fs.glob(path))


def files_below(url: str) -> list[str]:
    """Sorted URLs of the files below a folder, whose own ends in no slash; `DataError` where it cannot be listed."""
    fs, path = filesystem(url)
    try:
        return sorted(f"{url}/{file.removeprefix(path).lstrip('/')}" for file in fs.find(path))
    except Exception as error:
        raise DataError(f"Cannot list {url} ({error}). Name the files, as in shard-{{000..099}}.tar.") from error
