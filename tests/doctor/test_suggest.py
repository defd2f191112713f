"""Suggested recipe, and that its command does what is suggested."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssole.cli.pretrain import parse_options
from ssole.config import PretrainConfig, load, recipe_names
from ssole.doctor import suggest as module
from ssole.doctor.contents import Contents, Range
from ssole.doctor.suggest import Budgeted, Suggestion, suggest
from ssole.training.needs import step_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def images_of(side: int) -> Contents:
    sides = Range(min=side, median=side, max=side)
    return Contents(
        formats={"JPEG": 1},
        modes={"RGB": 1},
        width=sides,
        height=sides,
        shorter_side=sides,
        bytes=sides,
        total_bytes=1,
        aspects={},
        one_size=True,
        blank=[],
        misnamed=[],
    )


def choose(side: int, images: int, device: torch.device, data: Any = "photos/", **options: Any) -> Suggestion:
    return suggest(data, images_of(side), images, device, **options)


@pytest.mark.parametrize(
    ("side", "images", "device", "memory", "recipe"),
    [
        (32, 50_000, CPU, 0, "small-images"),
        (64, 50_000, CPU, 0, "small-images"),
        (32, 50_000, GPU, 16, "small-images-resnet18"),
        (64, 2_000_000, GPU, 80, "small-images-resnet18"),
        (65, 50_000, GPU, 16, "photos"),
        (500, 499_999, GPU, 80, "photos"),
        (500, 500_000, GPU, 80, "photos-resnet50"),
        (500, 500_000, GPU, 24, "photos"),
        (500, 50_000, CPU, 0, "photos-fast"),
    ],
)
def test_size_number_and_device_decide(
    side: int, images: int, device: torch.device, memory: int, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, memory * GIB))
    found = choose(side, images, device)
    assert found.recipe == recipe
    assert found.recipe in recipe_names()
    assert found.reasons
    assert f"{side} px" in found.reasons[0]


def test_digits_m_has_its_own_recipe() -> None:
    found = choose(32, 11_176, CPU, data="digits-m")
    assert (found.recipe, found.overrides) == ("digits-m", {})


def test_many_images_keep_the_recipe() -> None:
    assert choose(500, 50_000, CPU).overrides == {}
    assert choose(500, 200_000, GPU).overrides == {}
    assert choose(32, 50_000, CPU).overrides == {}


def seconds_of(fast: float) -> Callable[[PretrainConfig], float]:
    """Time of a step that grows with images and pixels; `fast` seconds for 128 images of 32 px in a small ResNet."""

    def measure(config: PretrainConfig) -> float:
        size = config.augment.crops[0].size
        network = 1.0 if "layers" in config.model.backbone_args else 20.0
        return fast * network * config.batch_size / 128 * (size / 32) ** 2

    return measure


@pytest.mark.parametrize(
    ("side", "seconds", "fast", "recipe", "size"),
    [
        (300, 900, 0.2, "photos-fast", 32),  # 4,500 steps of 32 px, 1,125 of 64 px
        (300, 7200, 0.2, "photos-fast", 64),
        (300, 200_000, 0.2, "photos", 128),
        (300, 600_000, 0.2, "photos", 224),
        (300, 900, 0.001, "photos", 128),  # a faster machine
        (28, 900, 0.2, "small-images", 32),
        (28, 18_000, 0.2, "small-images-resnet18", 32),
        (50, 900, 0.1, "small-images", 48),
        (64, 900, 0.1, "small-images", 64),
    ],
)
def test_a_budget_decides_on_network_and_views(side: int, seconds: float, fast: float, recipe: str, size: int) -> None:
    budget = Budgeted(text=f"{seconds}s", seconds=seconds, step_seconds=seconds_of(fast))
    found = choose(side, 50_000, CPU, budget=budget)
    config = found.config
    assert (found.recipe, config.augment.crops[0].size, config.batch_size) == (recipe, size, load(recipe).batch_size)
    assert config.budget == f"{seconds}s"
    assert any(f"{recipe} with views of {size} px" in reason for reason in found.reasons)
    steps = seconds / budget.step_seconds(config)
    assert steps >= module.MIN_RUN_STEPS
    assert config.optim.warmup_steps <= 0.1 * steps


@pytest.mark.parametrize(("seconds", "batch"), [(240, 128), (150, 64), (60, 32), (10, 32)])
def test_little_time_gets_smaller_batches_and_no_compiling(seconds: float, batch: int) -> None:
    budget = Budgeted(text=f"{seconds}s", seconds=seconds, step_seconds=seconds_of(0.2))
    found = choose(300, 50_000, CPU, budget=budget)
    assert (found.recipe, found.config.batch_size, found.config.compile) == ("photos-fast", batch, "never")
    few = choose(300, 60, CPU, budget=budget)
    assert few.config.batch_size == 8
    assert any("60 images are too few for batches of 128" in reason for reason in few.reasons)


def test_few_images_fill_the_batches_of_the_recipe_that_is_chosen() -> None:
    """600 images are enough for the batches of the cheapest recipe, 128, and not for those of a larger network, 256."""
    budget = Budgeted(text="5h", seconds=18_000, step_seconds=seconds_of(0.2))
    found = choose(28, 600, CPU, budget=budget)
    assert (found.recipe, found.config.batch_size) == ("small-images-resnet18", 128)
    assert "600 images are too few for batches of 256" in found.reasons


def test_a_budget_that_the_examination_has_used_up() -> None:
    budget = Budgeted(text="5s", seconds=-3.0, step_seconds=seconds_of(0.2))
    found = choose(300, 50_000, CPU, budget=budget)
    assert (found.config.batch_size, found.config.optim.warmup_steps) == (32, 0)
    assert any("0 steps fit into 5s" in reason for reason in found.reasons)


def views_of(found: Suggestion) -> tuple[int, int]:
    return found.config.augment.views, found.config.batch_size


def test_an_image_gets_four_views_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GIB, 80 * GIB))
    measured = "4 views of each image: of 2 to 8, they had the best means at equal time, on small images"
    for side, device in [(32, CPU), (32, GPU), (300, CPU), (300, GPU)]:
        found = choose(side, 50_000, device)
        assert found.config.augment.views == 4
        assert measured in found.reasons
    long = choose(300, 500_000, GPU)
    assert long.config.augment.views == 8
    assert "8 views of each image, as published for so many images and epochs" in long.reasons
    budget = Budgeted(text="9h", seconds=32_400, step_seconds=lambda _: 0.1)
    short = choose(300, 500_000, GPU, budget=budget)
    assert (short.recipe, short.config.augment.views) == ("photos-resnet50", 4)
    assert short.reasons.count(measured) == 1


def test_little_memory_gets_fewer_views_and_then_smaller_batches() -> None:
    def chosen(free: float, side: int = 300, **options: Any) -> Suggestion:
        return choose(side, 50_000, CPU, memory=free, **options)

    needed = {views: step_bytes(load("photos-fast", views=views), CPU) or 0 for views in (2, 3, 4)}
    enough = {views: math.ceil(bytes_ / 0.8) for views, bytes_ in needed.items()}
    assert [views_of(chosen(enough[views])) for views in (4, 3, 2)] == [(4, 128), (3, 128), (2, 128)]
    assert views_of(chosen(enough[4] - 2)) == (3, 128)
    assert views_of(chosen(enough[2] - 2)) == (2, 64)
    least = chosen(1)
    assert views_of(least) == (2, 32)
    assert "2 views of 32 images instead, because 1 B of memory are free" in least.reasons
    assert "--augment.crops.0.count 2 --batch-size 32" in least.command
    asked: list[tuple[int, int]] = []

    def seconds(config: PretrainConfig) -> float:
        asked.append((config.augment.views, config.batch_size))
        return 0.1

    budget = Budgeted(text="250s", seconds=250, step_seconds=seconds)
    assert views_of(chosen(1, side=32, budget=budget)) == (2, 32)
    assert set(asked) == {(2, 32)}  # what is measured is what will be trained


def test_images_with_other_channels_get_their_preset() -> None:
    assert choose(300, 50_000, CPU, channels=5).config.augment.hue == 0
    grey = choose(300, 50_000, CPU, channels=1)
    assert grey.overrides == {"channels": 1, "preset": "grey"}
    assert grey.config.augment.blur == 0.5


@pytest.mark.parametrize("images", [2, 3, 5, 9, 100, 300, 511])
def test_few_images_get_batches_that_they_fill(images: int) -> None:
    config = choose(32, images, CPU).config
    assert 2 <= config.batch_size <= max(2, images // 2)
    assert choose(32, 512, CPU).config.batch_size == 128


def test_few_images_get_steps_enough() -> None:
    assert choose(500, 1000, GPU).config.steps == module.MIN_RUN_STEPS
    assert choose(500, 100_000, GPU).config.steps is None
    assert choose(32, 1000, CPU).config.steps == load("small-images").steps


@pytest.mark.parametrize(
    ("data", "side", "images", "device"),
    [
        ("photos/", 500, 300, CPU),
        ("my photos & more", 500, 1000, GPU),
        (["a.parquet", "b.parquet"], 32, 50_000, CPU),
        ("digits-m", 32, 11_176, CPU),
    ],
)
def test_the_command_trains_what_is_suggested(data: Any, side: int, images: int, device: torch.device) -> None:
    found = choose(side, images, device, data=data)
    words = shlex.split(found.command)
    assert words[:2] == ["ssole", "pretrain"]
    args, _ = parse_options(words[2:])
    assert args.recipe == found.recipe
    assert args.out is not None
    given = tuple(data) if isinstance(data, list) else data
    assert args.config.data in (given, (given,))
    assert dataclasses.replace(args.config, data=found.config.data) == found.config


def test_the_command_keeps_no_secrets() -> None:
    found = choose(32, 50_000, CPU, data="https://me:word@host/digits.tar?signature=1")
    assert "--data 'https://REMOVED@host/digits.tar?REMOVED'" in found.command
    assert found.command.endswith("--out runs/digits")


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("data/*.parquet", "small-images"),
        ("..", "small-images"),
        ("shard-{00..99}.tar", "shard-00..99"),
        ("my photos/", "my-photos"),
    ],
)
def test_the_command_writes_to_a_folder_with_a_name(data: str, out: str) -> None:
    assert choose(32, 50_000, CPU, data=data).command.endswith(f" --out runs/{out}")


def test_the_command_writes_to_a_folder_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("runs/photos", "runs/photos-2", "runs/photos-3"):
        assert choose(32, 50_000, CPU, data="photos").command.endswith(f" --out {out}")
        Path(out).mkdir(parents=True)


def test_images_in_memory_are_called_data_in_the_command() -> None:
    found = choose(32, 50_000, CPU, data=np.zeros((2, 2, 2), dtype=np.uint8))
    assert found.command == "ssole pretrain --data DATA --recipe small-images --out runs/small-images"
