"""Dry run of a config: a few training steps at a learning rate of 0, with their time and memory.

The doctor's estimate, the plan of a comparison and runs with a budget of time all measure by it.
"""

from __future__ import annotations

import os
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssole.config import PretrainConfig
from ssole.data.store import ImageStore
from ssole.runtime import forget_peak_memory, peak_memory, synchronize, torch_state, untuned_convolutions
from ssole.training.graph import wants_graph
from ssole.training.needs import saved_bytes
from ssole.training.step import Learner
from ssole.views.geometry import ImageBatch

TRIAL_SECONDS = 20.0  # approximate limit for the whole trial
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 3, 20
SMALLEST_BATCH = 4  # images in the first step, from which the batch grows
_WORKSPACE = 1.15  # factor for the temporary memory of convolutions, which is not counted
_PROCESS = 1 << 30  # bytes of a process that trains, for systems that cannot tell

DrawBatch: TypeAlias = "Callable[[int], tuple[ImageBatch, torch.Tensor]]"
"""Function from a batch size to images on the training device and their ids."""


class DryRun:
    """Dry run of a config. Its steps are those of a run, by the same :class:`~ssole.training.step.Learner`.

    The learning rate is 0 because the loss might overflow at the recipe's own rate without its warmup. On a GPU, steps
    are launched: parts of them are timed, which a CUDA graph forbids. Small steps of a run may be faster.

    Batches come from `draw`, `seconds` limits the whole trial approximately, and the other arguments are a learner's.
    """

    def __init__(
        self,
        config: PretrainConfig,
        draw: DrawBatch,
        device: torch.device,
        *,
        loss: nn.Module | None = None,
        backbone: nn.Module | None = None,
        labels: NDArray[np.int64] | None = None,
        images: int | None = None,
        seconds: float = TRIAL_SECONDS,
    ) -> None:
        self._draw, self._device, self._batch_size = draw, device, config.batch_size
        self._augment = config.augment
        self._limit = seconds
        self._measures_peak = forget_peak_memory(device)  # it may be that of an earlier trial
        self._view_bytes = 4 * config.input_channels * config.augment.pixels  # of an image's views, in float32
        launched = replace(config, cuda_graph="never")
        self.learner = Learner(launched, device, loss=loss, backbone=backbone, labels=labels, images=images)
        wants_graph(config, device, self.learner.optimizer)  # an error that the run would have
        this = weakref.ref(self)  # a cycle would keep the learner's memory on a GPU until it is collected
        self.learner.optimizer.register_step_pre_hook(lambda *_: cast(DryRun, this())._before_update())
        self.compile_seconds = 0.0
        self._saved: dict[int, int] = {}  # by batch size: bytes kept for the backward pass
        self._used: dict[int, int] = {}  # by batch size: peak of the bytes in use up to the update
        self._update_begin, self._in_use = 0.0, 0
        self._begin = time.perf_counter()

    def step(self, batch: int, *, early: bool = False) -> tuple[float, float]:
        """Take a step on a batch of this size: seconds for views, network and loss, and seconds for the optimizer.

        `early` is as for a learner. The memory of such a step is not measured, because later ones take more.
        """
        images, ids = self._draw(batch)
        if self._device.type == "cuda":  # the first step of a size also tries cuDNN's algorithms, with memory of theirs
            torch.cuda.reset_peak_memory_stats(self._device)
        compiled = self.compile_seconds > 0  # counting would compile the encoder again
        counting: AbstractContextManager[dict[int, int]]
        counting = nullcontext({}) if compiled else saved_bytes(self.learner.encoder)
        synchronize(self._device)
        begin = time.perf_counter()
        with counting as saved:
            self.learner.step(images, ids, epoch=0, lr=0.0, early=early)
        synchronize(self._device)
        end = time.perf_counter()
        if not (compiled or early):
            self._saved[batch] = sum(saved.values()) + batch * self._view_bytes
        if not early:
            self._used[batch] = self._in_use
        return self._update_begin - begin, end - self._update_begin

    def _before_update(self) -> None:
        synchronize(self._device)
        self._update_begin = time.perf_counter()
        self._in_use = (peak_memory(self._device) if self._measures_peak else _process_memory()) or _PROCESS

    def grow(self, most: int, *, most_bytes: float) -> int:
        """Largest batch to measure on: `most` images, or as many as time and memory allow."""
        batch = min(SMALLEST_BATCH, most)
        while batch < most:
            with untuned_convolutions():
                # The faster of two steps: the first has to set things up, and other work may slow down either.
                compute, update = min(self.step(batch), self.step(batch))
            larger = min(2 * batch, most)
            seconds = (1 + MIN_TRIAL_STEPS) * (compute * larger / batch + update)
            if seconds > self._seconds_left or self.memory(larger) > most_bytes:
                break
            batch = larger
        return batch

    def compile(self) -> None:
        """Compile the encoder for a whole batch, as the run does. This does not count towards the trial's time."""
        self.step(self._batch_size)  # counts the bytes for the backward pass, which is not possible once compiled
        begin = time.perf_counter()
        compiled = self.learner.compile()
        seconds = time.perf_counter() - begin
        self._begin += seconds
        self.compile_seconds = seconds if compiled else 0.0

    def repeat(self, batch: int) -> list[float]:
        """Times of steps on whole batches, from several steps on `batch` images, after one step that warms up.

        Only the optimizer's part does not grow with the number of images. Of a run whose first part has smaller crops,
        each is the mean over the run, from a step of either kind.
        """
        self._mean_step(batch)
        taken: list[tuple[float, float]] = []
        while len(taken) < MIN_TRIAL_STEPS or (len(taken) < MAX_TRIAL_STEPS and self._seconds_left > 0):
            taken.append(self._mean_step(batch))
        return [compute * self._batch_size / batch + update for compute, update in taken]

    def _mean_step(self, batch: int) -> tuple[float, float]:
        """Seconds of a mean step of the run, in two parts as :meth:`step` returns them."""
        compute, update = self.step(batch)
        if self._augment.early is None:
            return compute, update
        early_compute, early_update = self.step(batch, early=True)
        share = self._augment.early_share
        return compute + share * (early_compute - compute), update + share * (early_update - update)

    @property
    def _seconds_left(self) -> float:
        return self._limit - (time.perf_counter() - self._begin)

    def memory(self, batch: int) -> float:
        """Bytes in use in a step on a batch of this size, extrapolated from the largest batch so far.

        The bytes kept for the backward pass grow linearly with the batch, so two batches give the slope, or one and 0.
        """
        small, large = min(self._saved) if len(self._saved) > 1 else 0, max(self._saved)
        slope = (self._saved[large] - self._saved.get(small, 0)) / (large - small)
        return self._used[large] + _WORKSPACE * slope * (batch - large)


def step_seconds(
    config: PretrainConfig,
    store: ImageStore,
    device: torch.device,
    *,
    loss: nn.Module | None = None,
    backbone: nn.Module | None = None,
    steps: int | None = None,
    limit: float = TRIAL_SECONDS,
) -> float:
    """Median time of a step of a run on a whole batch of a store's images.

    A run of so many `steps` that it is compiled is measured compiled; None for never. After `limit` seconds no further
    step is taken; the first three are taken in any case.
    """
    ids = torch.arange(config.batch_size) % len(store)
    images, ids = store.get(ids), ids.to(device)
    batch = images.to(device) if isinstance(images, torch.Tensor) else [image.to(device) for image in images]
    with torch_state(deterministic=config.deterministic):
        trial = DryRun(
            config,
            lambda _: (batch, ids),
            device,
            loss=loss,
            backbone=backbone,
            labels=store.labels,
            images=len(store),
            seconds=limit,
        )
        if steps is not None and trial.learner.wants_compiling(steps):
            trial.compile()
        return statistics.median(trial.repeat(config.batch_size))


def _process_memory() -> int | None:
    """Bytes of memory that this process has now; None where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None
