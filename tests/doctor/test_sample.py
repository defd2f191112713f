"""What is measured on decoded images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssole.config import Crop, ViewRecipe
from ssole.data.arrays import ArraySource
from ssole.data.folder import FolderSource
from ssole.doctor.sample import KEPT, MOST_IMAGES, Sample, draw_sample, view_rate
from ssole.doctor.scan import scan

CPU = torch.device("cpu")


def sample_of(source: ArraySource | FolderSource, shrink_to: int = 1000) -> Sample:
    return draw_sample(source, scan(source, range(len(source)), progress=False).seen, shrink_to=shrink_to)


def test_channel_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 200, (40, 9, 7, 3), dtype=np.uint8)
    images[..., 2] //= 4
    found = sample_of(ArraySource(images)).statistics
    assert found.images == 40
    assert found.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)), abs=1e-12)
    assert found.std == pytest.approx((images / 255).std(axis=(0, 1, 2)), abs=1e-12)


def test_each_image_counts_alike_whatever_its_size(tmp_path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (90, 90), (255, 0, 0)).save(tmp_path / "large.png")
    Image.new("RGB", (10, 10), (0, 0, 0)).save(tmp_path / "small.png")
    found = sample_of(FolderSource(tmp_path)).statistics
    assert found.mean == [0.5, 0, 0]
    assert found.std == pytest.approx([0.5, 0, 0])


def test_the_sample_is_spread_and_bounded() -> None:
    images = np.arange(1000, dtype=np.int64).repeat(16).reshape(1000, 4, 4)
    sample = sample_of(ArraySource((images // 4).astype(np.uint8)))
    assert sample.statistics.images == sample.decode.images == MOST_IMAGES
    assert len(sample.images) == len(sample.ids) == KEPT
    for image, index in zip(sample.images, sample.ids.tolist(), strict=True):
        assert (image == index // 4).all()
    assert sample.statistics.mean[0] == pytest.approx(images.mean() / 4 / 255, rel=0.02)
    assert sample.decode.value > 0
    assert sorted(sample.ids.tolist())[-1] > 900  # even of those kept


def test_a_batch_repeats_what_there_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    sample = sample_of(ArraySource(images))
    batch, ids = sample.batch(7, CPU)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (7, 3, 5, 5)
    assert torch.equal(batch[6], batch[0])
    assert ids.tolist() == list(range(7))


def test_a_batch_of_different_sizes_is_a_list(folder, pictures: list[NDArray[np.uint8]]) -> None:  # type: ignore[no-untyped-def]
    Image.fromarray(pictures[0][:70]).save(folder / "half.png")
    batch, _ = sample_of(FolderSource(folder)).batch(14, CPU)
    assert isinstance(batch, list)
    assert len(batch) == 14


def test_large_images_are_reduced_as_training_does(folder) -> None:  # type: ignore[no-untyped-def]
    assert {min(image.shape[1:]) for image in sample_of(FolderSource(folder), shrink_to=50).images} == {50}


def test_views_are_counted_with_all_of_an_images_views(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sample_of(ArraySource(np.zeros((4, 12, 12, 3), dtype=np.uint8)))
    clock = iter(range(100))  # a second between any two looks at it
    monkeypatch.setattr("ssole.doctor.sample.time.perf_counter", lambda: float(next(clock)))
    recipe = ViewRecipe(crops=(Crop(count=2, size=8), Crop(count=3, size=4)))
    # begun at 0, asked at 1: the time is up at once, so that no view is made
    assert view_rate(sample, recipe, CPU).value == 0
    monkeypatch.setattr("ssole.doctor.sample.SECONDS", 10.0)  # 2.5 s: looks at 1 and 2 find time, the one at 3 does not
    clock = iter(range(100))
    assert view_rate(sample, recipe, CPU).value == 2 * 4 * 5 / 4
