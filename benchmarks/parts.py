"""Times of the parts of a training step, taken without changing the training loop."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ssole.api import start
from ssole.config import PretrainConfig, apply_overrides
from ssole.training import step
from ssole.training.embedder import Embedder
from ssole.training.feed import Feed
from ssole.training.loop import Given
from ssole.training.monitor import Evaluator, Monitor
from ssole.training.saving import Saver
from ssole.training.step import Learner

T = TypeVar("T")


class Clock:
    """Clock of seconds by part of a step. On an accelerator calls return early, and only totals mean something."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begun

    def timed(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        """The same function with its time counted."""

        def call(*args: Any, **kwargs: Any) -> T:
            with self(part):
                return function(*args, **kwargs)

        return call


def train(
    config: PretrainConfig, images: NDArray[np.uint8], evaluator: Evaluator, steps: int, blocks: int
) -> list[dict[str, Any]]:
    """Metrics of a run of so many blocks of so many steps, with the evaluator after each block."""
    config = apply_overrides(config, {"steps": steps * blocks})
    with tempfile.TemporaryDirectory() as folder:
        run = start(config, Path(folder) / "run", Given(evaluators={steps: evaluator}, progress=False), data=images)
        return run.metrics


def where_time_goes(config: PretrainConfig, images: NDArray[np.uint8], steps: int) -> dict[str, float]:
    """Milliseconds of a step of `ssole.pretrain` by part, over `steps` steps after as many that warm up.

    Waiting for a thread that decodes ahead counts as images; time in no part is `rest`.
    """
    clock = Clock()
    marks: list[dict[str, float]] = []

    def mark(_: nn.Module) -> dict[str, float]:
        marks.append({**clock.seconds, "total": time.perf_counter()})
        return {}

    with parts_timed(clock):
        train(config, images, mark, steps, 2)
    first, last = marks
    seconds = {part: last[part] - first.get(part, 0.0) for part in last}
    seconds["backward"] -= seconds["optimizer"]
    total = seconds.pop("total")
    return {part: 1e3 * spent / steps for part, spent in {**seconds, "rest": total - sum(seconds.values())}.items()}


@contextmanager
def parts_timed(clock: Clock) -> Iterator[None]:
    """Clock on every part of every training step in this process. `backward` contains `optimizer`."""
    parts: dict[str, tuple[Any, str]] = {
        "images": (Feed, "_finish"),
        "views": (step, "make_views"),
        "forward": (Embedder, "embed"),
        "loss": (Learner, "loss_terms"),
        "backward": (Learner, "descend"),
        "log": (Monitor, "log"),
        "checkpoint": (Saver, "save"),
    }
    with ExitStack() as stack:
        for part, (owner, name) in parts.items():
            stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        stack.enter_context(optimizer_timed(clock))
        yield


@contextmanager
def optimizer_timed(clock: Clock) -> Iterator[None]:
    """Clock on the steps of every optimizer."""
    starts: list[float] = []

    def begin(*_: Any) -> None:
        starts.append(time.perf_counter())

    def end(*_: Any) -> None:
        clock.seconds["optimizer"] += time.perf_counter() - starts.pop()

    hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
