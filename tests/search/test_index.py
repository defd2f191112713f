"""Index: searches against brute force on its features, ids and labels, and damaged or foreign folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssole
import tiny
from ssole.search.index import Index
from ssole.training.run import Run


def test_an_image_file_finds_itself_first(index: Index, photos: Path) -> None:
    found = index.search(photos / "cat" / "004.png", 5)
    assert (found.ids[0], found.labels[0]) == ("cat/004.png", "cat")
    assert found.similarity[0] == pytest.approx(1, abs=1e-3)
    assert found.similarity.tolist() == sorted(found.similarity, reverse=True)
    with Image.open(photos / "cat" / "004.png") as image:
        assert index.search(image, 5).ids == index.search(np.asarray(image), 5).ids == found.ids


def test_an_image_of_the_index_is_left_out_of_its_own_result(index: Index) -> None:
    row = index.ids.index("dog/003.png")
    cosine = index.features.astype(np.float64) @ index.features[row].astype(np.float64)
    cosine[row] = -2
    found = index.search("dog/003.png", 29)
    assert found.rows.tolist() == np.argsort(-cosine, kind="stable")[:29].tolist()
    np.testing.assert_allclose(found.similarity, np.sort(cosine)[:0:-1], atol=1e-7)


def test_features_of_ones_own(index: Index, run: Run, photos: Path) -> None:
    embeddings = ssole.embed(run, photos, precision="float32", progress=False)
    similarity, rows = index.nearest(embeddings.array, 1)
    assert rows[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    assert index.ids == embeddings.ids
    np.testing.assert_array_equal(index.labels, embeddings.labels)


def test_duplicates_outliers_and_a_choice(index: Index) -> None:
    groups = index.duplicates(0.9, progress=False)
    for group in groups:
        np.testing.assert_allclose(
            group.similarity, index.features[group.rows] @ index.features[group.rows[0]], atol=1e-6
        )
    assert len(index.outliers(4, progress=False)) == 4
    chosen, worst = index.select(6, progress=False)
    more, better = index.select(3, given=chosen.ids, progress=False)
    assert not set(more.ids) & set(chosen.ids)
    assert [*chosen.ids, *more.ids] == index.select(9, progress=False)[0].ids
    assert worst <= better <= 1


def test_an_index_without_labels(run: Run, tmp_path: Path) -> None:
    index = ssole.index(run, tiny.images(6), tmp_path / "index", progress=False)
    assert index.labels is None
    assert index.search("array:3", 2).labels == ["", ""]


def test_a_module_is_asked_for_and_compared(run: Run, photos: Path, tmp_path: Path) -> None:
    module = ssole.load(run)
    index = ssole.index(module, photos, tmp_path / "index", progress=False)
    assert not (tmp_path / "index" / "backbone.safetensors").exists()
    one = photos / "cat" / "000.png"
    with pytest.raises(ValueError, match="made with LoadedBackbone, which it does not hold: pass it"):
        index.search(one)
    assert index.search(one, 1, model=module).ids == ["cat/000.png"]
    with pytest.raises(ValueError, match="LoadedBackbone is not the model that made the index"):
        index.search(one, model=ssole.untrained(run))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda index: index.search("cat/000.png", 30), r"k is 30, and .* has 29 images to choose from"),
        (lambda index: index.search(tiny.images(1)[0], 31), "k is 31, and .* it must be 1 to 30"),
        (lambda index: index.search("cat/000.png", 0), "k is 0"),
        (
            lambda index: index.search("cat/nowhere.png"),
            r"no file 'cat/nowhere.png', and .* has no .* like 'cat/000.png'",
        ),
        (lambda index: index.search("a" * 5000), "no file 'aaa"),
        (lambda index: index.search(index.path / "index.json"), r"index\.json: not an image that Pillow can open"),
        (lambda index: index.search(3), "got int"),
        (lambda index: index.search(np.zeros((4, 4), dtype=np.float32)), "must hold uint8 or uint16"),
        (lambda index: index.nearest(np.zeros((2, 3))), r"shape \(2, 3\) .* width 16"),
        (lambda index: index.nearest(np.full((2, 16), np.nan)), "NaN or infinity"),
        (lambda index: index.duplicates(0), r"lies in \(0, 1\], got 0"),
        (lambda index: index.outliers(31), "count is 31"),
        (
            lambda index: index.select(2, given=["a.png"]),
            r"index has no image of the id 'a\.png'; its ids are like 'cat",
        ),
        (lambda index: index.select(29, given=["cat/000.png", "dog/001.png"]), "count is 29, and .* 28 images"),
    ],
)
def test_what_cannot_be_found_is_named(index: Index, search: Callable[[Index], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(index)


def overwrite_features(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:  # type: ignore[type-arg]
    np.save(folder / "features.npy", change(np.load(folder / "features.npy")))


def nan_in_row_7(features: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    features[7, 3] = np.nan
    return features


def archive_in_place_of_features(folder: Path) -> None:
    with (folder / "features.npy").open("wb") as file:
        np.savez(file, x=np.ones((30, 16)))


def describe(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "is not an index: make one with ssole index"),
        (lambda f: (f / "index.json").write_text("{"), r"index\.json cannot be read"),
        (lambda f: describe(f, format=2), "has format 2, and this version of ssole reads 1"),
        (lambda f: (f / "features.npy").unlink(), "damaged, .*: features.npy cannot be read"),
        (lambda f: archive_in_place_of_features(f), "features.npy cannot be read"),
        (lambda f: (f / "features.npy").write_bytes(b"\x93NUMPY"), "damaged, .*: features.npy cannot be read"),
        (lambda f: overwrite_features(f, lambda x: x[:20]), r"holds float32 \(20, 16\) instead of \(30, 16\)"),
        (lambda f: overwrite_features(f, lambda x: x.astype(np.float64)), "holds float64"),
        (lambda f: (overwrite_features(f, lambda x: x[:0]), describe(f, images=0)), r"holds float32 \(0, 16\)"),
        (lambda f: (f / "images.parquet").write_bytes(b"PAR1"), "damaged, .*: images.parquet cannot be read"),
        (lambda f: (f / "images.parquet").unlink(), "damaged, .*: images.parquet cannot be read"),
        (lambda f: (overwrite_features(f, lambda x: x[:20]), describe(f, images=20)), "images.parquet holds 30 rows"),
        (lambda f: overwrite_features(f, nan_in_row_7), "NaN or infinity, .* first such row is 7"),
        (lambda f: describe(f, backbone="0" * 64), "is not the model that made the index"),
        (lambda f: (f / "backbone.safetensors").write_bytes(b"0"), "not a whole safetensors file"),
    ],
)
def test_a_damaged_index_is_named(
    index: Index, photos: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(index.path, tmp_path / "index")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        Index(folder).search(photos / "cat" / "000.png")


def test_features_are_not_changed_by_what_reads_them(index: Index) -> None:
    before = (index.path / "features.npy").read_bytes()
    index.features[0] = 0  # a private copy of the page
    assert (index.path / "features.npy").read_bytes() == before
    index.features[0] = Index(index.path).features[0]
    assert torch.from_numpy(index.features).isfinite().all()
