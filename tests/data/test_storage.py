"""Data behind URLs: a local HTTP server that serves ranges, and fsspec's file system in memory. Patterns."""

from __future__ import annotations

import functools
import http.server
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import ids, png, special_files, tar, value

from ssole.data import remote, storage
from ssole.data import tars as tar_index
from ssole.data.sources import open_source
from ssole.data.storage import open_binary, read_bytes
from ssole.errors import DataError


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what it sends, and fails or ignores ranges when told to."""

    block_on_close = False  # connections are kept alive by the client
    ranges = True
    tags = True
    failures = 0
    sent = 0

    def handle_error(self, request, client_address):
        """A client that leaves early is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if body and self.server.failures > 0:
            self.server.failures -= 1
            return self.send_error(503)
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            return super().do_GET()
        if not path.is_file():
            return self.send_error(404)
        data, status = path.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.size = len(data)
        if asked and self.server.ranges:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{self.size}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if self.server.tags:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)
        return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    return tmp_path / "served"


def shards(folder: Path, count: int = 3, filler: int = 0) -> None:
    for i in range(count):
        members = {f"{10 * i + k:03}.png": png(10 * i + k) for k in range(2)} | {"big.bin": bytes(filler)}
        tar(folder / f"shard-{i}.tar", {**members, f"{10 * i:03}.cls": str(i).encode(), "last.png": png(i)})


def test_tar_shards(server, served, monkeypatch):
    shards(served)
    source = open_source(f"{server.url}/shard-{{0..2}}.tar")
    members = [(i, name) for i in range(3) for name in (f"{10 * i:03}", f"{10 * i + 1:03}", "last")]
    assert ids(source) == [f"shard-{i}.tar:{name}.png" for i, name in members]
    assert [value(source, i) for i in (7, 0, 3)] == [21, 0, 10]
    assert source.labels.tolist() == [0, -1, -1, 1, -1, -1, 2, -1, -1]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: value(source, i), [0, 1, 3, 4, 6, 7] * 10)) == [0, 1, 10, 11, 20, 21] * 10
    monkeypatch.setattr(tar_index, "build_index", None)  # from the cache folder now
    assert ids(open_source(f"{server.url}/shard-{{0..2}}.tar")) == ids(source)
    shards(served, count=1, filler=10)
    with pytest.raises(TypeError):
        open_source(f"{server.url}/shard-0.tar")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_fingerprint_and_location(server, served, kind):
    """The first changes with the ETags, and is None without them. The other holds no secrets of a query."""
    shards(served, count=2)
    for i in range(2):
        pq.write_table(pa.table({"image": [png(i)]}), served / f"shard-{i}.parquet")
    urls = [f"{server.url}/shard-{i}.{kind}" for i in (1, 0)]
    source = open_source([f"{url}?token=1" for url in urls])
    assert source.identity == "\n".join(sorted(urls))
    before = source.fingerprint()
    assert isinstance(before, str)
    assert open_source([f"{url}?token=1" for url in urls]).fingerprint() == before
    os.utime(served / f"shard-1.{kind}", ns=(0, 0))
    fsspec.filesystem("http").invalidate_cache()
    assert source.fingerprint() not in (None, before)
    server.tags = False
    assert source.fingerprint() is None
    server.tags = True
    (served / f"shard-1.{kind}").unlink()
    assert source.fingerprint() is None


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"Cannot read ftp://127\.0\.0\.1:1/x\.tar: .*refused"):
        open_source("ftp://127.0.0.1:1/x.tar")
    with pytest.raises(DataError, match=r"Cannot list http://127\.0\.0\.1:1/\*\.tar, .*\(Connect call failed"):
        open_source("http://127.0.0.1:1/*.tar")
    with pytest.raises(DataError, match=r"Cannot list https://\[x, .*Invalid"):
        open_source("https://[x")


