"""Features in parts: equal to those of `embed`, whatever interrupts them, and never mixed with those of other work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

import ssole
import tiny
from listed import Listed, pngs
from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.evaluation import embed_to_file as module
from ssole.evaluation.embed_to_file import embed_to_file
from ssole.evaluation.models import model_and_preprocessing
from ssole.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.start(tmp_path_factory.mktemp("runs") / "one", steps=2)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 4)
    monkeypatch.setattr(module, "_BATCH", 4)


class Interrupted(ArraySource):
    """The tiny images, labelled. Ctrl-C arrives after so many have been read, if a number is given."""

    def __init__(self, after: int | None = None) -> None:
        images = tiny.images()
        super().__init__(images, np.arange(len(images)) % 3 - 1, classes=["cat", "dog"])
        self.left = after

    def read(self, i: int) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().read(i)


def test_the_files_hold_what_embed_gives(run: Run, tmp_path: Path) -> None:
    source = Interrupted()
    expected = ssole.embed(run, source, progress=False)
    done = embed_to_file(run, source, tmp_path / "a.parquet", progress=False)
    assert (done.images, done.features) == expected.array.shape
    table = parquet.read_table(tmp_path / "a.parquet")
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected.array, atol=1e-6)
    assert table["id"].to_pylist() == expected.ids
    assert table["label"].to_pylist() == expected.labels.tolist()
    assert table["class"].to_pylist()[:4] == [None, "cat", "dog", None]
    embed_to_file(run, source, tmp_path / "a.npz", progress=False)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["array"], np.stack(table["embedding"].to_numpy()))
        assert saved["ids"].tolist() == expected.ids
        assert saved["labels"].tolist() == expected.labels.tolist()
        assert saved["classes"].tolist() == ["cat", "dog"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.parquet"]  # no parts are left


BEFORE = 22 + 8
"""Reads before the work begins: probes, and the check of the contents."""


@pytest.mark.parametrize("after", [3, 9, 14, 20])
def test_ctrl_c_loses_the_part_in_work_and_no_more(run: Run, tmp_path: Path, after: int) -> None:
    embed_to_file(run, Interrupted(), tmp_path / "whole.parquet", progress=False)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"stopped; the features of \d+ of 22 images are kept in .*\.parts, and the same command",
    ):
        embed_to_file(run, Interrupted(BEFORE + after), tmp_path / "a.parquet", progress=False)
    kept = len(list((tmp_path / "a.parquet.parts").glob("*.parquet")))
    assert kept >= after // 4 - 2  # two batches are read ahead
    assert not (tmp_path / "a.parquet").exists()
    again = Interrupted(BEFORE + 22 - 4 * kept)  # no image is read that is done
    embed_to_file(run, again, tmp_path / "a.parquet", progress=False)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "a.parquet.parts").exists()


@pytest.mark.slow
def test_kill_loses_the_part_in_work_and_no_more(run: Run, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as in the process below: other numbers of threads round otherwise
    tiny.write_folder(tmp_path / "photos")
    code = f"""
import sys, time
import torch
from ssole.data.folder import FolderSource
from ssole.evaluation import embed_to_file as module
torch.set_num_threads(1)
module.PART = module._BATCH = 4
class Slow(FolderSource):
    def read(self, i):
        time.sleep(0.02 * (i > 11))
        return super().read(i)
