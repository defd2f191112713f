"""Servers that are slow, silent, endless or lead elsewhere."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_files import png

from ssole.data import remote
from ssole.data.describe import describe
from ssole.data.folder import ListSource
from ssole.data.objects import ObjectSource
from ssole.data.remote import is_inside, timeout
from ssole.data.sources import open_source
from ssole.data.storage import read_bytes
from ssole.errors import DataError


class Server(http.server.ThreadingHTTPServer):
    """Server whose answers depend on the path."""

    block_on_close, daemon_threads = False, True
    asked: list[str]
    elsewhere = ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 40))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/set/list.txt":
            self.whole(b"good.png\nendless.png\ninner.png\nouter.png\nup.png\nother.png\n")
        elif path.endswith("endless.tar"):
            self.endless(pause=0.0, status=206)
        elif path.endswith(("endless.png", "slow.png")):
            self.endless(pause=0.05 if "slow" in path else 0.0)
        elif path.endswith("silent.png"):
            time.sleep(5)
        elif path.endswith("inner.png"):
            self.lead("good.png")
        elif path.endswith("outer.png"):
            self.lead("/secret.png")
        elif path.endswith("up.png"):
            self.lead("%2e%2e/secret.png")
        elif path.endswith("other.png"):
            self.lead(f"{self.server.elsewhere}/set/good.png")
        else:
            self.whole(png(7))

    def whole(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def lead(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def endless(self, pause: float, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        block = b"x" * (10 if pause else 1 << 16)
        while True:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            time.sleep(pause)


def serving() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(name="server")
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(remote, "_warned", set())
    yield from serving()


other_server = pytest.fixture(name="other")(serving)


def test_redirects_of_a_list_stay_in_its_folder(server: Server, other: Server) -> None:
    server.elsewhere = other.url
    source = ListSource(f"{server.url}/set/list.txt")
    assert source.read(0) == source.read(2) == png(7)
    for i, target in ((3, f"{server.url}/secret.png"), (4, "/secret.png"), (5, f"{other.url}/set/good.png")):
        with pytest.raises(DataError, match=f"^{source.id(i)}: .*redirects it to .*{target}, which is outside of") as e:
            source.read(i)
        assert server.url in str(e.value)
    assert not [path for path in server.asked if "secret" in path]
    assert other.asked == []


def test_redirects_of_what_the_user_names_are_followed(server: Server) -> None:
    assert read_bytes(f"{server.url}/set/outer.png", where="it") == png(7)


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://a.org/set/1.png", True),
        ("http://a.org/set/deep/1.png?x=1", True),
        ("http://a.org:80/set/1.png", False),
        ("https://a.org/set/1.png", False),
        ("http://a.org/settle/1.png", False),
        ("http://a.org/set", False),
        ("http://a.org/set/../1.png", False),
        ("http://a.org/set/%2e%2e/1.png", False),
        ("http://b.org/set/1.png", False),
        ("http://a.org@b.org/set/1.png", False),
    ],
)
def test_what_is_inside(url: str, inside: bool) -> None:
    assert is_inside(url, "http://a.org/set") is inside


def test_an_endless_body_is_read_up_to_the_limit(server: Server) -> None:
    with pytest.raises(DataError, match=r"^it: the file has more than 1\.0 MiB, and is not read"):
        read_bytes(f"{server.url}/endless.png", where="it", most=1 << 20)
    with pytest.raises(DataError, match=r"gave \d+ bytes in place of 100; its server ignores ranges"):
        read_bytes(f"{server.url}/endless.png", where="it", start=0, end=100)


def test_an_endless_part_of_an_archive_is_read_up_to_what_was_asked_for(server: Server) -> None:
    with pytest.raises(DataError, match=r"asked for a range of \d+ bytes, its server gave \d+: download it"):
        open_source(f"{server.url}/endless.tar")


def test_a_silent_server_is_told_and_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSOLE_TIMEOUT", "0.2")
    begin = time.monotonic()
    with (
        pytest.warns(UserWarning, match=r"^127\.0\.0\.1:\d+ does not answer: nothing came for 0\.2 s") as told,
        pytest.raises(DataError, match=r"^it: cannot read the file \(nothing came for 0\.2 s; SSOLE_TIMEOUT"),
    ):
        read_bytes(f"{server.url}/silent.png?signature=abc", where="it")
    assert len(told) == 1  # of three tries
    assert time.monotonic() - begin < 4


def test_a_server_that_drips_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSOLE_TIMEOUT", "0.3")
    with (
        pytest.warns(UserWarning, match="less than 10000 bytes per second"),
        pytest.raises(DataError, match="less than 10000 bytes per second"),
    ):
        read_bytes(f"{server.url}/slow.png", where="it")


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_no_number_of_seconds(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SSOLE_TIMEOUT", given)
    with pytest.raises(DataError, match=f"SSOLE_TIMEOUT is how many seconds to wait .*'{given}'"):
        timeout()


def test_local_files_have_the_same_limit(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"the file has more than 1\.0 MiB"):
        read_bytes(str(tmp_path / "sparse.png"), where="it", most=1 << 20)
    with pytest.raises(DataError, match=r"it has 1\.0 GiB, and at most 1\.0 MiB are read"):
        read_bytes(str(tmp_path / "sparse.png"), where="it", start=5, end=(1 << 30) + 5, most=1 << 20)


def test_passwords_and_queries_are_in_no_id_message_or_description(server: Server) -> None:
    secret = server.url.replace("http://", "http://me:password@")
    urls = [f"{secret}/set/{name}.png?signature=abc" for name in ("good", "fine")]
    source = ObjectSource(urls)
    plain = server.url.replace("http://", "http://REMOVED@")
    assert [source.id(i) for i in range(2)] == [f"{plain}/set/{n}.png?REMOVED" for n in ("good", "fine")]
    assert source.read(0) == png(7)  # and the real URL was read
    assert "/set/good.png?signature=abc" in server.asked
    assert describe(urls) == tuple(source.id(i) for i in range(2))
    assert describe(f"{secret}/a.tar?signature=abc") == f"{plain}/a.tar?REMOVED"
    with pytest.raises(DataError) as error:
        open_source(f"{secret}/silent?signature=abc&key=xyz")
    assert "password" not in str(error.value)
    assert "signature" not in str(error.value)


def test_urls_that_differ_in_their_queries_have_different_ids(server: Server) -> None:
    source = ObjectSource([f"{server.url}/image.png?number={i}" for i in range(2)])
    assert [source.id(i) for i in range(2)] == [f"{server.url}/image.png?REMOVED:{i}" for i in range(2)]
