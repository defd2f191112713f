"""Extending finished runs: `extend`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ssole.api import continue_run
from ssole.training.extension import FACTOR, add_extension, check_extension
from ssole.training.run import Change, Run

if TYPE_CHECKING:
    from ssole.data.base import Spec
    from ssole.training.monitor import Evaluator


def extend(
    run: Run | str | PathLike[str],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    factor: float = FACTOR,
    data: Spec | None = None,
    loss: nn.Module | None = None,
    backbone: nn.Module | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
    allow_changes: Collection[Change] = (),
) -> Run:
    """Train a finished run for longer, by so many epochs or steps. If it is interrupted, :func:`resume` continues it.

    Weights and optimizer go on as they are, and the learning rate is that of a run of the added steps, times `factor`:
    see :mod:`ssole.training.extension`. The weights until now are kept as `backbone-step-N.safetensors`.

    Args:
        run: the run, or its folder.
        epochs, steps: how much longer; one of them.
        factor: of the learning rate, above 0.
        data, loss, backbone, evaluators, progress, allow_changes: as for :func:`resume`.

    Raises:
        As :func:`resume`; also ConfigError if the run is unfinished, or its last checkpoint is gone.
    """
    found = run if isinstance(run, Run) else Run(Path(run))
    check_extension(found, epochs=epochs, steps=steps, factor=factor)

    def lengthen(steps_per_epoch: int) -> None:
        add_extension(found, steps=steps or (epochs or 0) * steps_per_epoch, factor=factor)

    return continue_run(
        found,
        data=data,
        loss=loss,
        backbone=backbone,
        evaluators=evaluators,
        progress=progress,
        allow_changes=allow_changes,
        prepare=lengthen,
    )
