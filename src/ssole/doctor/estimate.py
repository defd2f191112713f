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
from ssole.models.compile import wants_compiling
from ssole.runtime import resolve_precision, total_memory
from ssole.training.loop import compile_to_train, create_loss, embed_views, encoder_to_train
from ssole.training.optim import create_optimizer, set_learning_rate
from ssole.training.plan import make_plan
from ssole.views import make_views

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
        if batch == config.batch_size and wants_compiling(config, trial.encoder, device, plan.total):
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
    """Training steps of a recipe that leave the weights as they are, with a clock and a scale."""

    compile_seconds = 0.0

    def __init__(self, config: PretrainConfig, sample: Sample, device: torch.device) -> None:
        self._config, self._sample, self._device = config, sample, device
        self.encoder = encoder_to_train(config, device)
        self._optimizer = create_optimizer(self.encoder, config.optim)
        set_learning_rate(self._optimizer, 0.0)  # at the recipe's own, without its warmup, the loss might overflow
        self._loss = create_loss(config, device)
        self._saved: dict[int, int] = {}  # bytes kept for the backward pass, by batch size ...
        self._used: dict[int, int] = {}  # ... and bytes in use when they are most
        self._begin = time.perf_counter()

    def step(self, batch: int) -> tuple[float, float]:
        """One step on so many images: seconds for views, network and loss, and seconds for the optimizer."""
        images, ids = self._sample.batch(batch, self._device)
        wait_for(self._device)
        begin = time.perf_counter()
        views = make_views(images, ids, recipe=self._config.augment, seed=self._config.seed, epoch=0)
        compiled = self.compile_seconds > 0  # counting would compile once more, without what is counted
        counting: AbstractContextManager[dict[int, int]]
        counting = nullcontext({}) if compiled else _counted_bytes(self.encoder)
        with counting as saved:
            loss = self._loss(embed_views(self.encoder, views, self._config))
        if not compiled:
            self._saved[batch] = sum(saved.values()) + sum(view.nbytes for view in views)
        self._used[batch] = _memory_in_use(self._device)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        wait_for(self._device)
        middle = time.perf_counter()
        self._optimizer.step()
        wait_for(self._device)
        return middle - begin, time.perf_counter() - middle

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
        compiled = compile_to_train(self.encoder, self._config, self._device)
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
