"""Estimate of a run's time and memory, from a few of its training steps on the images themselves."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.config import ConfigError, PretrainConfig
from ssole.config.budget import budget_seconds
from ssole.data.store import default_memory_limit
from ssole.doctor.contents import Contents
from ssole.doctor.scan import Sample
from ssole.memory import total_memory
from ssole.runtime import resolve_precision, torch_state
from ssole.training.checkpoint import MOST_CHECKPOINTS
from ssole.training.dry_run import TRIAL_SECONDS, DryRun
from ssole.training.feed import make_plan
from ssole.training.needs import checkpoint_bytes

_SPARE = 0.5  # share of the available memory that a step of the trial may take


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Quantiles of measurements: 10 % (low), 50 % (median) and 90 % (high)."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Quantiles of these values."""
        low, median, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        return cls(low=low, median=median, high=high)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory of a run, extrapolated from a few steps: it tells minutes from days, not 10 minutes from 12."""

    device: str
    precision: str
    steps: int
    batch_size: int
    views: int
    """Views of each image."""
    step_seconds: Quantiles
    decode_seconds: float
    """Time for decoding every image once; decoded images then stay in memory or in the cache."""
    compile_seconds: float
    """Time for compiling the encoder; 0 if the run does not compile it, or if only part of a batch was measured."""
    seconds: Quantiles
    """Time of the whole run."""
    steps_measured: int
    batch_measured: int
    """Images in a measured step: fewer than `batch_size` if a whole batch would take too much time or memory."""
    memory_bytes: int
    """Peak memory: of the process on a CPU, of the tensors on a GPU."""
    memory_available: int
    disk_bytes: int
    """Disk for checkpoints and final weights, at least."""
    disk_available: int
    """Free space of the disk that the working folder is on."""


def estimate(
    config: PretrainConfig,
    sample: Sample,
    contents: Contents,
    images: int,
    device: torch.device,
    *,
    labels: NDArray[np.int64] | None = None,
) -> Estimate:
    """Estimate of a run of `config` over this number of images, with these labels for a loss that needs them.

    A budget of time is filled by as many steps as fit. A ConfigError if the recipe's network cannot be built or does
    not accept its images; a DataError if they are fewer than a batch.
    """
    plan = make_plan(config, images)
    available = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()
    draw = partial(sample.batch, device=device)
    try:
        with torch_state(deterministic=config.deterministic):
            trial = DryRun(config, draw, device, labels=labels, images=images, seconds=TRIAL_SECONDS)
            batch = trial.grow(config.batch_size, most_bytes=_SPARE * available)
            if batch == config.batch_size and trial.learner.wants_compiling(plan.total):
                trial.compile()
            times = trial.repeat(batch)
    except torch.OutOfMemoryError:
        raise
    except (ConfigError, TypeError, AssertionError, RuntimeError, FloatingPointError) as error:  # of timm, or the loss
        raise ConfigError(f"{config.model.backbone} does not run with the recipe's settings: {error}") from error
    decode_seconds = min(images, plan.total * config.batch_size) / sample.decode.value
    preparation, steps = decode_seconds + trial.compile_seconds, plan.total
    if config.budget is not None:
        steps = max(1, int((budget_seconds(config.budget) - preparation) / np.median(times)))
    held = _held_bytes(sample, contents, images, config.batch_size) if device.type == "cpu" else 0
    return Estimate(
        device=str(device),
        precision=str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch."),
        steps=steps,
        batch_size=config.batch_size,
        views=config.augment.views,
        step_seconds=Quantiles.of(times),
        decode_seconds=decode_seconds,
        compile_seconds=trial.compile_seconds,
        seconds=Quantiles.of([steps * step + preparation for step in times]),
        steps_measured=len(times),
        batch_measured=batch,
        memory_bytes=int(trial.memory(config.batch_size)) + held,
        memory_available=available,
        disk_bytes=checkpoint_bytes(trial.learner.modules, MOST_CHECKPOINTS),
        disk_available=shutil.disk_usage(".").free,
    )


def _held_bytes(sample: Sample, contents: Contents, images: int, batch: int) -> int:
    """Bytes of the decoded images in memory: all if they share a size and fit, else three batches (two are ahead)."""
    one = max(image.nbytes for image in sample.images)
    return one * (images if contents.one_size and images * one <= default_memory_limit() else 3 * batch)