module.embed_to_file({str(run.path)!r}, Slow({str(tmp_path / "photos")!r}), "killed.parquet", progress=False)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ssole.__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    folder = tmp_path / "killed.parquet.parts"
    while not (folder / "0000000004.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (folder / "0000000000.parquet").stat().st_mtime_ns
    assert not (tmp_path / "killed.parquet").exists()
    (folder / ".0000000008.parquet.abcd.ssole-tmp").write_bytes(b"half a part")
    embed_to_file(run, tmp_path / "photos", tmp_path / "whole.parquet", progress=False)
    model, preprocessing = model_and_preprocessing(run)
    module.embed_parts(model, preprocessing, open_source(tmp_path / "photos"), folder, progress=False)
    assert (folder / "0000000000.parquet").stat().st_mtime_ns == first  # not computed again
    embed_to_file(run, tmp_path / "photos", tmp_path / "killed.parquet", progress=False)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_no_more_rows_are_held_than_a_part_has(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, add = [], module._PartWriter.add

    def spy(writer: Any, start: int, rows: Any) -> None:
        held.append(len(rows) + sum(map(len, writer._rows)))
        add(writer, start, rows)

    monkeypatch.setattr(module, "PART", 8)
    monkeypatch.setattr(module._PartWriter, "add", spy)
    embed_to_file(run, tiny.images(60), tmp_path / "a.parquet", progress=False)
    assert held == [4, 8] * 7 + [4]


def test_parts_of_other_work_are_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    other = tiny.start(tmp_path / "other", steps=2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(run, Interrupted(BEFORE + 12), out, progress=False)
    with pytest.raises(ssole.DataError, match=r"a\.parquet\.parts holds .* \(another model or preprocessing\): "):
        embed_to_file(other, Interrupted(), out, progress=False)
    changed = Interrupted()
    changed.images = 255 - changed.images
    with pytest.raises(ssole.DataError, match=r"something else \(other images\): "):
        embed_to_file(run, changed, out, progress=False)
    turned = Interrupted()
    turned.images = turned.images.reshape(22, -1, turned.images.shape[1] // 2, 3)  # of the same bytes
    with pytest.raises(ssole.DataError, match=r"something else \(other images\): "):
        embed_to_file(run, turned, out, progress=False)
    with pytest.raises(ssole.DataError, match="images 22 instead of 5"):
        embed_to_file(run, tiny.images(5), out, progress=False)


def test_two_processes_do_not_write_one_file(run: Run, tmp_path: Path) -> None:
    out, refused = tmp_path / "a.parquet", []

    class Meanwhile(Interrupted):
        def read(self, i: int) -> Any:
            if (tmp_path / "a.parquet.parts").exists() and not refused:
                with pytest.raises(ssole.ConfigError, match=r"another process is writing .*a\.parquet: wait") as error:
                    embed_to_file(run, Interrupted(), out, progress=False)
                refused.append(error.value)
            return super().read(i)

    embed_to_file(run, Meanwhile(), out, progress=False)
    assert refused
    embed_to_file(run, Interrupted(), out, progress=False)
    assert list(tmp_path.iterdir()) == [out]  # neither parts nor a lock


def test_a_folder_is_refused_before_anything_is_computed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(ssole.ConfigError, match=r"a\.npz is a folder: embeddings are one file"):
        embed_to_file(run, "nowhere", tmp_path / "a.npz", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_parts_of_unknown_work_are_computed_anew(run: Run, tmp_path: Path) -> None:
    embed_to_file(run, tiny.images(), tmp_path / "whole.parquet", progress=False)
    folder = tmp_path / "a.parquet.parts"
    folder.mkdir()
    (folder / "0000000000.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes())  # of other images, say
    embed_to_file(run, tiny.images(), tmp_path / "a.parquet", progress=False)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_work_that_failed_before_its_first_part_is_in_nobodys_way(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    with pytest.raises(ssole.DataError, match="this image has 5"):
        embed_to_file(run, np.zeros((30, 12, 12, 5), np.uint8), out, progress=False)
    assert embed_to_file(run, tiny.images(), out, progress=False).images == 22
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_unreadable_images_are_left_out_and_named(run: Run, tmp_path: Path) -> None:
    items = pngs(300)
    items[6] = items[130] = b"no image"
    with pytest.warns(UserWarning, match="2 of 300 images cannot be read and are left out: item 6, ..."):
        done = embed_to_file(run, Listed(items), tmp_path / "a.parquet", progress=False)
    names = parquet.read_table(tmp_path / "a.parquet")["id"].to_pylist()
    assert done.images == 298
    assert names == [f"item {i}" for i in range(300) if i not in (6, 130)]


def test_names_that_are_no_text(run: Run, tmp_path: Path) -> None:
    source = Listed(pngs(5))
    source.id = lambda i: f"\udcff{i}"  # a file name of bytes that are not UTF-8
    embed_to_file(run, source, tmp_path / "a.parquet", progress=False)
    assert parquet.read_table(tmp_path / "a.parquet")["id"].to_pylist() == [f"\\udcff{i}" for i in range(5)]


def test_another_suffix_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a\.csv': end the name in \.npz or \.parquet"):
        embed_to_file(run, Interrupted(), tmp_path / "a.csv", progress=False)
    assert list(tmp_path.iterdir()) == []
