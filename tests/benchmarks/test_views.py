"""The benchmark of views, run small: contestants that make the same views, and rates that are right."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ssole import Crop, ViewRecipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    torch.set_num_threads(1)
    return importlib.import_module("views")


def setting(views: ModuleType, recipe: ViewRecipe, n: int = 2, side: int = 48) -> Any:
    """Images of flat blocks of colour, with views by another recipe."""
    blocks = np.random.default_rng(0).integers(0, 256, (n, side // 8, side // 8, 3), dtype=np.uint8)

    class Other(views.Setting):  # type: ignore[misc,name-defined]
        pass

    Other.recipe = recipe
    (crop,) = recipe.crops
    images = blocks.repeat(8, axis=1).repeat(8, axis=2)
    return Other(size=crop.size, views=crop.count, blur=recipe.blur > 0, images=images)


def items(views: ModuleType, some: Any, *, pillow: bool) -> torch.Tensor:
    """(B, V, 3, S, S) of the items that a data loader's workers would make."""
    made = views.Views(some, pillow=pillow)
    return torch.stack([torch.stack(made[i]) for i in range(len(some.images))])


CONTESTANTS: dict[str, Callable[[ModuleType, Any], torch.Tensor]] = {
    "ssole, images of different sizes": lambda views, some: views.ssole_views_of_a_list(some)(0)[0],
    "torchvision v2, Pillow": lambda views, some: items(views, some, pillow=True),
    "torchvision v2, tensors": lambda views, some: items(views, some, pillow=False),
    "kornia": lambda views, some: views.kornia_views(some)(0).unflatten(0, (len(some.images), some.views)),
}


@pytest.mark.parametrize("name", CONTESTANTS)
def test_without_chance_all_contestants_make_the_same_view(views: ModuleType, name: str) -> None:
    """The whole image, upside up and always grey: what is left of every operation that can be made certain."""
    if name == "kornia":
        pytest.importorskip("kornia")
    whole = Crop(count=2, size=96, scale=(1, 1), ratio=(1, 1))  # enlarged, for kornia does not filter when it reduces
    some = setting(views, ViewRecipe(crops=(whole,), hflip=0, jitter=0, grey=1))
    ours, theirs = views.ssole_views(some)(0)[0], CONTESTANTS[name](views, some)
    assert theirs.shape == ours.shape == (2, 2, 3, 96, 96)
    assert theirs.dtype == torch.float32
    difference = (theirs - ours).abs().mean() * 0.225 * 255  # of 255; 0.225 is the mean of the recipe's std
    assert difference < (10 if "different sizes" in name else 2)  # the second image of the list is cut by a pixel


@pytest.mark.parametrize("name", CONTESTANTS)
def test_all_contestants_make_as_many_views_grey(views: ModuleType, name: str) -> None:
    if name == "kornia":
        pytest.importorskip("kornia")
    crop = Crop(count=30, size=8)
    some = setting(views, ViewRecipe(crops=(crop,), jitter=0, mean=(0, 0, 0), std=(1, 1, 1)), n=10, side=16)
    made = CONTESTANTS[name](views, some)
    grey = (made - made.mean(dim=2, keepdim=True)).abs().amax(dim=(2, 3, 4)) < 0.02
    assert grey.float().mean() == pytest.approx(0.2, abs=0.07)  # 3 standard deviations of 300 views


def test_blur_is_where_it_is_asked_for(views: ModuleType) -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    recipes = [views.Setting(size=32, views=2, blur=blur, images=images).recipe for blur in (False, True)]
    assert [recipe.blur for recipe in recipes] == [0.0, 0.5]
    transforms = [str(views.torchvision_transform(recipe, pillow=True)) for recipe in recipes]
    assert ["GaussianBlur" in text for text in transforms] == [False, True]


def test_a_rate_counts_the_views_of_whole_calls(views: ModuleType) -> None:
    calls = []

    def make(number: int) -> None:
        calls.append(number)
        time.sleep(0.02)

    rate = views.rate_of_calls(make, views=10, seconds=0.05)
    assert calls == list(range(len(calls)))
    assert len(calls) >= 2
    assert 0 < rate <= 10 / 0.02


class Slow(Dataset[int]):
    def __getitem__(self, i: int) -> int:
        time.sleep(0.02)
        return i


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single processor
def test_batches_that_a_loader_has_ready_are_not_counted_as_fast(views: ModuleType) -> None:
    order = views.UntilStopped(100, 1)
    loader = DataLoader(Slow(), batch_sampler=order, num_workers=2, persistent_workers=True)
    for _ in range(2):
        rate = views.rate_of_loader(loader, views=1, seconds=0.2)
        assert 0 < rate < 1.2 * 2 / 0.02  # two workers, one item each 0.02 seconds
        time.sleep(0.1)  # in which workers that were not stopped would get ahead


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single processor
@pytest.mark.slow
def test_small_benchmark(views: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "views.json", tmp_path / "views.svg"
    small = ["--views", "2", "--batch", "4", "2", "--rounds", "1", "--seconds", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["views.py", *small, "--out", str(out), "--plot", str(plot)])
    views.main()
    record = json.loads(out.read_text())
    rows = [(row["size"], row["views"], row["blur"], row["batch"]) for row in record["rows"]]
    assert rows == [(32, 2, False, 4), (32, 2, True, 4), (224, 2, True, 2)]
    for row in record["rows"]:
        assert {"ssole", "torchvision v2, Pillow", "torchvision v2, tensors"} <= set(row["views_per_second"])
        assert all(len(rates) == 1 and rates[0] > 0 for rates in row["views_per_second"].values())
        ours, theirs = (row["views_per_second"][name][0] for name in ("ssole", "torchvision v2, Pillow"))
        assert row["ssole_is_faster_by"]["torchvision v2, Pillow"]["median"] == pytest.approx(ours / theirs)
    large = record["memory"][1]
    assert large["of_it_views_mb"] == pytest.approx(16 * 2 * 3 * 224 * 224 * 4 / 1e6)
    assert large["peak_extra_mb"] is None or large["peak_extra_mb"] >= 0  # little, where earlier tests freed much
    assert plot.stat().st_size > 0
