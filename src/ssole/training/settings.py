"""Settings that are measured before a run begins: mean and deviation of its images, and steps of a budget of time."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, to_dict
from ssole.config.budget import budget_seconds
from ssole.data.describe import describe, why_not_reopened
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.progress import say
from ssole.training.feed import make_plan
from ssole.training.initial import with_absolute_init

if TYPE_CHECKING:
    from ssole.data.base import Spec

_LEAST_STEPS = 10  # of a run with a budget of time


def agreed_config(config: PretrainConfig, progress: bool) -> PretrainConfig:
    """Config of the first process, for all: settings measured by each could differ. Its reasons are printed."""

    def settings() -> dict[str, Any]:
        say_reasons(config, enabled=progress)
        return to_dict(with_absolute_init(config))

    return from_dict(distributed.on_rank_0(settings))


def require_named(config: PretrainConfig, given: Collection[str]) -> None:
    """Raise a ConfigError for a URL that a recipe names: only those of settings that the user has given are fetched."""
    for name in ("data", "eval_data"):
        if name not in given and (reason := why_not_reopened(getattr(config, name))) is not None:
            raise ConfigError(f"{name} of the recipe is {reason}: give --{name.replace('_', '-')} beside the recipe")


def eval_data_to_open(config: PretrainConfig, run: Path, given: Spec | None) -> Spec | None:
    """The `eval_data` that a run is measured on: those given, which must match the config's own, or else its own.

    Other images, or none although the config's own are behind a URL, are a ConfigError.
    """
    if given is None:
        if (reason := why_not_reopened(config.eval_data)) is not None:
            raise ConfigError(
                f"{run} is measured on {reason}: pass them again (--eval-data, or ssole.resume(run, eval_data=URL))"
            )
        return config.eval_data
    if describe(given) != config.eval_data:
        own = config.eval_data
        if isinstance(own, str) and os.path.isabs(own) and not os.path.exists(own):  # such as a folder that was moved
            warnings.warn(f"{own} is gone: {describe(given)} is taken to hold the same images", stacklevel=2)
            return given
        raise ConfigError(f"{run} is measured on {config.eval_data}, and other images are given: {describe(given)}")
    return given


def say_reasons(config: PretrainConfig, *, enabled: bool) -> None:
    """Print why the settings of a config were chosen, where they were."""
    if config.reasons:
        lines = ("settings that suit these images and this machine:", *config.reasons)
        say("\n- ".join(lines), enabled=enabled)


def with_measurements(
    config: PretrainConfig, store: ImageStore, begin: float, step_seconds: Callable[..., float]
) -> PretrainConfig:
    """Config with the settings that are measured on images and machine, the same for all processes.

    `begin` is when a budget of time began, and `step_seconds(config, limit=seconds)` measures a step.
    """

    def measure() -> dict[str, Any]:
        full = with_statistics(config, store)
        total = make_plan(full, len(store)).total  # raises an error for too few images
        if full.budget is not None:
            full = _with_steps(full, len(store), time.monotonic() - begin, step_seconds)
            total = full.steps or total
        warn_of_warmup(total, full.optim.warmup_steps, "the run")
        return to_dict(full)

    return from_dict(distributed.on_rank_0(measure))


def warn_of_warmup(steps: int, warmup: int, what: str) -> None:
    """Warn if steps are so few that the learning rate only rises."""
    if steps <= warmup:
        warnings.warn(
            f"{what} has {steps} steps, and its learning rate rises for {warmup} (warmup_steps): it never gets to its "
            "peak, nor falls",
            stacklevel=4,
        )


def with_statistics(config: PretrainConfig, store: ImageStore) -> PretrainConfig:
    """Config with mean and std measured on the images if it leaves them open."""
    if config.augment.mean is not None:
        return config
    mean, std = store.channel_statistics()
    if min(std) == 0:
        raise DataError(
            f"channel {std.index(0)} of {store.source.name} has the same value everywhere, so it cannot be normalised: "
            "leave it out, or give augment.mean and augment.std"
        )
    return apply_overrides(config, {"augment.mean": mean, "augment.std": std})


def _with_steps(
    config: PretrainConfig, images: int, spent: float, step_seconds: Callable[..., float]
) -> PretrainConfig:
    """Config with the number of steps that the rest of its budget of time allows, after `spent` seconds.

    Fewer than an epoch are a warning, and too few to learn anything a ConfigError.
    """
    assert config.budget is not None
    left = budget_seconds(config.budget) - spent
    share = dataclasses.replace(config, batch_size=config.batch_size // distributed.launch().world_size)
    seconds = step_seconds(share, limit=left / 20)
    steps, epoch = int(left / seconds), images // config.batch_size
    facts = (
        f"a budget of {config.budget} is {max(0, steps)} steps of {seconds:.2g} s, after {spent:.0f} s of preparation"
    )
    if steps < _LEAST_STEPS:
        raise ConfigError(f"{facts}: give more time")
    if steps < epoch:
        warnings.warn(f"{facts}: only part of the {images:,} images will be seen, once", stacklevel=5)
    return dataclasses.replace(config, steps=steps)
