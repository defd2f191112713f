"""Estimate of a run's time and memory, from a few of its training steps on the images themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.doctor.contents import Contents
from ssole.doctor.scan import Sample, synchronize
from ssole.runtime import resolve_precision, total_memory
from ssole.training.feed import make_plan
from ssole.training.step import Learner

TRIAL_SECONDS = 20.0  # approximate limit for the whole trial
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 3, 20
SMALLEST_BATCH = 4  # images in the first step, from which the batch grows
_SPARE = 0.5  # share of the available memory that a step of the trial may take
_WORKSPACE = 1.15  # factor for the temporary memory of convolutions, which is not counted
_PROCESS = 1 << 30  # bytes of a process that trains, for systems that cannot tell


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
    """Time and memory of a run, extrapolated from a few steps: good for minutes or days, not for 10 or 12 minutes."""

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


def estimate(config: PretrainConfig, sample: Sample, contents: Contents, images: int, device: torch.device) -> Estimate:
    """Estimate of a run of `config` over this number of images.

    Raises:
        ConfigError: the recipe's network cannot be built, or does not accept its images.
        DataError: fewer images than a batch.
    """
    plan = make_plan(config, images)
    available = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()
    with _as_config_errors(config), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        trial = Trial(config, sample, device)
        batch = trial.grow(config.batch_size, most_bytes=_SPARE * available)
        if batch == config.batch_size and trial.learner.wants_compiling(plan.total):
            trial.compile()
        taken = trial.repeat(batch)
    share = config.batch_size / batch
    times = [compute * share + update for compute, update in taken]
    decode_seconds = min(images, plan.total * config.batch_size) / sample.decode.value
    preparation = decode_seconds + trial.compile_seconds
    memory = trial.memory(config.batch_size)
    if device.type == "cpu":
        memory += _held_bytes(sample, contents, images, config.batch_size)
    return Estimate(
        device=str(device),
        precision=str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch."),
        steps=plan.total,
        batch_size=config.batch_size,
        views=config.augment.views,
        step_seconds=Quantiles.of(times),
        decode_seconds=decode_seconds,
        compile_seconds=trial.compile_seconds,
        seconds=Quantiles.of([plan.total * step + preparation for step in times]),
        steps_measured=len(taken),
        batch_measured=batch,
        memory_bytes=int(memory),
        memory_available=available,
    )


class Trial:
    """Trial of a recipe: training steps at a learning rate of 0, with their time and memory.

    The steps are those of a run, by the same :class:`~ssole.training.step.Learner`. The learning rate is 0 because the
    loss might overflow at the recipe's own rate without its warmup.
    """

    def __init__(self, config: PretrainConfig, sample: Sample, device: torch.device) -> None:
        self._sample, self._device, self._batch_size = sample, device, config.batch_size
        floats = sum(crop.count * config.input_channels * crop.size**2 for crop in config.augment.crops)
        self._view_bytes = 4 * floats  # of an image's views, in float32
        self.learner = Learner(config, device)
        self.learner.optimizer.register_step_pre_hook(lambda *_: self._before_update())
        self.compile_seconds = 0.0
        self._saved: dict[int, int] = {}  # by batch size: bytes kept for the backward pass
        self._used: dict[int, int] = {}  # by batch size: bytes in use after the backward pass
        self._update_begin, self._in_use = 0.0, 0
        self._begin = time.perf_counter()

    def step(self, batch: int) -> tuple[float, float]:
        """Take a step on a batch of this size: seconds for views, network and loss, and seconds for the optimizer."""
        images, ids = self._sample.batch(batch, self._device)
        compiled = self.compile_seconds > 0  # counting would compile the encoder again
        counting: AbstractContextManager[dict[int, int]]
        counting = nullcontext({}) if compiled else _saved_bytes(self.learner.encoder)
        synchronize(self._device)
        begin = time.perf_counter()
        with counting as saved:
            self.learner.step(images, ids, epoch=0, lr=0.0)
        synchronize(self._device)
        end = time.perf_counter()
        if not compiled:
            self._saved[batch] = sum(saved.values()) + batch * self._view_bytes
        self._used[batch] = self._in_use
        return self._update_begin - begin, end - self._update_begin

    def _before_update(self) -> None:
        synchronize(self._device)
        self._update_begin = time.perf_counter()
        self._in_use = _memory_in_use(self._device)

    def grow(self, most: int, *, most_bytes: float) -> int:
        """Largest batch to measure on: `most` images, or as many as time and memory allow."""
        batch = min(SMALLEST_BATCH, most)
        while batch < most:
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

    def repeat(self, batch: int) -> list[tuple[float, float]]:
        """Times of several steps, as :meth:`step` returns them, after one step that warms up."""
        self.step(batch)
        taken: list[tuple[float, float]] = []
        while len(taken) < MIN_TRIAL_STEPS or (len(taken) < MAX_TRIAL_STEPS and self._seconds_left > 0):
            taken.append(self.step(batch))
        return taken

    @property
    def _seconds_left(self) -> float:
        return TRIAL_SECONDS - (time.perf_counter() - self._begin)

    def memory(self, batch: int) -> float:
        """Bytes in use in a step on a batch of this size, extrapolated from the largest batch so far.

        The bytes kept for the backward pass grow linearly with the batch, so two batches give the slope.
        """
        small, large = min(self._saved), max(self._saved)
        if small == large:
            slope = self._saved[large] / large
        else:
            slope = (self._saved[large] - self._saved[small]) / (large - small)
        return self._used[large] + _WORKSPACE * slope * (batch - large)


@contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of the tensors that autograd keeps for the backward pass, by address; weights are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield sizes


@contextmanager
def _as_config_errors(config: PretrainConfig) -> Iterator[None]:
    """Context that raises errors of timm, torch and the loss as a ConfigError about the recipe."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ConfigError, TypeError, AssertionError, RuntimeError, FloatingPointError) as error:
        raise ConfigError(f"{config.model.backbone} does not run with the recipe's settings: {error}") from error


def _held_bytes(sample: Sample, contents: Contents, images: int, batch_size: int) -> int:
    """Bytes of decoded images in memory: of all if they share a size and fit, else of three batches (two are ahead)."""
    one = max(image.nbytes for image in sample.images)
    everything = images * one
    return everything if contents.one_size and everything <= total_memory() // 4 else 3 * batch_size * one


def _memory_in_use(device: torch.device) -> int:
    """Peak bytes of tensors on the GPU; on a CPU the bytes of this process, which a run needs too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _PROCESS
