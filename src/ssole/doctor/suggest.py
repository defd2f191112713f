"""Which of the shipped recipes to begin with, and why."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch

from ssole.config import PretrainConfig, apply_overrides, from_dict, load_recipe
from ssole.data.base import Spec
from ssole.doctor.contents import Contents
from ssole.doctor.sample import ChannelStatistics
from ssole.models.backbone import SMALL_IMAGE

MANY = 500_000  # images, from which on a larger network pays
LARGE_GPU = 64 << 30  # bytes of memory, for eight views at 224 px through a ResNet-50
FEWEST_STEPS = 2000  # below which a network has hardly begun to learn
_FAR = 0.1  # difference of a channel's mean or deviation from the recipe's, beyond which its own are better


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe, why, and what to type."""

    recipe: str
    reasons: list[str]
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings by dotted name that fit the recipe to these images."""
    command: str = ""

    @property
    def config(self) -> PretrainConfig:
        """The recipe with its overrides."""
        return apply_overrides(from_dict(load_recipe(self.recipe)), self.overrides)


def suggest(
    data: Spec, contents: Contents, images: int, device: torch.device, statistics: ChannelStatistics | None = None
) -> Suggestion:
    """Choose by the shorter side, the number of images and the device.

    Args:
        data: what the user gave, for the command.
        images: how many there are.
        statistics: measured on the images; where they are far from the recipe's, they become overrides.
    """
    recipe, reasons = _choose(data, contents.shorter_side.median, images, device)
    overrides: dict[str, Any] = {}
    config = from_dict(load_recipe(recipe))
    if recipe != "digits-m":
        overrides |= _size_overrides(config, contents, device, reasons)
        overrides |= _length_overrides(config, images, reasons)
        overrides |= _colour_overrides(config, contents, statistics, reasons)
    return Suggestion(recipe=recipe, reasons=reasons, overrides=overrides, command=_command(data, recipe, overrides))


def _choose(data: Spec, side: int, images: int, device: torch.device) -> tuple[str, list[str]]:
    if isinstance(data, str) and data == "digits-m":
        return "digits-m", ["the recipe made for these images"]
    gpu = device.type == "cuda"
    if side <= SMALL_IMAGE:
        size = f"the images are small (median shorter side {side} px)"
        return ("cifar10", [size, "there is a GPU"]) if gpu else ("cifar10-cpu", [size, "there is no GPU"])
    size = f"the images are large (median shorter side {side} px)"
    if not gpu:
        return "cifar10-cpu", [size, "without a GPU, training on views of 224 px would take far too long"]
    if images >= MANY and torch.cuda.mem_get_info(device)[1] >= LARGE_GPU:
        return "imagenet1k", [size, f"{images:,} images are enough for a ResNet-50", "the GPU's memory is large enough"]
    return "imagenet100", [size, "there is a GPU"]


def _size_overrides(
    config: PretrainConfig, contents: Contents, device: torch.device, reasons: list[str]
) -> dict[str, Any]:
    """On a CPU, views of large images as large as one can afford."""
    if device.type == "cuda" or contents.shorter_side.median <= SMALL_IMAGE:
        return {}
    reasons.append(f"views of {SMALL_IMAGE} px see the coarse structure; on a GPU, take imagenet100")
    return {"augment.crops.0.size": SMALL_IMAGE}


def _length_overrides(config: PretrainConfig, images: int, reasons: list[str]) -> dict[str, Any]:
    """Batches that the images fill, and steps enough to learn something."""
    overrides: dict[str, Any] = {}
    batch = config.batch_size
    if images < 4 * batch:  # at least four different batches an epoch
        batch = 1 << max(1, (images // 4).bit_length() - 1)  # a power of two, and 2 at least, which the loss needs
        overrides["batch_size"] = batch
        reasons.append(f"a batch of {config.batch_size} is too large a share of {images:,} images")
    steps = config.steps or config.epochs * max(1, images // batch)
    if steps < FEWEST_STEPS:
        overrides["steps"] = FEWEST_STEPS
        reasons.append(f"{config.epochs} epochs of so few images would be {steps:,} steps only")
    return overrides


def _colour_overrides(
    config: PretrainConfig, contents: Contents, statistics: ChannelStatistics | None, reasons: list[str]
) -> dict[str, Any]:
    """The images' own normalisation, where the recipe's is far from it."""
    mean, std = config.augment.mean, config.augment.std
    if statistics is None or mean is None or std is None or len(statistics.mean) != len(mean):
        return {}
    measured, given = [*statistics.mean, *statistics.std], [*mean, *std]
    if max(abs(a - b) for a, b in zip(measured, given, strict=True)) <= _FAR or min(statistics.std) < 0.01:
        return {}
    reasons.append("colours are far from the recipe's mean and deviation")
    return {
        "augment.mean": [round(value, 3) for value in statistics.mean],
        "augment.std": [round(value, 3) for value in statistics.std],
    }


def _command(data: Spec, recipe: str, overrides: dict[str, Any]) -> str:
    given = _words(data)
    name = recipe if given == ["DATA"] else PurePath(given[0]).stem or recipe
    words = ["ssole", "pretrain", "--data", *given, "--recipe", recipe, "--out", f"runs/{name}"]
    for setting, value in overrides.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{setting.replace('_', '-')}", *map(str, values)]
    return " ".join(word if word == "DATA" else shlex.quote(word) for word in words)


def _words(data: Spec) -> list[str]:
    """The data as typed after --data; DATA stands for images in memory."""
    if isinstance(data, (str, os.PathLike)):
        return [os.fspath(data)]
    if isinstance(data, Sequence) and all(isinstance(part, (str, os.PathLike)) for part in data):
        return [os.fspath(part) for part in data]
    return ["DATA"]
