"""Suggestion of a shipped recipe, with reasons and the command to type."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch

from ssole.config import PretrainConfig, load
from ssole.data.base import Spec
from ssole.doctor.contents import Contents
from ssole.doctor.scan import ChannelStatistics
from ssole.models.backbone import SMALL_IMAGE

MANY_IMAGES = 500_000  # from here on, a larger network is worth its cost
LARGE_GPU = 64 << 30  # bytes of memory that a ResNet-50 needs for eight views of 224 px
MIN_RUN_STEPS = 2000  # in fewer steps, a network hardly begins to learn
_FAR = 0.1  # difference of a mean or deviation above which the images' own values replace the recipe's


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Recipe, the reasons for it, and the command that trains with it."""

    recipe: str
    reasons: list[str]
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings by dotted name that fit the recipe to these images."""
    command: str = ""

    @property
    def config(self) -> PretrainConfig:
        """Config of the recipe with its overrides."""
        return load(self.recipe, **self.overrides)


def suggest(
    data: Spec, contents: Contents, images: int, device: torch.device, statistics: ChannelStatistics | None = None
) -> Suggestion:
    """Suggestion by the shorter side of the images, their number and the device.

    Args:
        data: data as the user gave it, for the command.
        images: number of images.
        statistics: channel statistics of the images; they become overrides if they are far from the recipe's.
    """
    side = contents.shorter_side.median
    recipe, reasons = _choose(data, side, images, device)
    overrides: dict[str, Any] = {}
    config = load(recipe)
    if recipe != "digits-m":
        if device.type != "cuda" and side > SMALL_IMAGE:  # larger views than the recipe's, as large as a CPU can afford
            overrides["augment.crops.0.size"] = SMALL_IMAGE
            reasons.append(f"views of {SMALL_IMAGE} px show the coarse structure; with a GPU, take imagenet100")
        overrides |= _length_overrides(config, images, reasons)
        overrides |= _colour_overrides(config, statistics, reasons)
    return Suggestion(recipe=recipe, reasons=reasons, overrides=overrides, command=_command(data, recipe, overrides))


def _choose(data: Spec, side: int, images: int, device: torch.device) -> tuple[str, list[str]]:
    if isinstance(data, str) and data == "digits-m":
        return "digits-m", ["it is made for these images"]
    gpu = device.type == "cuda"
    if side <= SMALL_IMAGE:
        size = f"the images are small (median shorter side {side} px)"
        return ("cifar10", [size, "there is a GPU"]) if gpu else ("cifar10-cpu", [size, "there is no GPU"])
    size = f"the images are large (median shorter side {side} px)"
    if not gpu:
        return "cifar10-cpu", [size, "without a GPU, training on views of 224 px would take too long"]
    if images >= MANY_IMAGES and torch.cuda.mem_get_info(device)[1] >= LARGE_GPU:
        return "imagenet1k", [size, f"{images:,} images are enough for a ResNet-50", "the GPU's memory is large enough"]
    return "imagenet100", [size, "there is a GPU"]


def _length_overrides(config: PretrainConfig, images: int, reasons: list[str]) -> dict[str, Any]:
    """A batch size that the images fill, and a number of steps large enough to learn something."""
    overrides: dict[str, Any] = {}
    batch = config.batch_size
    if images < 4 * batch:  # at least four different batches an epoch
        batch = 1 << max(1, (images // 4).bit_length() - 1)  # a power of two, and 2 at least, which the loss needs
        overrides["batch_size"] = batch
        reasons.append(f"{images:,} images are too few for batches of {config.batch_size}")
    steps = config.steps or config.epochs * max(1, images // batch)
    if steps < MIN_RUN_STEPS:
        overrides["steps"] = MIN_RUN_STEPS
        reasons.append(f"{config.epochs} epochs of so few images would be only {steps:,} steps")
    return overrides


def _colour_overrides(
    config: PretrainConfig, statistics: ChannelStatistics | None, reasons: list[str]
) -> dict[str, Any]:
    """Mean and deviation of the images, if the recipe's are far from them."""
    mean, std = config.augment.mean, config.augment.std
    if statistics is None or mean is None or std is None or len(statistics.mean) != len(mean):
        return {}
    measured, given = [*statistics.mean, *statistics.std], [*mean, *std]
    if max(abs(a - b) for a, b in zip(measured, given, strict=True)) <= _FAR or min(statistics.std) < 0.01:
        return {}
    reasons.append("the images' colours are far from the recipe's mean and standard deviation")
    return {
        "augment.mean": [round(value, 3) for value in statistics.mean],
        "augment.std": [round(value, 3) for value in statistics.std],
    }


def _command(data: Spec, recipe: str, overrides: dict[str, Any]) -> str:
    given = _data_arguments(data)
    name = recipe if given == ["DATA"] else PurePath(given[0]).stem or recipe
    words = ["ssole", "pretrain", "--data", *given, "--recipe", recipe, "--out", f"runs/{name}"]
    for setting, value in overrides.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{setting.replace('_', '-')}", *map(str, values)]
    return " ".join(word if word == "DATA" else shlex.quote(word) for word in words)


def _data_arguments(data: Spec) -> list[str]:
    """Words to type after --data; DATA stands for images in memory."""
    if isinstance(data, (str, os.PathLike)):
        return [os.fspath(data)]
    if isinstance(data, Sequence) and all(isinstance(part, (str, os.PathLike)) for part in data):
        return [os.fspath(part) for part in data]
    return ["DATA"]
