"""Search by folder: an index, a run with and without one, and neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ssole
import tiny
from ssole.search.index import Index
from ssole.search.search import open_index
from ssole.training.run import Run


def test_an_index_or_its_folder(index: Index, photos: Path) -> None:
    one = photos / "dog" / "001.png"
    assert ssole.search(index, one, 3).ids == ssole.search(index.path, one, 3).ids == index.search(one, 3).ids


def test_a_run_is_indexed_once(run: Run, photos: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    found = ssole.search(copy, photos / "dog" / "001.png", 3, progress=False)
    assert found.ids[0] == "dog/001.png"
    written = (copy.path / "index" / "features.npy").stat().st_mtime_ns
    assert ssole.search(copy.path, photos / "dog" / "001.png", 3).ids == found.ids
    assert (copy.path / "index" / "features.npy").stat().st_mtime_ns == written


def test_the_index_of_another_model_in_a_run_folder(run: Run, index: Index, tmp_path: Path) -> None:
    other = tiny.start(tmp_path / "other", data=str(index.data), steps=3)
    shutil.copytree(index.path, other.path / "index")
    with pytest.raises(ValueError, match=r"is not the model that made the index .*: make the index anew"):
        open_index(other)


def test_refused_folders(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither an index nor a run folder"):
        open_index(tmp_path)
    in_memory = tiny.start(tmp_path / "in-memory", steps=1)
    with pytest.raises(ValueError, match="was trained on images in memory: make an index with ssole index"):
        open_index(in_memory)
    assert len(open_index(in_memory, data=tiny.images(), progress=False)) == tiny.IMAGES
