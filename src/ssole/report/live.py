"""Live report: the page of runs that are still training, served to the browsers of this machine.

The server listens on 127.0.0.1 only. Every request needs the token in the printed address, so that other users of the
machine cannot read the page. A request to another host name is refused, against web pages whose name was made to lead
to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import dataclasses
import html
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.report.page import Facts, render
from ssole.report.record import Record
from ssole.report.report import IMAGES, check_request, facts_of, read_records
from ssole.runtime import resolve_device

ADDRESS = "127.0.0.1"
_HOSTS = {ADDRESS, "localhost"}
_WATCHED = ("metrics.jsonl", "evaluation.json", "backbone.safetensors", "unreadable.jsonl")  # in each run folder


def serve(
    run: str | PathLike[str] | Any | Sequence[Any],
    announce: Callable[[str], object],
    *,
    port: int = 0,
    every: float = 10.0,
    data: Spec | None = None,
    images: int = IMAGES,
    columns: str | PathLike[str] | None = None,
    device: torch.device | str = "auto",
) -> None:
    """Serve the page of one run or several until Ctrl-C, and keep it up to date.

    Args:
        run, data, images, columns, device: as for :func:`ssole.report`.
        announce: function that is given the address once the server listens.
        port: port to listen on; 0 for any that is free.
        every: seconds after which the browser looks for news.

    Raises:
        ConfigError: as :func:`ssole.report`, or the port is taken.
    """
    if not 0.1 <= every <= 3600:
        raise ConfigError(f"the browser may look for news every 0.1 to 3600 seconds, got {every}")
    table = check_request(images, columns, data)
    make = partial(facts_of, data=data, columns=table, limit=images, device=resolve_device(device), progress=False)
    page = LivePage([record.path for record in read_records(run)], make, every)
    try:
        server = LiveServer(page, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on port {port} of {ADDRESS} ({error}): choose another, or 0") from None
    with server:
        announce(server.url)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            return


class LivePage:
    """Page of runs, made anew when their folders have changed.

    Features of the images of a finished run take the longest, and are computed once for its weights.

    Args:
        paths: run folders.
        make: function from the record of a run to the facts that the page shows.
        every: seconds after which the browser looks for news.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[Record], Facts], every: float) -> None:
        self._paths, self._make, self._every = paths, make, every
        self._lock = threading.Lock()
        self._made = ("", "")
        self._facts: dict[Path, tuple[str, Facts]] = {}

    def version(self) -> str:
        """Text that changes with the files that the page shows."""
        return " ".join(_state(path / name) for path in self._paths for name in _WATCHED)

    def html(self) -> str:
        """The page."""
        with self._lock:  # the windows of several browsers share one page
            version = self.version()
            if self._made[0] != version:
                # Before the records are read: weights that are written meanwhile are shown by the next page.
                weights = [_state(path / "backbone.safetensors") for path in self._paths]
                facts = list(map(self._facts_of, read_records(self._paths), weights))
                self._made = version, render(facts, live={"version": version, "every": self._every})
            return self._made[1]

    def _facts_of(self, record: Record, weights: str) -> Facts:
        if record.path not in self._facts or self._facts[record.path][0] != weights:
            self._facts[record.path] = weights, self._make(record)
        return dataclasses.replace(self._facts[record.path][1], record=record)


def _state(path: Path) -> str:
    """Text that changes with a file."""
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_mtime_ns}.{status.st_size}"


class LiveServer(ThreadingHTTPServer):
    """Server of a page on 127.0.0.1. Every request must have its secret `token` in the address."""

    daemon_threads = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page, self.token = page, secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page, with the token."""
        return f"http://{ADDRESS}:{self.server_address[1]}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the error, unless the browser went away before it had its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers to one request."""

    server: LiveServer
    server_version, sys_version = "ssole", ""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        token = parse_qs(address.query).get("token", [""])[0]
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or host not in _HOSTS:
            self._answer(HTTPStatus.FORBIDDEN, "403: open the address that ssole report --live printed, with its token")
        elif address.path == "/version":
            self._answer(HTTPStatus.OK, self.server.page.version())
        elif address.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "404: there is nothing else here")
        else:
            try:
                status, text = HTTPStatus.OK, self.server.page.html()
            except (ValueError, OSError) as error:  # a damaged file in a run folder; once repaired, the page is back
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                text = f"<!doctype html><meta http-equiv=refresh content=10><p>error: {html.escape(str(error))}"
            self._answer(status, text, kind="text/html")

    def _answer(self, status: HTTPStatus, text: str, *, kind: str = "text/plain") -> None:
        body = text.encode("utf-8", "backslashreplace")  # file names need not be valid text
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",  # the address holds the token
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print no line for a request: it would hold the token."""
