"""Pace: how long a run is, and where each of its steps stands in the learning-rate schedule.

A run without a budget has a fixed number of steps. With a budget of time, it has as many as fit, which depends on what
else the machine does. So their number is corrected fifty times in a run, from the speed over the last tenth of it;
steps on smaller crops count by their pixels. Steps already taken keep their learning rate, and the rest of the schedule
is stretched or compressed to end with the budget. Each correction is a line of `schedule.jsonl`. A resumed run repeats
these corrections before it makes new ones, so it is as deterministic as a run without a budget. An extension has a
fixed number of steps.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import deque
from dataclasses import dataclass
from time import monotonic

import torch

from ssole import distributed
from ssole.config import ConfigError, OptimConfig, PretrainConfig
from ssole.config.budget import budget_seconds
from ssole.runtime import synchronize
from ssole.training.feed import Plan
from ssole.training.optim import learning_rate
from ssole.training.run import Run, read_lines, write_lines, writing

EXTENSIONS = "extensions.jsonl"
_NAME = "schedule.jsonl"
_CORRECTIONS = 50  # in a run
_WINDOW = 5  # corrections back, from where speed is measured
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Extension:
    """More steps for a finished run, in which the learning rate begins and falls once more.

    Step s of an extension that begins after S steps and ends after T has the rate

        factor * schedule(s - S, T - S)

    where schedule(step, steps) is that of the run's own settings: warmup, then a half cosine from `lr` to `final_lr`
    (:func:`ssole.training.optim.learning_rate`). It is a warm restart: weights and the optimizer's state go on as they
    are. Source: Loshchilov and Hutter 2017, SGDR (arXiv:1608.03983). Extensions are lines of `extensions.jsonl`.
    """

    step: int
    """Steps of the run before it."""
    total: int
    """Steps of the run with it."""
    factor: float
    """Factor of the learning rate."""

    def learning_rate(self, step: float, config: OptimConfig) -> float:
        """Learning rate of a step of the run, counted from 0."""
        return self.factor * learning_rate(step - self.step, self.total - self.step, config)


def extensions(run: Run) -> list[Extension]:
    """Extensions of a run, in order; a ConfigError if the file was damaged."""
    found = []
    for row in read_lines(run.path / EXTENSIONS, step=int, total=int):
        factor = row.get("factor")
        if not isinstance(factor, (int, float)) or not 0 < factor < math.inf or not 0 <= row["step"] < row["total"]:
            raise ConfigError(f"{run.path / EXTENSIONS} is damaged: {row}")
        found.append(Extension(step=row["step"], total=row["total"], factor=float(factor)))
    return found


class Pace:
    """Length and schedule of a run, whose earlier corrections are read.

    `total` is the number of steps of the whole run, as expected now; with a budget, that of the given plan is the one
    expected at the start. `plan` is that of the images to feed, without an end if that is not known. `budget` is the
    time in seconds that decides on the length, or None: an extension has none. Before the speed is measured, the host
    waits for the steps that a GPU, as the `device` may be one, has not taken yet.
    """

    def __init__(
        self, run: Run, plan: Plan, config: PretrainConfig | None = None, *, device: torch.device = _CPU
    ) -> None:
        self._run, self._config, self._device = run, config or run.config, device
        self.plan, self._planned, self.total = plan, plan.total, plan.total
        budget = self._config.budget
        self.budget = None if budget is None else budget_seconds(budget)
        augment = self._config.augment
        self._early = augment.early
        # work of a step on the crops of the first part, as a share of that on the later ones: by their pixels
        self._early_work = 1.0 if self._early is None else self._early.pixels / augment.pixels
        self._corrections = [(step, total) for step, total in distributed.on_rank_0(self._read_corrections)]
        if self._corrections:
            self.total = self._corrections[-1][1]
        added = distributed.on_rank_0(lambda: [dataclasses.asdict(extension) for extension in extensions(run)])
        self._extensions = [Extension(**fields) for fields in added]
        if self._extensions:
            self.total, self.budget = self._extensions[-1].total, None
        self._next, self._work = 0, 0.0

    def _read_corrections(self) -> list[tuple[int, int]]:
        """Steps of the earlier corrections, and the number of steps of the run that each of them expected."""
        path = self._run.path / _NAME
        rows = [] if self.budget is None else read_lines(path, step=int, total=int)
        if bad := [row for row in rows if not 0 < row["step"] <= row["total"]]:
            raise ConfigError(f"{path} is damaged: {bad[0]}")
        return [(row["step"], row["total"]) for row in rows]

    def start(self, step: int, spent: float | None = None) -> None:
        """Start, or go back to, a step. `spent` are the seconds of the budget so far; None keeps the clock running."""
        endless = self.budget is not None and step < self.total
        self.plan = dataclasses.replace(self.plan, total=sys.maxsize if endless else self.total)
        if spent is not None:
            self._begin = monotonic() - spent
        self._next = max([step + 1, *(at + self._interval for at, _ in self._corrections)])
        self._marks: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    @property
    def _interval(self) -> int:
        return max(1, self.total // _CORRECTIONS)

    def position(self, step: int) -> float:
        """Place of a step in the schedule that was planned, from 0 for the first step to `plan.total` - 1."""
        end, at, begin, slope = self._planned - 1, 0.0, 0, 1.0
        for corrected, total in self._corrections:
            if corrected > step:
                break
            at, begin = at + (corrected - begin) * slope, corrected
            slope = (end - at) / max(1, total - 1 - corrected)
        return at + (step - begin) * slope

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        for extension in reversed(self._extensions):
            if step >= extension.step:
                return extension.learning_rate(step, self._config.optim)
        return learning_rate(self.position(step), self._planned, self._config.optim)

    def is_early(self, step: int) -> bool:
        """Whether a step sees the crops of the first part of the run."""
        share = self._config.augment.early_share
        return self._early is not None and self.position(step) < share * self._planned

    def is_last(self, done: int) -> bool:
        """Whether the run ends after `done` steps, or ended there before it was extended."""
        return done == self.total or any(done == extension.step for extension in self._extensions)

    def is_regular(self, done: int) -> bool:
        """Whether an undisturbed run writes a checkpoint after `done` steps."""
        every = self._config.checkpoint_every
        return self.is_last(done) or (every is not None and done % every == 0) or self.plan.ends_epoch(done - 1)

    def advance(self, step: int) -> bool:
        """Count a step as taken, and return whether it was the last. With a budget, correct the number of steps."""
        done = step + 1
        self._work += self._early_work if self.is_early(step) else 1.0
        if self.budget is not None and done >= self._next and done < self.total:
            total = distributed.on_rank_0(lambda: self._total_now(done))  # the clocks of other processes differ
            if total is not None:
                self.total = total
                self._corrections.append((done, total))
            self._next = done + self._interval
        return done >= self.total

    def _total_now(self, done: int) -> int | None:
        """Number of steps that the budget allows by the speed so far; written to the run. None in the first step."""
        assert self.budget is not None
        synchronize(self._device)  # 50 times in a run, beside the waits of each log line
        now, total = monotonic() - self._begin, None
        if self._marks:  # not after the first step, which has to set things up
            work, then = self._marks[0]
            left = (self.budget - now) * (self._work - work) / max(1e-9, now - then)
            total = done + max(0, round(left / self._mean_work(done)))
            with writing(self._run, _NAME):
                corrections = [*self._corrections, (done, total)]
                write_lines(self._run.path / _NAME, ({"step": step, "total": total} for step, total in corrections))
        self._marks.append((self._work, now))
        return total

    def _mean_work(self, step: int) -> float:
        """Mean work of the steps from this one to the end of the schedule."""
        if not self.is_early(step):
            return 1.0
        at = self.position(step)
        early = (self._config.augment.early_share * self._planned - at) / (self._planned - at)
        return 1.0 - early * (1.0 - self._early_work)
