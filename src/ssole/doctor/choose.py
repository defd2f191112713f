"""Choice of a run's settings, where the user named no recipe: from the images, the machine and the time it may take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ssole import distributed
from ssole.config import DEFAULT_RECIPE, PretrainConfig, apply_overrides, from_dict, load, to_dict
from ssole.config.budget import budget_seconds
from ssole.data.base import Spec, evenly_spaced
from ssole.data.sources import open_source
from ssole.doctor.contents import contents
from ssole.doctor.examine import with_normalisation
from ssole.doctor.scan import SAMPLE_IMAGES, Sample, draw_sample, scan
from ssole.doctor.suggest import ANY_VIEWS, Budgeted, Suggestion, channel_overrides, suggest
from ssole.errors import DataError
from ssole.memory import free_memory
from ssole.runtime import resolve_device, torch_state
from ssole.training.dry_run import DryRun
from ssole.training.settings import require_named

_LARGEST_CROP = 512  # pixels; photographs are decoded no larger than the largest views can use
_TRIAL_BATCH = 32  # images of the steps that are measured on a CPU, where their time grows with the batch
_TRIAL_PART, _TRIAL_SECONDS = 0.02, 10.0  # time for measuring one network: share of the budget, and seconds at most
_INPUTS = {"data", "budget", "device", "channels"}  # settings on which the choice depends; it sets only others
_SPARE = 0.5  # share of the free memory that a step of a trial may take


def suggest_for(data: Spec, given: Mapping[str, Any], *, spent: float = 0.0) -> Suggestion:
    """Settings of a run without a recipe, with reasons: :func:`ssole.doctor.suggest.suggest` on 256 of the images.

    `given` are settings by dotted name that the user has fixed; the last reason names them. With a `budget`, of which
    `spent` seconds are gone already, networks are tried on this machine for a few steps each. `device` and `channels`
    count for the choice too. It is a DataError if no image can be read, and a ConfigError if the device does not exist
    or the budget is no time.
    """
    budget, channels = given.get("budget"), given.get("channels")
    begin, on = time.monotonic() - spent, resolve_device(given.get("device", "auto"))
    seconds = math.inf if budget is None else budget_seconds(budget)
    source = open_source(data, split="train")
    found = scan(source, evenly_spaced(len(source), SAMPLE_IMAGES), progress=False, channels=channels)
    if not found.readable:
        reason = f": {found.unreadable[0].id}: {found.unreadable[0].reason}" if found.unreadable else ""
        raise DataError(f"{source.name} holds no image that can be read{reason}")
    budgeted = None
    if budget is not None:
        sample = draw_sample(source, found.readable, shrink_to=_LARGEST_CROP, channels=channels)
        limit = min(_TRIAL_SECONDS, _TRIAL_PART * seconds)
        measure = partial(_step_seconds, sample=sample, device=on, limit=limit)
        budgeted = Budgeted(text=budget, seconds=seconds - (time.monotonic() - begin), step_seconds=measure)
    free = free_memory(on)
    about = contents(found.readable)
    choice = suggest(data, about, len(source), on, budget=budgeted, channels=channels, memory=free)
    held = sorted(set(given) - _INPUTS)
    return replace(choice, reasons=[*choice.reasons, f"as given: {', '.join(held)}"]) if held else choice


def choose(
    data: Spec | None, recipe: str | PathLike[str] | None, overrides: Mapping[str, Any], *, spent: float = 0.0
) -> tuple[str, PretrainConfig]:
    """Name and config, with overrides, of a recipe: the given one, else one that suits the data, else digits-m.

    `spent` and errors are as for :func:`suggest_for`; also a ConfigError for a recipe that names images behind a URL.
    """
    if recipe is None and (data is None or (isinstance(data, str) and data == DEFAULT_RECIPE)):
        recipe, overrides = DEFAULT_RECIPE, {**channel_overrides(overrides.get("channels")), **overrides}
    if recipe is not None:
        config = load(recipe, **overrides)
        require_named(config, {*overrides, *(["data"] if data is not None else [])})
        return Path(recipe).stem, config
    assert data is not None
    # raises for mistyped names before any image is read; ANY_VIEWS, as the values may suit another recipe
    load(DEFAULT_RECIPE, **{**channel_overrides(overrides.get("channels")), **ANY_VIEWS, **overrides})

    def settings() -> dict[str, Any]:
        choice = suggest_for(data, overrides, spent=spent)
        return {"recipe": choice.recipe, "config": to_dict(choice.config), "reasons": choice.reasons}

    with distributed.processes(overrides.get("process_timeout", PretrainConfig.process_timeout)):
        chosen = distributed.on_rank_0(settings)  # others would open the images, and measure steps, at the same time
    return chosen["recipe"], apply_overrides(from_dict(chosen["config"]), {"reasons": chosen["reasons"], **overrides})


def _step_seconds(config: PretrainConfig, *, sample: Sample, device: torch.device, limit: float) -> float:
    """Seconds of a step on this process's part of a whole batch, extrapolated from a few steps on smaller batches."""
    config = replace(config, batch_size=max(2, config.batch_size // distributed.launch().world_size))
    with torch_state(deterministic=config.deterministic):
        trial = DryRun(
            with_normalisation(config, sample), lambda size: sample.batch(size, device), device, seconds=limit
        )
        # Launching its kernels takes a GPU as long for few images as for many.
        most = config.batch_size if device.type == "cuda" else min(_TRIAL_BATCH, config.batch_size)
        batch = trial.grow(most, most_bytes=_SPARE * free_memory(device))
        return statistics.median(trial.repeat(batch))