def test_any_error_of_a_client_is_a_data_error(server, served, monkeypatch):
    """Such as aiohttp's, which are no OSError."""
    pq.write_table(pa.table({"image": [png(1)]}), served / "x.parquet")

    class ClientError(Exception):
        pass

    class File(io.BytesIO):
        left = 1

        def read(self, *arguments):
            self.left -= 1
            if self.left < 0:
                raise ClientError("503, try later")
            return super().read(*arguments)

    data = (served / "x.parquet").read_bytes()
    for reads in range(6):
        monkeypatch.setattr(File, "left", reads)
        monkeypatch.setattr("ssole.data.parquet.open_binary", lambda path: File(data))
        try:
            open_source(f"{server.url}/x.parquet")
        except DataError as error:
            assert "503, try later" in str(error)  # noqa: PT017 - how many reads are enough is up to Arrow
        else:
            assert reads > 0
            break


def test_only_what_is_needed_is_fetched(server, served):
    """A tar of 8 MB, of which the images take a few hundred bytes."""
    shards(served, count=1, filler=8_000_000)
    source = open_source(f"{server.url}/shard-0.tar")
    assert server.sent < 2_000_000
    before = server.sent
    assert value(source, 1) == 1
    assert server.sent - before == len(png(1))


def test_a_failing_read_is_tried_again(server, served):
    shards(served)
    source = open_source(f"{server.url}/shard-0.tar")
    server.failures = 2
    assert value(source, 1) == 1
    server.failures = 3
    with pytest.raises(DataError, match=r"^shard-0\.tar:001\.png: cannot read the file \((?s:.*)503"):
        source.read(1)
    (served / "shard-0.tar").unlink()
    server.failures = 0
    with pytest.raises(DataError, match=r"^shard-0\.tar:001\.png: cannot read the file"):
        source.read(1)


def test_an_archive_on_a_server_without_ranges(server, served):
    np.savez(served / "x.npz", images=np.zeros((3, 4, 4), np.uint8))
    assert len(open_source(f"{server.url}/x.npz")) == 3
    server.ranges = False
    with pytest.raises(DataError, match=r"x\.npz .*download it"):
        open_source(f"{server.url}/x.npz")


def test_a_server_without_ranges(server, served):
    shards(served)
    source = open_source(f"{server.url}/shard-0.tar")
    server.ranges = False
    with pytest.raises(DataError, match=r"gave \d+ bytes in place of \d+; its server ignores ranges"):
        source.read(1)
    shards(served, count=2, filler=1_000_000)
    with pytest.raises(DataError, match=r"Cannot read .*shard-1\.tar \(.*range"):
        open_source(f"{server.url}/shard-1.tar")


