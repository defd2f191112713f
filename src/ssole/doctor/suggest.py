"""Suggestion of settings for given images and a machine, with reasons and the command to type."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from ssole.config import PretrainConfig, apply_overrides, load
from ssole.data.base import Spec
from ssole.data.describe import are_paths
from ssole.doctor.contents import Contents
from ssole.errors import quoted, without_secrets
from ssole.files import free_path
from ssole.models.backbone import SMALL_IMAGE
from ssole.progress import data_size, duration
from ssole.training.needs import step_bytes

_VIEWS = 4  # of each image: of 2, 3, 4 and 8 they had the best means at equal computation (docs/experiments.md)
MANY_IMAGES = 500_000  # from here on, a larger network is worth its cost
LARGE_GPU = 64 << 30  # bytes of memory that a ResNet-50 needs for eight views of 224 px
MIN_RUN_STEPS = 2000  # in fewer steps, a network hardly begins to learn
_FEW_STEPS, _SMALLEST_BATCH = 1000, 32  # in fewer steps, smaller batches learn more, down to this size
_SMALL_VIEWS, _MEDIUM_VIEWS = 32, 128  # pixels of views that are smaller than the recipe's own
_UNCOMPILED = 600.0  # seconds; in less, compiling the network, half a minute or more, does not pay
_WARMUP_PART = 0.1  # of a run, at most
_FILLED = 0.8  # largest share of the free memory for a step, whose estimate leaves out workspaces and gaps
_COUNT = "augment.crops.0.count"
ANY_VIEWS = {"augment.crops.0.size": 224}
"""Override by which the default recipe accepts settings that are made for large images."""

Overrides = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Recipe, the reasons for it, and the command that trains with it."""

    recipe: str
    reasons: list[str]
    overrides: Overrides = field(default_factory=dict)
    """Settings by dotted name that fit the recipe to these images."""
    command: str = ""

    @property
    def config(self) -> PretrainConfig:
        """Config of the recipe with its overrides."""
        return load(self.recipe, **self.overrides)

    def having(self, overrides: Overrides, reason: str) -> Suggestion:
        """Copy with further settings, and the reason for them."""
        return replace(self, overrides=self.overrides | overrides, reasons=[*self.reasons, reason])


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """Time for a run, and how fast the machine is."""

    text: str
    """The budget as the user wrote it, such as 2h."""
    seconds: float
    """What is left of it."""
    step_seconds: Callable[[PretrainConfig], float]
    """Function that measures the time of a step of a config."""


def suggest(
    data: Spec,
    contents: Contents,
    images: int,
    device: torch.device,
    *,
    budget: Budgeted | None = None,
    channels: int | None = None,
    memory: float = math.inf,
    max_unreadable: float = PretrainConfig.max_unreadable,
) -> Suggestion:
    """Suggestion by the shorter side of the images, their number, the device and, if there is one, the budget.

    Without a budget, the device decides on the recipe. With one, recipes and sizes of views are tried from the cheapest
    to the most expensive, while 2,000 steps fit. If fewer than 1,000 steps of the choice fit, batches are made smaller.
    Each image has four views. If they do not fit into memory it has fewer, and if two do not, batches are smaller.

    Args:
        data: as the user gave them, for the command.
        contents, images: what the doctor found, and the number of images.
        channels: number of channels of images that are not photographs.
        memory: bytes that are free on the device.
        max_unreadable: share of unreadable images that must be allowed.
    """
    side = contents.shorter_side.median
    reasons = [f"the images are {'small' if side <= SMALL_IMAGE else 'large'} (median shorter side {side} px)"]
    shared = channel_overrides(channels)
    if "preset" in shared:
        reasons.append(f"preset {shared['preset']}: {channels} channels, none of which is known to be a colour")
    if max_unreadable > PretrainConfig.max_unreadable:
        shared["max_unreadable"] = max_unreadable
        reasons.append(f"up to {100 * max_unreadable:g} % of the images may be unreadable, so that training begins")
    candidates = _candidates(side, images, device)
    if isinstance(data, str) and data == "digits-m":
        choice = Suggestion(recipe="digits-m", reasons=["it is made for these images"], overrides=shared)
    elif budget is None:
        recipe, why = _by_device(candidates, side, images, device)
        choice = Suggestion(recipe=recipe, reasons=reasons + why, overrides=shared)
        choice = _with_views(_with_length(choice, images), device, memory, long=True)
    else:
        choice = _by_budget(budget, candidates, shared, images, device, memory)
        choice = replace(choice, reasons=reasons + choice.reasons)
    return replace(choice, command=_command(data, choice.recipe, choice.overrides))


