"""What a recipe would cost here, from a few of its real training steps on the images themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.doctor.contents import Contents
from ssole.doctor.sample import Sample, wait_for
from ssole.runtime import resolve_precision, total_memory
from ssole.training.feed import make_plan
from ssole.training.step import Learner

SECONDS = 20.0  # that the trial may take, about
FEWEST_STEPS, MOST_STEPS = 3, 20
SMALLEST_BATCH = 4  # images in the first trial step, from which the batch grows
_SPARE = 0.5  # share of the available memory that a trial step may be expected to take
_WORKSPACE = 1.15  # what convolutions and temporaries take beside what is counted
_PROCESS = 1 << 30  # bytes of a process that trains, where the system does not say


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The middle of what was measured, and the range that holds four fifths of it."""

    low: float
    median: float
    high: float

    def times(self, factor: float, plus: float = 0.0) -> Spread:
        """This spread, scaled and shifted."""
        return Spread(low=self.low * factor + plus, median=self.median * factor + plus, high=self.high * factor + plus)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Extrapolated from few steps: good to tell minutes from days, not minutes from minutes."""

    device: str
    precision: str
    steps: int
    batch_size: int
    views: int
    """Views of each image."""
    step_seconds: Spread
    decode_seconds: float
    """Spent on decoding every image once: what is decoded is held in memory, or kept in the cache."""
    compile_seconds: float
    """Spent on compiling the encoder first; 0 where the run would not do so, or only part of a batch was measured."""
    seconds: Spread
    """Of the whole run."""
    steps_measured: int
    batch_measured: int
    """Images in the steps measured; below `batch_size` where a whole step would have taken too long or too much."""
    memory_bytes: int
    """Peak: of the process on a CPU, of the GPU's memory on a GPU."""
    memory_available: int


def estimate(config: PretrainConfig, sample: Sample, contents: Contents, images: int, device: torch.device) -> Estimate:
    """Time and peak memory of a run of `config` over so many images.

    Raises:
        ConfigError: the recipe's network cannot be built, or does not take its images.
        DataError: fewer images than a batch.
    """
    plan = make_plan(config, images)
    available = _available(device)
    with _explained(config), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        trial = Trial(config, sample, device)
        batch = trial.grow(config.batch_size, most_bytes=_SPARE * available)
        if batch == config.batch_size and trial.learner.wants_compiling(plan.total):
            trial.compile()
        taken = trial.repeat(batch)
    share = config.batch_size / batch
    times = [compute * share + update for compute, update in taken]
    low, median, high = np.quantile(times, (0.1, 0.5, 0.9)).tolist()
    step = Spread(low=low, median=median, high=high)
    decode_seconds = min(images, plan.total * config.batch_size) / sample.decode.value
    memory = trial.memory(config.batch_size)
    if device.type == "cpu":
        memory += _held_bytes(sample, contents, images, config.batch_size)
    return Estimate(
        device=str(device),
        precision=str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch."),
        steps=plan.total,
        batch_size=config.batch_size,
        views=config.augment.views,
        step_seconds=step,
        decode_seconds=decode_seconds,
        compile_seconds=trial.compile_seconds,
        seconds=step.times(plan.total, plus=decode_seconds + trial.compile_seconds),
        steps_measured=len(taken),
        batch_measured=batch,
        memory_bytes=int(memory),
        memory_available=available,
    )


