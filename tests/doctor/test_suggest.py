"""Suggested recipe, and that its command does what is suggested."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import numpy as np
import pytest
import torch

from ssole.cli.pretrain import parse_options
from ssole.config import load, recipe_names
from ssole.doctor import suggest as module
from ssole.doctor.contents import Contents, Range
from ssole.doctor.scan import ChannelStatistics
from ssole.doctor.suggest import Suggestion, suggest

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
        (32, 50_000, CPU, 0, "cifar10-cpu"),
        (64, 50_000, CPU, 0, "cifar10-cpu"),
        (32, 50_000, GPU, 16, "cifar10"),
        (64, 2_000_000, GPU, 80, "cifar10"),
        (65, 50_000, GPU, 16, "imagenet100"),
        (500, 499_999, GPU, 80, "imagenet100"),
        (500, 500_000, GPU, 80, "imagenet1k"),
        (500, 500_000, GPU, 24, "imagenet100"),
        (500, 50_000, CPU, 0, "cifar10-cpu"),
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


def test_large_images_get_larger_views_on_a_cpu_and_keep_the_recipe_on_a_gpu() -> None:
    assert choose(500, 50_000, CPU).overrides == {"augment.crops.0.size": 64}
    assert choose(500, 200_000, GPU).overrides == {}
    assert choose(32, 50_000, CPU).overrides == {}


@pytest.mark.parametrize("images", [2, 3, 5, 9, 100, 300, 511])
def test_few_images_get_batches_that_they_fill(images: int) -> None:
    config = choose(32, images, CPU).config
    assert 2 <= config.batch_size <= max(2, images // 2)
    assert choose(32, 512, CPU).config.batch_size == 128


def test_few_images_get_steps_enough() -> None:
    assert choose(500, 1000, GPU).config.steps == module.MIN_RUN_STEPS
    assert choose(500, 100_000, GPU).config.steps is None
    assert choose(32, 1000, CPU).config.steps == load("cifar10-cpu").steps


def test_colours_far_from_the_recipes_become_overrides() -> None:
    near = ChannelStatistics(mean=[0.45, 0.45, 0.45], std=[0.25, 0.25, 0.25], images=9)
    dark = dataclasses.replace(near, mean=[0.1234, 0.1, 0.1])
    blank = dataclasses.replace(near, std=[0.0, 0.0, 0.0])
    assert choose(32, 50_000, CPU, statistics=near).overrides == {}
    assert choose(32, 50_000, CPU, statistics=blank).overrides == {}  # nothing may be divided by 0
    overrides = choose(32, 50_000, CPU, statistics=dark).overrides
    assert overrides == {"augment.mean": [0.123, 0.1, 0.1], "augment.std": [0.25, 0.25, 0.25]}


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
    statistics = ChannelStatistics(mean=[0.1, 0.1, 0.1], std=[0.1, 0.1, 0.1], images=9)
    found = choose(side, images, device, data=data, statistics=statistics)
    words = shlex.split(found.command)
    assert words[:2] == ["ssole", "pretrain"]
    args, _ = parse_options(words[2:])
    assert args.recipe == found.recipe
    assert args.out is not None
    given = tuple(data) if isinstance(data, list) else data
    assert args.config.data in (given, (given,))
    assert dataclasses.replace(args.config, data=found.config.data) == found.config


def test_images_in_memory_are_called_data_in_the_command() -> None:
    found = choose(32, 50_000, CPU, data=np.zeros((2, 2, 2), dtype=np.uint8))
    assert found.command == "ssole pretrain --data DATA --recipe cifar10-cpu --out runs/cifar10-cpu"