def test_lists(server, served):
    for number, name in enumerate(("a.png", "b c/d%20e.png")):
        (served / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (served / "set" / name).write_bytes(png(number))
    whole = f"{server.url}/set/b%20c/d%2520e.png"  # a URL is quoted, and a path is not
    rows = ["path,label", "a.png,3", "b c/d%20e.png,4", f"{server.url}/set/a.png,5", "gone.png,6", f"{whole},7"]
    (served / "set" / "list.csv").write_text("\n".join(rows))
    source = open_source(f"{server.url}/set/list.csv?token=1")
    assert ids(source) == ["a.png", "b c/d%20e.png", "a.png", "gone.png", "b c/d%20e.png"]
    assert [value(source, i) for i in (0, 1, 2, 4)] == [0, 1, 0, 1]
    assert source.labels.tolist() == [3, 4, 5, 6, 7]
    with pytest.raises(DataError, match=r"^gone\.png: cannot read the file"):
        source.read(3)


@pytest.mark.parametrize(
    "entry",
    [
        "../a.png",
        "/a.png",
        "http://elsewhere.org/a.png",
        "x/../../a.png",
        "file:///etc/passwd",
        "HERE/set/%2e%2e/a.png",
        "HERE/set/x%2f..%2f../a.png",
    ],
)
def test_a_list_reads_nothing_elsewhere(server, served, entry):
    (served / "set").mkdir(parents=True)
    (served / "set" / "list.txt").write_text(entry.replace("HERE", server.url))
    with pytest.raises(DataError, match=r"list\.txt names .* outside of http"):
        open_source(f"{server.url}/set/list.txt")


def test_parquet_and_numpy(server, served):
    images = pa.array([png(1), png(2)], pa.binary())
    pq.write_table(pa.table({"image": images, "label": pa.array([5, 6])}), served / "x.parquet")
    source = open_source(f"{server.url}/x.parquet")
    assert ids(source) == ["x.parquet:0", "x.parquet:1"]
    assert value(source, 1) == 2
    assert source.labels.tolist() == [5, 6]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    np.save(served / "x.npy", pixels)
    np.savez(served / "x.npz", x=pixels, y=np.array([1, 2, 3]))
    assert np.array_equal(open_source(f"{server.url}/x.npy").read(2), pixels[2])
    assert np.array_equal(open_source(f"{server.url}/x.npz").read(2), pixels[2])


def test_what_a_server_does_not_have(server, served):
    for name in ("x.tar", "x.parquet", "x.txt", "x.npy", "shard-{0..1}.tar"):
        with pytest.raises(DataError, match=r"127\.0\.0\.1"):
            open_source(f"{server.url}/{name}")
    (served / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"no \.parquet or \.tar files below http"):
        open_source(f"{server.url}/")


def test_folders_and_patterns_in_memory(served):
    """The file system in memory lists as those of clouds do."""
    memory = fsspec.filesystem("memory")
    shards(served)
    for i in range(3):
        memory.pipe(f"/bucket/{'test' if i == 2 else 'train'}/shard-{i}.tar", (served / f"shard-{i}.tar").read_bytes())
    memory.pipe("/bucket/train/shard-0.tar.idx", b"of another program")
    try:
        for spec in ("memory://bucket", "memory://bucket/*/*.tar"):
            source = open_source(spec)
            assert [source.id(0), source.id(3)] == ["train/shard-0.tar:000.png", "train/shard-1.tar:010.png"]
            assert [value(source, i) for i in (1, 4)] == [1, 11]
            assert open_source(spec, split="test").id(0) == "test/shard-2.tar:020.png"
        with pytest.raises(DataError, match="No file matches"):
            open_source("memory://bucket/*.zip")
    finally:
        memory.rm("/bucket", recursive=True)


def test_tables_of_captions_beside_shards_behind_a_url(served, tmp_path):
    memory = fsspec.filesystem("memory")
    shards(served)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "0.parquet")
    memory.pipe("/captions/0.tar", (served / "shard-0.tar").read_bytes())
    memory.pipe("/captions/0.parquet", (tmp_path / "0.parquet").read_bytes())
    try:
        assert open_source("memory://captions").id(0) == "0.tar:000.png"
    finally:
        memory.rm("/captions", recursive=True)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://bucket/x\.tar needs a package.*pip install 'ssole\[remote\]'"):
        open_source("s3://bucket/x.tar")
    with pytest.raises(DataError, match=r"Cannot read nonsense://x\.tar: Protocol not known"):
        open_source("nonsense://x.tar")


def test_special_files_behind_a_url(tmp_path):
    for file in special_files(tmp_path, ".txt"):
        for read in (read_bytes, lambda url, where: open_binary(url)):
            with pytest.raises(DataError, match="not a regular file"):
                read(f"file://{file}", where="x")


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a,b{1,2},a}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("s3://b/{a,c}.tar?x=1", ["s3://b/a.tar?x=1", "s3://b/c.tar?x=1"]),
        ("~/{a,b}.tar", [os.path.expanduser("~/a.tar"), os.path.expanduser("~/b.tar")]),
    ],
)
def test_braces(pattern, files):
    assert storage.has_pattern(pattern)
    assert storage.expand(pattern) == files


def test_a_file_that_two_names_of_a_pattern_match_is_there_once(tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).touch()
    assert storage.expand(f"{tmp_path}/{{b,*}}.tar") == [str(tmp_path / name) for name in ("b.tar", "a.tar")]


@pytest.mark.parametrize("text", ["photos", "photos{1}", "{}", "s3://b/x.tar?a=1", "s3://b/[1].tar"])
def test_what_is_no_pattern(text):
    assert not storage.has_pattern(text)


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", "~/mine")
    assert storage.cache_folder() == Path("~/mine").expanduser()
    monkeypatch.delenv("SSOLE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / "ssole"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert storage.cache_folder() == Path("~/.cache/ssole").expanduser()
