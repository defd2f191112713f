"""Extension: more steps for a finished run, in which the learning rate begins and falls once more.

Step s of an extension that begins after S steps and ends after T has the rate

    factor * schedule(s - S, T - S)

where schedule(step, steps) is that of the run's own settings: warmup, then a half cosine from `lr` to `final_lr`
(:func:`ssole.training.optim.learning_rate`). It is a warm restart: weights and the optimizer's state go on as they are.
Source: Loshchilov and Hutter 2017, SGDR (arXiv:1608.03983). Extensions are lines of `extensions.jsonl`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

from ssole.config import ConfigError, OptimConfig
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.optim import learning_rate
from ssole.training.run import Run, read_lines, write_lines, writing

_NAME = "extensions.jsonl"
FACTOR = 0.5
"""Factor of the peak learning rate by default: the weights are good already, and need not be thrown as far."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """Extension of a run."""

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
    """Extensions of a run, in order.

    Raises:
        ConfigError: the file was damaged.
    """
    found = []
    for row in read_lines(run.path / _NAME, step=int, total=int):
        factor = row.get("factor")
        if not isinstance(factor, (int, float)) or not 0 < factor < math.inf or not 0 <= row["step"] < row["total"]:
            raise ConfigError(f"{run.path / _NAME} is damaged: {row}")
        found.append(Extension(step=row["step"], total=row["total"], factor=float(factor)))
    return found


def check_extension(run: Run, *, epochs: int | None, steps: int | None, factor: float) -> None:
    """Check that a run can be extended, before anything is changed.

    Raises:
        ConfigError: the run is unfinished, damaged or has lost its last checkpoint; or not exactly one of epochs and
            steps is given, or a number is out of range.
    """
    _ = run.config, extensions(run)  # errors for a folder that is no run, and for a damaged file
    if (epochs is None) == (steps is None):
        raise ConfigError("an extension has a number of epochs or of steps: give one of --epochs and --steps")
    if (epochs or steps or 0) < 1:
        raise ConfigError(f"an extension has at least 1 step, got epochs = {epochs}, steps = {steps}")
    if not 0 < factor < math.inf:
        raise ConfigError(f"the factor of the learning rate must be positive and finite, got {factor}")
    if not run.finished:
        raise ConfigError(f"{run.path} has not finished: go on with it first, ssole pretrain --resume {run.path}")
    last = max((row["step"] for row in run.metrics), default=0)
    if (newest := max(checkpoint_steps(run), default=0)) != last or last == 0:
        raise ConfigError(
            f"{run.path} ended with step {last}, and its newest checkpoint is of step {newest}: copy its checkpoints "
            f"back, or start a new run from its weights, ssole pretrain --init {run.backbone_path}"
        )


def add_extension(run: Run, *, steps: int, factor: float) -> None:
    """Extend a finished run by so many steps: from here on it is an unfinished run, which resuming finishes.

    A kill in between leaves it unfinished at its old length, and resuming writes the old weights again.

    Raises:
        OSError: the folder cannot be written to.
    """
    begin = max(checkpoint_steps(run))
    new = Extension(step=begin, total=begin + steps, factor=factor)
    with writing(run, _NAME):
        os.replace(run.backbone_path, run.path / f"backbone-step-{begin:08d}.safetensors")
        write_lines(run.path / _NAME, [dataclasses.asdict(one) for one in (*extensions(run), new)])
