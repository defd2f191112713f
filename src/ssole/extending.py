"""Extending finished runs: `extend`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ssole import distributed
from ssole.api import continue_run
from ssole.errors import ConfigError, quoted
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.loop import Given
from ssole.training.pace import EXTENSIONS, Extension, extensions
from ssole.training.run import Change, Run, write_lines
from ssole.training.settings import warn_of_warmup

if TYPE_CHECKING:
    from ssole.data.base import Spec
    from ssole.training.monitor import Evaluator

FACTOR = 0.5
"""Factor of the peak learning rate by default: the weights are good already, and need not be thrown as far."""


def extend(
    run: Run | str | PathLike[str],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    factor: float = FACTOR,
    data: Spec | None = None,
    eval_data: Spec | None = None,
    loss: nn.Module | None = None,
    backbone: nn.Module | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
    allow_changes: Collection[Change] = (),
) -> Run:
    """Train a finished run for longer, by so many epochs or steps. If it is interrupted, :func:`resume` continues it.

    Weights and optimizer go on as they are, and the learning rate is that of a run of the added steps, times `factor`:
    see :class:`ssole.training.pace.Extension`. The weights until now are kept as `backbone-step-N.safetensors`, and
    their results as `evaluation-step-N.json`, `export-step-N` and so on. If torchrun starts the processes
    again, they go on with the extension.

    Args:
        run: the run, or its folder.
        epochs, steps: how much longer; one of them.
        factor: of the learning rate, above 0.
        data, eval_data, loss, backbone, evaluators, progress, allow_changes: as for :func:`resume`.

    Raises:
        As :func:`resume`; also ConfigError if the run is unfinished, or its last checkpoint is gone; if not exactly one
        of epochs and steps is given; or if a number is out of range.
    """
    found = run if isinstance(run, Run) else Run(Path(run))
    _check(found, epochs, steps, factor)  # before anything is changed
    given = Given(loss=loss, backbone=backbone, evaluators=evaluators, progress=progress)
    prepare = partial(_lengthen, found, epochs=epochs, steps=steps, factor=factor)
    return continue_run(found, given, data=data, eval_data=eval_data, allow_changes=allow_changes, prepare=prepare)


def _lengthen(run: Run, steps_per_epoch: int, *, epochs: int | None, steps: int | None, factor: float) -> None:
    """Extend a finished run. An unfinished run is left as it is if this extension has begun already; else an error."""
    added = steps or (epochs or 0) * steps_per_epoch
    if run.finished:
        warn_of_warmup(added, run.config.optim.warmup_steps, "the extension")
        add_extension(run, steps=added, factor=factor)
        return
    begun = [(one.total - one.step, one.factor) for one in extensions(run)]
    if begun[-1:] != [(added, factor)]:
        raise _unfinished(run)


def _check(run: Run, epochs: int | None, steps: int | None, factor: float) -> None:
    """Raise a ConfigError unless a run is finished and whole, and the numbers of its extension are right."""
    _ = run.config, extensions(run)  # errors for a folder that is no run, and for a damaged file
    if (epochs is None) == (steps is None):
        raise ConfigError("an extension has a number of epochs or of steps: give one of --epochs and --steps")
    length = steps if epochs is None else epochs
    if not isinstance(length, int) or length < 1:
        raise ConfigError(
            f"an extension has whole epochs or steps, and at least 1 step, got epochs = {epochs}, steps = {steps}"
        )
    if not 0 < factor < math.inf:
        raise ConfigError(f"the factor of the learning rate must be positive and finite, got {factor}")
    if not run.finished:
        if distributed.launch().may_restart and extensions(run):
            return  # torchrun may have started this command again
        raise _unfinished(run)
    last = max((row["step"] for row in run.metrics), default=0)
    if (newest := max(checkpoint_steps(run), default=0)) != last or last == 0:
        raise ConfigError(
            f"{run.path} ended with step {last}, and its newest checkpoint is of step {newest}: copy its checkpoints "
            f"back, or start a new run from its weights, ssole pretrain --init {quoted(run.backbone_path)}"
        )


def _unfinished(run: Run) -> ConfigError:
    """Error for a run that must be finished before it can be extended."""
    return ConfigError(f"{run.path} has not finished: go on with it first, ssole pretrain --resume {quoted(run.path)}")


def add_extension(run: Run, *, steps: int, factor: float) -> None:
    """Extend a finished run by so many steps: from here on it is an unfinished run, which resuming finishes.

    The last rename, that of the weights, decides: after a kill before that, the run still counts as finished and can be
    extended anew. Figures, export and index of the weights so far are kept under new names that have the step in them.

    Raises:
        OSError: the folder cannot be written to.
    """
    begin = max(checkpoint_steps(run))
    new = Extension(step=begin, total=begin + steps, factor=factor)
    earlier = [one for one in extensions(run) if one.step < begin]  # without one that was killed in between
    try:
        write_lines(run.path / EXTENSIONS, [dataclasses.asdict(one) for one in (*earlier, new)])
        # the weights last: no result may lie beside weights that it does not belong to
        kept = [path for kind in ("evaluation", "transfer") for path in run.path.glob(f"{kind}-[0-9]*.json")]
        names = ("evaluation.json", "transfer.json", "export", "index", run.backbone_path.name)
        for path in (*kept, *(run.path / name for name in names)):
            if path.exists():
                os.replace(path, _name_with_step(path, begin))
    except OSError as error:
        raise OSError(
            f"the extension of {run.path} could not begin ({error.strerror or error}), and its weights are as they "
            f"were. Once this is fixed, extend it again: ssole extend {quoted(run.path)} --steps {steps} --factor "
            f"{factor:g}"
        ) from error


def _name_with_step(path: Path, step: int) -> Path:
    """New name, with the step, for a file or folder that belongs to earlier weights.

    It has a number too if a folder has that name already, from an extension that failed.
    """
    named, number = path.with_stem(f"{path.stem}-step-{step:08d}"), 2
    while named.is_dir():
        named, number = path.with_stem(f"{path.stem}-step-{step:08d}-{number}"), number + 1
    return named
