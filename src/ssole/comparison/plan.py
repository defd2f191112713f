"""Plan of a comparison: the steps of each arm's runs, and what they will cost, measured before anything is trained."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ssole.comparison.request import Arm, Request
from ssole.comparison.search import rungs
from ssole.comparison.trial import FAILURES, describe_failure
from ssole.data.store import ImageStore
from ssole.files import read_json, write_text_atomically
from ssole.progress import duration
from ssole.runtime import resolve_device
from ssole.training import feed
from ssole.training.step import Learner

_FILE = "plan.json"
_WARMUP, _MEASURED = 3, 8
_MOST_SECONDS = 20.0
"""Time after which an arm is measured no further."""
_GUESS = 0.1
"""Seconds of a step, for telling whether a run with a budget of time is long enough to be compiled."""


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """Steps of the runs of an arm."""

    steps: int
    step_seconds: float
    error: str | None = None
    """Why the arm cannot take a single step; None if it can."""

    def search_steps(self, trials: int) -> int:
        """Steps of the whole search."""
        return sum(rung.trials * share_of(self.steps, rung.share) for rung in rungs(trials))


def share_of(steps: int, share: float) -> int:
    """Steps of a run that has a share of the budget."""
    return max(1, round(steps * share))


def make_plan(folder: Path, request: Request, store: ImageStore, fewest: int) -> dict[str, ArmPlan]:
    """Plan by arm, measured at the first call for a folder and read from it later.

    So runs keep their number of steps, however busy the machine is when a comparison goes on. An arm that fails is
    planned with its error, unless all of them fail.

    Args:
        folder: the folder of the comparison.
        request: what is compared.
        store: the training images.
        fewest: number of images of the smallest run; a batch may not have more.
    """
    path = folder / _FILE
    if path.is_file():
        return {name: ArmPlan(**values) for name, values in read_json(path).items()}
    plan, failures = {}, []
    for arm in request.arms:
        try:
            feed.make_plan(arm.config, fewest)  # raises an error for too few images
            seconds = step_seconds(arm, store, request.budget.steps(arm.config, _GUESS))
        except FAILURES as error:
            failures.append(error)
            plan[arm.name] = ArmPlan(steps=0, step_seconds=0.0, error=describe_failure(error))
        else:
            plan[arm.name] = ArmPlan(steps=request.budget.steps(arm.config, seconds), step_seconds=seconds)
    if len(failures) == len(plan):  # a wrong setting or image that all share
        raise failures[0]
    text = json.dumps({name: asdict(one) for name, one in plan.items()}, indent=1)
    write_text_atomically(path, text + "\n")
    return plan


def step_seconds(arm: Arm, store: ImageStore, steps: int) -> float:
    """Median time of a step in a run of so many, after warming up, at a learning rate of 0."""
    config, device = arm.config, resolve_device(arm.config.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        learner = Learner(config, device, loss=arm.module, labels=store.labels)
        if learner.wants_compiling(steps):
            learner.compile()
        ids = torch.arange(config.batch_size) % len(store)
        images = store.get(ids)
        batch = images.to(device) if isinstance(images, torch.Tensor) else [image.to(device) for image in images]
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < _WARMUP + _MEASURED and (len(times) < 2 or time.perf_counter() - begin < _MOST_SECONDS):
            start = time.perf_counter()
            learner.step(batch, ids, epoch=0, lr=0.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times[min(_WARMUP, len(times) - 1) :])


def cost_lines(request: Request, plan: Mapping[str, ArmPlan]) -> Iterator[str]:
    """What the comparison will train and how long that takes, in lines of text."""
    runs = "run" if request.seeds == 1 else "runs"
    total = 0.0
    for arm in request.arms:
        one = plan[arm.name]
        if one.error is not None:
            yield f"{arm.name}: left out, {one.error}"
            continue
        search, final = one.search_steps(request.search), request.seeds * one.steps
        total += (seconds := (search + final) * one.step_seconds)
        searched = f"{search} steps of search, " if search else ""
        yield f"{arm.name}: {searched}{request.seeds} {runs} of {one.steps} steps, {duration(seconds)}"
    yield f"in all about {duration(total)} of training, and the time for evaluating each run"


def short_epochs(request: Request, plan: Mapping[str, ArmPlan], images: int) -> Iterator[str]:
    """A note for each arm whose first rung of the search sees less than one epoch."""
    for arm in request.arms:
        if not (stages := rungs(request.search)):
            return
        steps = share_of(plan[arm.name].steps, stages[0].share)
        seen = steps * arm.config.batch_size
        if plan[arm.name].error is None and seen < images:
            yield (
                f"{arm.name}: the search begins with runs of {steps} steps, {seen:,} of {images:,} images, less than "
                "one epoch. Its choice may favour a quick start; a larger budget would tell."
            )