def channel_overrides(channels: int | None) -> Overrides:
    """Settings for images with so many channels; None for photographs."""
    if channels in (None, 3):
        return {} if channels is None else {"channels": channels}
    return {"channels": channels, "preset": "grey" if channels == 1 else "channels"}


def _by_device(
    candidates: Sequence[tuple[str, int]], side: int, images: int, device: torch.device
) -> tuple[str, list[str]]:
    """Recipe for a run without a budget, and the reasons: the most expensive one with a GPU, else the cheapest."""
    if device.type != "cuda":
        slow = "there is no GPU" if side <= SMALL_IMAGE else "without a GPU, views of 224 px would take too long"
        return candidates[0][0], [slow]
    why = ["there is a GPU"]
    if candidates[-1][0] == "photos-resnet50":
        why += [f"{images:,} images are enough for a ResNet-50", "the GPU's memory is large enough"]
    return candidates[-1][0], why


def _candidates(side: int, images: int, device: torch.device) -> list[tuple[str, int]]:
    """Recipes and sizes of their views that suit images of this size, from the cheapest to the most expensive."""
    if side <= SMALL_IMAGE:
        own = max(_SMALL_VIEWS, side // 8 * 8)  # no larger than the images
        sizes = sorted({_SMALL_VIEWS, own})
        return [*(("small-images", size) for size in sizes), ("small-images-resnet18", own)]
    found = [("photos-fast", _SMALL_VIEWS), ("photos-fast", SMALL_IMAGE), ("photos", _MEDIUM_VIEWS), ("photos", 224)]
    if images >= MANY_IMAGES and device.type == "cuda" and torch.cuda.mem_get_info(device)[1] >= LARGE_GPU:
        found.append(("photos-resnet50", 224))
    return found


def _by_budget(
    budget: Budgeted,
    candidates: Sequence[tuple[str, int]],
    shared: Overrides,
    images: int,
    device: torch.device,
    memory: float,
) -> Suggestion:
    """Suggestion for a budget: the most expensive candidate of which enough steps fit; its reasons have the figures."""
    chosen: tuple[Suggestion, float] | None = None
    measured = []
    for recipe, size in candidates:
        overrides = {**shared, "augment.crops.0.size": size, "budget": budget.text}
        tried = _with_batch(Suggestion(recipe=recipe, reasons=[], overrides=overrides), images)
        tried = _with_views(tried, device, memory)
        seconds = budget.step_seconds(tried.config)
        steps = max(0, int(budget.seconds / seconds))
        what = f"{recipe} with views of {size} px: {seconds:.2g} s a step, {steps:,} steps fit into {budget.text}"
        few = steps < MIN_RUN_STEPS
        measured.append(what + (f", and {MIN_RUN_STEPS:,} are wanted" if few else ""))
        if chosen is None or not few:
            chosen = tried, seconds
        if few:  # more expensive ones are not measured: even fewer of their steps would fit
            break
    assert chosen is not None  # the first candidate is always taken
    choice, seconds = chosen
    return _for_few_steps(replace(choice, reasons=measured + choice.reasons), budget, seconds)


def _with_views(choice: Suggestion, device: torch.device, memory: float, *, long: bool = False) -> Suggestion:
    """Suggestion with a number of views: the recipe's in a `long` run, else four; fewer if memory does not suffice."""
    config = choice.config
    wanted = config.augment.views if long else _VIEWS
    reason = f"{wanted} views of each image, as published for so many images and epochs"
    if wanted == _VIEWS:
        reason = f"{_VIEWS} views of each image: of 2 to 8, they had the best means at equal time, on small images"
    choices = [(wanted, config.batch_size)]
    choices += [(views, config.batch_size) for views in range(min(wanted, _VIEWS + 1) - 1, 1, -1)]
    while choices[-1][1] >= 2 * _SMALLEST_BATCH:
        choices.append((2, choices[-1][1] // 2))
    for views, batch in choices:  # if none fits, the last and smallest is taken
        needed = step_bytes(apply_overrides(config, {_COUNT: views, "batch_size": batch}), device)
        if needed is None or needed <= _FILLED * memory:
            break
    overrides: Overrides = {} if views == config.augment.views else {_COUNT: views}
    choice = choice.having(overrides | ({} if batch == config.batch_size else {"batch_size": batch}), reason)
    if (views, batch) == choices[0]:
        return choice
    return choice.having({}, f"{views} views of {batch} images instead, because {data_size(memory)} of memory are free")


def _for_few_steps(choice: Suggestion, budget: Budgeted, seconds: float) -> Suggestion:
    """Suggestion for a budget of few steps of so many seconds: smaller batches, a short warmup, and no compiling."""
    config = choice.config
    batch, steps = config.batch_size, max(0.0, budget.seconds / seconds)  # the examination may have taken all of it
    while steps < _FEW_STEPS and batch >= 2 * _SMALLEST_BATCH:
        batch, steps = batch // 2, 2 * steps
    if batch < config.batch_size:
        reason = f"batches of {batch} instead of {config.batch_size}: about {int(steps):,} steps instead of fewer"
        choice = choice.having({"batch_size": batch}, reason)
    if config.optim.warmup_steps > (warmup := int(_WARMUP_PART * steps)):
        choice = choice.having({"optim.warmup_steps": warmup}, f"a warmup of {warmup} steps, a tenth of the run")
    if budget.seconds < _UNCOMPILED:
        reason = f"compiling the network does not pay in {duration(budget.seconds)}"
        choice = choice.having({"compile": "never"}, reason)
    return choice


def _with_batch(choice: Suggestion, images: int) -> Suggestion:
    """Suggestion with a smaller batch size for few images, so that an epoch has at least four batches."""
    batch = choice.config.batch_size
    if images >= 4 * batch:
        return choice
    # a power of two, and 2 at least, which the loss needs
    smaller = 1 << max(1, (images // 4).bit_length() - 1)
    return choice.having({"batch_size": smaller}, f"{images:,} images are too few for batches of {batch}")


def _with_length(choice: Suggestion, images: int) -> Suggestion:
    """Suggestion with a batch size that the images fill, and a number of steps large enough to learn something."""
    choice = _with_batch(choice, images)
    config = choice.config
    steps = config.steps or config.epochs * max(1, images // config.batch_size)
    if steps >= MIN_RUN_STEPS:
        return choice
    reason = f"{config.epochs} epochs of so few images would be only {steps:,} steps"
    return choice.having({"steps": MIN_RUN_STEPS}, reason)


def _command(data: Spec, recipe: str, overrides: Overrides) -> str:
    """Command to type. DATA stands for images in memory, and URLs lose passwords and queries, as everywhere."""
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    given = [without_secrets(os.fspath(path)) for path in data] if are_paths(data) else ["DATA"]
    # a pattern or .. may leave no name
    name = "" if given == ["DATA"] else re.sub(r"[^\w.]+", "-", PurePath(given[0]).stem).strip(".-")
    out = free_path(Path("runs", name or recipe)).as_posix()
    words = ["ssole", "pretrain", "--data", *given, "--recipe", recipe, "--out", out]
    for setting, value in overrides.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{setting.replace('_', '-')}", *map(str, values)]
    return " ".join(word if word == "DATA" else quoted(word) for word in words)
