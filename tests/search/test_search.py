"""Index and search by folder: what the folder holds, interruptions, a run with and without an index, refused input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ssole
import tiny
from ssole.config import ConfigError
from ssole.data.sources import open_source
from ssole.evaluation import embed_to_file
from ssole.search import search as module
from ssole.search.index import Index
from ssole.search.search import open_index
from ssole.training.run import Run


def test_the_folder(index: Index, run: Run, photos: Path) -> None:
    names = {path.name for path in index.path.iterdir()}
    assert names == {"index.json", "features.npy", "images.parquet", "backbone.safetensors"}
    assert index.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(index.features, axis=1), 1, atol=1e-6)
    assert index.data == str(photos)
    assert (index.path / "backbone.safetensors").read_bytes() == run.backbone_path.read_bytes()
    assert [path.name for path in index.path.parent.iterdir() if path.name.startswith((".", "index."))] == []


def test_half_precision(index: Index, run: Run, photos: Path, tmp_path: Path) -> None:
    half = ssole.index(run, photos, tmp_path / "half", half=True, precision="float32", progress=False)
    assert half.features.dtype == np.float16
    np.testing.assert_array_equal(half.features, index.features.astype(np.float16))
    assert half.search(photos / "cat" / "000.png", 1).ids == ["cat/000.png"]
    assert half.select(3, progress=False)[0].ids == index.select(3, progress=False)[0].ids


def test_unreadable_images_are_left_out(run: Run, tmp_path: Path) -> None:
    tiny.write_folder(tmp_path / "photos", 200)
    (tmp_path / "photos" / "cat" / "004.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 of 200 images cannot be read and are left out: cat/004\.png"):
        index = ssole.index(run, tmp_path / "photos", tmp_path / "index", progress=False)
    assert len(index) == 199
    assert "cat/004.png" not in index.ids


def test_it_goes_on_after_an_interruption(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features are those of an index that was made at once, to the bit, since the batches are the same."""
    monkeypatch.setattr(embed_to_file, "PART", 8)
    monkeypatch.setattr(embed_to_file, "_BATCH", 8)
    whole = ssole.index(run, photos, tmp_path / "whole" / "index", precision="float32", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ssole.index(run, photos, tmp_path / "index", precision="float32", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parts", "whole"]
    again = ssole.index(run, photos, tmp_path / "index", precision="float32", progress=False)
    assert np.array_equal(again.features, whole.features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are written to a plain file: through a memory map, a full disk would kill the process."""
    resource = pytest.importorskip("resource", reason="Windows has no limits of file sizes")
    plain = module._write
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_small_disk(*given: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
        try:
            plain(*given)  # type: ignore[arg-type]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(module, "_write", on_a_small_disk)
    with pytest.raises(OSError, match="File too large"):
        ssole.index(run, photos, tmp_path / "out" / "index", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.parts"]


def test_an_empty_folder_that_exists_is_filled(run: Run, photos: Path, tmp_path: Path) -> None:
    """It may be a volume of a container, so its parts are kept within it."""
    seen = []
    plain = module._write

    def write(*given: Any) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        plain(*given)

    (tmp_path / "volume").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", write)
        index = ssole.index(run, photos, tmp_path / "volume", progress=False)
    assert seen == ["volume"]
    assert {path.name for path in index.path.iterdir()} == {
        "index.json",
        "features.npy",
        "images.parquet",
        "backbone.safetensors",
    }


def test_two_processes_do_not_write_one_index(run: Run, photos: Path, tmp_path: Path) -> None:
    with (
        module._work_folder(tmp_path / "index"),
        pytest.raises(ConfigError, match="another process is writing"),
    ):
        ssole.index(run, photos, tmp_path / "index", progress=False)
    assert len(ssole.index(run, photos, tmp_path / "index", progress=False)) > 0


def test_files_are_found_again_from_another_folder(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    files = ["cat/000.png", "dog/005.png"]
    index = ssole.index(run, files, tmp_path / "index", progress=False)
    monkeypatch.chdir(tmp_path)
    assert [Path(name) for name in index.ids] == [photos / name for name in files]
    assert list(open_source(index.data).read(0)) == list((photos / files[0]).read_bytes())


def test_another_model_than_a_run(run: Run, photos: Path, tmp_path: Path) -> None:
    model = f"timm:local-dir:{ssole.export(run, to='timm', out=tmp_path / 'exported')}"
    index = ssole.index(model, photos, tmp_path / "index", precision="float32", progress=False)
    one = photos / "dog" / "005.png"
    with pytest.raises(ValueError, match=r"was made with timm:local-dir:.*pass it, model=\.\.\. \(--model\)"):
        index.search(one)
    assert index.search(one, 1, model=model).ids == ["dog/005.png"]
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    onnx = ssole.export(run, to="onnx", out=tmp_path / "onnx") / "model.onnx"
    with pytest.raises(ValueError, match=r"an index cannot know .*model\.onnx again"):
        ssole.index(onnx, photos, tmp_path / "other")


def test_refused_input(index: Index, run: Run, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an empty folder, and nothing is overwritten"):
        ssole.index(run, photos, index.path)
    with pytest.raises(ValueError, match="needs a folder to be written to: pass out"):
        ssole.index(ssole.load(run), photos)
    with pytest.raises(ValueError, match="There is no dataset, folder or file named"):
        ssole.index(run, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        ssole.index(run, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_description_is_short(index: Index) -> None:
    description = json.loads((index.path / "index.json").read_text())
    assert set(description) == {"format", "images", "features", "model", "backbone", "channels", "data"}


# Searches by folder


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
    with pytest.raises(ValueError, match="was trained on images in memory: pass --data"):
        open_index(in_memory)
    assert len(open_index(in_memory, data=tiny.images(), progress=False)) == tiny.IMAGES
