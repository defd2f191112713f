"""Reading of files behind URLs through fsspec, with limits on size, time and redirects: servers may be untrusted."""

from __future__ import annotations

import asyncio
import os
import posixpath
import time
import warnings
from functools import lru_cache, partial
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ssole.errors import DataError, without_secrets
from ssole.files import require_regular

_TIMEOUT = 30.0  # seconds; the default of SSOLE_TIMEOUT
_MIN_RATE = 10_000  # bytes per second; a server that drips could keep a run waiting for ever
_BLOCK = 1 << 18  # bytes fetched at once while seeking through a file
_PAUSES = (0.5, 2.0)  # seconds before a read is tried again: most failures of a network pass
# Errors after which a second try would not help.
_FINAL = (DataError, FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
_warned: set[str] = set()  # silent servers that a warning has named


def timeout() -> float:
    """Seconds to wait for a server: the environment variable ``SSOLE_TIMEOUT``, or 30.

    Raises:
        DataError: it is no positive number.
    """
    given = os.environ.get("SSOLE_TIMEOUT") or _TIMEOUT
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise DataError(f"SSOLE_TIMEOUT is how many seconds to wait for a server, such as 30; got {given!r}.")
    return seconds


def filesystem(url: str, *, inside: str | None = None) -> tuple[Any, str]:
    """File system of fsspec for a URL, and the path in it; `DataError` if a package for it is missing.

    `inside` is a folder (a URL) that redirects of a web server may not leave.
    """
    import fsspec

    try:
        protocol = url.partition("://")[0]
        options = _http_options(protocol, timeout(), inside) if protocol in ("http", "https") else {}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise DataError(f"{url} needs a package that is missing ({error}): pip install 'ssole[remote]'") from error
    except (ValueError, OSError) as error:  # an unknown protocol, or a server that is asked at once (FTP)
        raise DataError(f"Cannot read {url}: {error}") from error
    if "file" in fs.protocol and os.path.exists(path):
        require_regular(path)
    return fs, path


def read_remote(url: str, start: int, end: int | None, most: int, *, inside: str | None = None) -> bytes:
    """Bytes `start` to `end` of a file, or all, in up to three tries; of a web server, no more than `most` + 1 bytes.

    `inside` is that of :func:`filesystem`. Errors are those of the file system.
    """
    fs, path = filesystem(url, inside=inside)
    if "http" in fs.protocol:
        read = partial(_read_http, fs, path, start, end, most)
    else:
        read = partial(fs.cat_file, path, **({} if start == 0 and end is None else {"start": start, "end": end}))
    for pause in _PAUSES:
        try:
            return read()
        except _FINAL:
            raise
        except Exception as error:  # noqa: BLE001 - fsspec's clients have errors of their own
            _warn_of_silence(url, error)
            time.sleep(pause)
    return read()


def open_remote(url: str) -> BinaryIO:
    """Remote file that is open for reading and seeking; `DataError` if its server does not serve parts of files."""
    fs, path = filesystem(url)
    file: BinaryIO = fs.open(path, "rb", block_size=_BLOCK)
    if not file.seekable():
        raise DataError(f"The server of {url} does not support range requests: download the file.")
    return _http_file(fs, path, file.seek(0, os.SEEK_END)) if "http" in fs.protocol else file


def _http_file(fs: Any, path: str, size: int) -> BinaryIO:
    """Seekable file on a web server, read ahead by one block; an answer of another length is an error."""
    from fsspec.spec import AbstractBufferedFile

    class HttpFile(AbstractBufferedFile):  # type: ignore[misc]
        def _fetch_range(self, start: int, end: int) -> bytes:
            data = _read_http(fs, path, start, end, end - start)
            if len(data) != end - start:
                raise OSError(f"asked for a range of {end - start} bytes, its server gave {len(data)}: download it")
            return data

    file: BinaryIO = HttpFile(fs, path, block_size=_BLOCK, size=size)
    return file


def _warn_of_silence(url: str, error: Exception) -> None:
    """Warn of a server that does not answer in time, once for each."""
    server = urlsplit(without_secrets(url)).netloc
    if isinstance(error, (TimeoutError, ConnectionAbortedError)) and server not in _warned:
        _warned.add(server)
        warnings.warn(f"{server} does not answer: {error}. It is tried up to three times", stacklevel=2)


@lru_cache
def _http_options(protocol: str, seconds: float, inside: str | None) -> dict[str, Any]:
    """Options of fsspec's HTTP file system. Equal options give the same file system, and so the same connections."""
    import fsspec
    from fsspec.implementations.http import aiohttp

    traces = []
    if inside is not None:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_redirect_guard(inside))
        traces = [trace]
    limits = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
    own = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})  # of the user, such as a proxy
    return {"client_kwargs": {**own, "timeout": limits, "trace_configs": traces}}


def _redirect_guard(folder: str) -> Any:
    """Callback of aiohttp that raises a PermissionError for a redirect to a URL outside of a folder."""

    async def guard(session: Any, context: Any, request: Any) -> None:
        location = request.response.headers.get("Location") or request.response.headers.get("URI") or ""
        target = str(request.url.join(type(request.url)(location)))
        if not is_inside(target, folder):
            raise PermissionError(f"its server redirects it to {target}, which is outside of {folder}")

    return guard


def is_inside(url: str, folder: str) -> bool:
    """Whether a URL lies below a folder of the same server, percent codes and ``..`` resolved."""
    one, root = urlsplit(url), urlsplit(folder)
    path = posixpath.normpath(unquote(one.path) or "/")
    top = posixpath.normpath(unquote(root.path) or "/").rstrip("/") + "/"
    return (one.scheme, one.hostname, one.port) == (root.scheme, root.hostname, root.port) and path.startswith(top)


def _read_http(fs: Any, url: str, start: int, end: int | None, most: int) -> bytes:
    """Bytes of a file on a web server, read piece by piece, because a body may be endless."""
    from fsspec.asyn import sync

    options = dict(fs.kwargs)
    if start or end is not None:
        last = "" if end is None else end - 1
        options["headers"] = {**options.get("headers", {}), "Range": f"bytes={start}-{last}"}
    seconds = timeout()

    async def fetch() -> bytes:
        data, begin = bytearray(), time.monotonic()
        session = await fs.set_session()
        async with session.get(fs.encode_url(url), **options) as response:
            if response.status == 404:
                raise FileNotFoundError(url)
            response.raise_for_status()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > most:
                    break
                if time.monotonic() - begin > seconds + len(data) / _MIN_RATE:
                    raise ConnectionAbortedError(f"it sends less than {_MIN_RATE} bytes per second")
        return bytes(data[: most + 1])

    try:
        result: bytes = sync(fs.loop, fetch)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise TimeoutError(f"nothing came for {seconds:g} s; SSOLE_TIMEOUT sets another time") from error
    return result