class Trial:
    """Training steps of a recipe at a learning rate of 0, with their time and memory.

    It takes the steps of a run, by the same :class:`~ssole.training.step.Learner`. A rate of 0 keeps the weights. At the
    recipe's own rate, without its warmup, the loss might overflow.
    """

    def __init__(self, config: PretrainConfig, sample: Sample, device: torch.device) -> None:
        self._config, self._sample, self._device = config, sample, device
        self.learner = Learner(config, device)
        self.learner.optimizer.register_step_pre_hook(lambda *_: self._before_update())
        self.compile_seconds = 0.0
        self._saved: dict[int, int] = {}  # batch size to bytes kept for the backward pass
        self._used: dict[int, int] = {}  # batch size to bytes in use at the end of the backward pass
        self._begin = time.perf_counter()
        self._update_begin, self._in_use = 0.0, 0

    def step(self, batch: int) -> tuple[float, float]:
        """Take one step on so many images: seconds for views, network and loss, and seconds for the optimizer."""
        images, ids = self._sample.batch(batch, self._device)
        wait_for(self._device)
        compiled = self.compile_seconds > 0  # counting would compile once more, without what is counted
        counting: AbstractContextManager[dict[int, int]]
        counting = nullcontext({}) if compiled else _counted_bytes(self.learner.encoder)
        begin = time.perf_counter()
        with counting as saved:
            self.learner.step(images, ids, epoch=0, lr=0.0)
        wait_for(self._device)
        end = time.perf_counter()
        if not compiled:
            self._saved[batch] = sum(saved.values()) + batch * _view_bytes(self._config)
        self._used[batch] = self._in_use
        return self._update_begin - begin, end - self._update_begin

    def _before_update(self) -> None:
        wait_for(self._device)
        self._update_begin = time.perf_counter()
        self._in_use = _memory_in_use(self._device)

    def grow(self, most: int, *, most_bytes: float) -> int:
        """The batch to measure on: all of `most`, or as much of it as time and memory allow."""
        batch = min(SMALLEST_BATCH, most)
        while batch < most:
            # of two, since the first pays for what later ones find ready, and either may meet other work
            compute, update = min(self.step(batch), self.step(batch))
            larger = min(2 * batch, most)
            seconds = (1 + FEWEST_STEPS) * (compute * larger / batch + update)
            if seconds > self._seconds_left or self.memory(larger) > most_bytes:
                break
            batch = larger
        return batch

    def compile(self) -> None:
        """Compile the encoder, as the run will, for the whole batch. It takes no part of the trial's time."""
        self.step(self._config.batch_size)  # what is saved for the backward pass is counted before
        begin = time.perf_counter()
        compiled = self.learner.compile()
        seconds = time.perf_counter() - begin
        self._begin += seconds
        self.compile_seconds = seconds if compiled else 0.0

    def repeat(self, batch: int) -> list[tuple[float, float]]:
        """Seconds of several steps, as :meth:`step` gives them, after one that warms up."""
        self.step(batch)
        taken: list[tuple[float, float]] = []
        while len(taken) < FEWEST_STEPS or (len(taken) < MOST_STEPS and self._seconds_left > 0):
            taken.append(self.step(batch))
        return taken

    @property
    def _seconds_left(self) -> float:
        return SECONDS - (time.perf_counter() - self._begin)

    def memory(self, batch: int) -> float:
        """Bytes in use in a step on so many images: measured on the largest batch so far, and on from there along the
        straight line on which what is kept for the backward pass grows."""
        small, large = min(self._saved), max(self._saved)
        if small == large:
            slope = self._saved[large] / large
        else:
            slope = (self._saved[large] - self._saved[small]) / (large - small)
        return self._used[large] + _WORKSPACE * slope * (batch - large)


@contextmanager
def _counted_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of all that autograd keeps for the backward pass, by address; weights, which are there anyway, left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield sizes


def _view_bytes(config: PretrainConfig) -> int:
    """Bytes of an image's views, in float32."""
    return sum(4 * crop.count * (config.channels or 3) * crop.size**2 for crop in config.augment.crops)


@contextmanager
def _explained(config: PretrainConfig) -> Iterator[None]:
    """What timm and torch say of arguments and sizes that do not fit, as an error in the recipe."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"{config.model.backbone} does not run with the recipe's settings: {error}") from error


def _held_bytes(sample: Sample, contents: Contents, images: int, batch_size: int) -> int:
    """Decoded images in memory: all of them if they share a size and fit, else the batch in use and two to come."""
    one = max(image.nbytes for image in sample.images)
    everything = images * one
    return everything if contents.one_size and everything <= total_memory() // 4 else 3 * batch_size * one


def _available(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()


def _memory_in_use(device: torch.device) -> int:
    """Bytes of the GPU that tensors take at most, or else of this process: training takes about as much beside them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _PROCESS
