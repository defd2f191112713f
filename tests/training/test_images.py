"""Other images under the same names are noticed, and allowed when the user says so."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import tiny
from ssole import api
from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.data.base import Source, SubsetSource
from ssole.data.folder import FolderSource
from ssole.errors import DataError
from ssole.training.images import keep_or_compare_images
from ssole.training.run import Run, create_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", tiny.config())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tiny.write_folder(tmp_path / "photos")


def same_size_and_time(photos: Path) -> None:
    """Every picture has one other byte, and the time of change that it had."""
    for path in photos.rglob("*.png"):
        status, data = path.stat(), bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def one_of_many(photos: Path) -> None:
    path = sorted(photos.rglob("*.png"))[3]
    path.write_bytes(path.read_bytes() + b"more")


def touched(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        os.utime(path, (0, 0))


CHANGES = {
    same_size_and_time: "22 of 22 images that were compared have other contents now, such as cat/000.png",
    one_of_many: "1 of 22 images",
    touched: "sizes or times of change of the files are others than at the start",
}


def test_other_pixels_in_a_part_of_an_array_are_noticed(run: Run) -> None:
    part = np.arange(5)
    keep_or_compare_images(run, SubsetSource(ArraySource(tiny.images()), part))
    with pytest.raises(DataError, match="5 of 5 images that were compared have other contents"):
        keep_or_compare_images(run, SubsetSource(ArraySource(255 - tiny.images()), part))


@pytest.mark.parametrize("change", CHANGES)
def test_replaced_files_are_refused_until_allowed(run: Run, photos: Path, change: Callable[[Path], None]) -> None:
    keep_or_compare_images(run, FolderSource(photos))
    keep_or_compare_images(run, FolderSource(photos))
    change(photos)
    with pytest.raises(DataError, match=f"{CHANGES[change]}.*--allow-changes images"):
        keep_or_compare_images(run, FolderSource(photos))
    with pytest.warns(UserWarning, match=f"{CHANGES[change]}.*the run goes on with them"):
        keep_or_compare_images(run, FolderSource(photos), allowed=True)
    keep_or_compare_images(run, FolderSource(photos))  # allowed once and for all


def test_a_single_file_of_the_same_size_and_time_is_noticed_and_a_copy_of_all_is_let_be(
    run: Run, tmp_path: Path
) -> None:
    photos = tiny.write_folder(tmp_path / "many", 70)
    time.sleep(0.05)  # clocks of file systems are coarse
    keep_or_compare_images(run, FolderSource(photos))
    path = sorted(photos.rglob("*.png"))[1]
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"1 of 70 files were replaced .*cat/002\.png, though .*--allow-changes images"):
        keep_or_compare_images(run, FolderSource(photos))
    for path in photos.rglob("*.png"):
        path.chmod(0o600)
    keep_or_compare_images(run, FolderSource(photos))


def test_a_changed_array_is_refused(run: Run) -> None:
    keep_or_compare_images(run, ArraySource(tiny.images()))
    keep_or_compare_images(run, ArraySource(tiny.images()))
    with pytest.raises(DataError, match="22 of 22 images"):
        keep_or_compare_images(run, ArraySource(255 - tiny.images()))


class Objects(Source):
    name = "objects"

    def __len__(self) -> int:
        return 5

    def id(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> bytes:
        raise AssertionError("reading may be slow, and give another image each time")


def test_objects_are_known_by_their_ids_alone(run: Run) -> None:
    keep_or_compare_images(run, Objects())
    keep_or_compare_images(run, Objects())


def test_an_image_that_could_not_be_read_is_not_compared(run: Run, photos: Path) -> None:
    first = sorted(photos.rglob("*.png"))[0]
    data = first.read_bytes()
    first.unlink()
    first.symlink_to("nowhere")
    keep_or_compare_images(run, FolderSource(photos))
    written = json.loads((run.path / "images.json").read_text())
    assert len(written["contents"]) == 21
    first.unlink()
    first.write_bytes(data)
    with pytest.raises(DataError, match="though 21 images that were compared are the same"):
        keep_or_compare_images(run, FolderSource(photos))


def test_a_record_of_the_first_version_still_compares_names(run: Run, photos: Path) -> None:
    source = FolderSource(photos)
    (run.path / "images.json").write_text(json.dumps({"images": len(source), "ids": source.ids_fingerprint}))
    keep_or_compare_images(run, source)
    (run.path / "images.json").write_text(json.dumps({"images": len(source), "ids": "others"}))
    with pytest.raises(DataError, match="by other names"):
        keep_or_compare_images(run, source)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"images": "22"}', "[" * 10**5])
def test_a_damaged_record_is_named(run: Run, photos: Path, text: str) -> None:
    (run.path / "images.json").write_text(text)
    with pytest.raises(ConfigError, match=r"images\.json"):
        keep_or_compare_images(run, FolderSource(photos))


def test_a_run_on_replaced_pictures_goes_on_when_allowed(tmp_path: Path, photos: Path) -> None:
    whole = tiny.start(tmp_path / "whole", data=str(photos))
    expected = whole.backbone_path.read_bytes()
    whole.backbone_path.unlink()
    touched(photos)
    with pytest.raises(DataError, match="times of change"):
        api.resume(whole, progress=False)
    with pytest.warns(UserWarning, match="goes on with them"):
        api.resume(whole, progress=False, allow_changes=["images"])
    assert whole.backbone_path.read_bytes() == expected


def test_a_run_killed_before_it_wrote_the_record_writes_it_when_it_goes_on(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(tiny.Crash):
        tiny.start(tmp_path / "run", data=str(photos), evaluators={1: tiny.crash})
    (tmp_path / "run" / "images.json").unlink()
    with pytest.raises(tiny.Crash):
        tiny.resume(tmp_path / "run", data=str(photos), evaluators={1: tiny.crash})
    one_of_many(photos)
    with pytest.raises(DataError, match=CHANGES[one_of_many]):
        api.resume(tmp_path / "run", progress=False)


def test_a_file_that_was_added_or_removed_is_told(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(tiny.Crash):
        tiny.start(tmp_path / "run", data=str(photos), evaluators={7: tiny.crash})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    new, last = photos / "cat" / "new.png", sorted(photos.rglob("*.png"))[-1]
    new.write_bytes(last.read_bytes())
    with pytest.raises(DataError, match="started on 22 images and the data now hold 23"):
        api.resume(tmp_path / "run", progress=False)
    new.unlink()
    last.rename(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="started on 22 images and the data now hold 21"):
        api.resume(tmp_path / "run", progress=False)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    new.write_bytes((tmp_path / "elsewhere.png").read_bytes())
    with pytest.raises(DataError, match=r"as many images \(22\) by other names"):
        api.resume(tmp_path / "run", progress=False)


def test_a_signed_url_leaves_no_trace_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", tiny.images())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://me:password@127.0.0.1:{server.server_port}/images.npy?signature=abc"
        monkeypatch.setattr(sys, "argv", ["ssole", "pretrain", "--data", url])
        run = tiny.start(tmp_path / "run", data=url)
        run.backbone_path.unlink()
        with pytest.raises(DataError, match=r"trained on images behind a URL, .*pass --data, or ssole\.resume"):
            api.resume(run, progress=False)
        assert api.resume(run, data=url.replace("abc", "of another day"), progress=False).finished
        server.shutdown()
    for path in run.path.rglob("*"):
        if path.is_file():
            assert b"password" not in path.read_bytes(), path
            assert b"signature" not in path.read_bytes(), path
    assert f"http://REMOVED@127.0.0.1:{server.server_port}/images.npy?REMOVED" == run.config.data
