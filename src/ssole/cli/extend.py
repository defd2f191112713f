"""`ssole extend`: more steps for a finished run."""

from __future__ import annotations

from dataclasses import dataclass

from ssole import extending
from ssole.cli.common import Changes, DataWords, OptionalNumber, RunPath, data_spec
from ssole.cli.pretrain import print_finished


@dataclass(frozen=True, kw_only=True)
class Extend:
    """Train a finished run for longer.

    Example:
      ssole extend runs/mine --epochs 50

    The learning rate has its schedule once more, times --factor. The weights until now are kept as
    backbone-step-N.safetensors. After an interruption: ssole pretrain --resume RUN.
    """

    run: RunPath
    """Folder of a finished run."""
    epochs: OptionalNumber = None
    """Number of epochs to add."""
    steps: OptionalNumber = None
    """Number of steps to add, instead of epochs."""
    factor: float = extending.FACTOR
    """Factor of the run's learning rates."""
    data: DataWords = ()
    """Images of the run, if it cannot open them again by itself."""
    eval_data: DataWords = ()
    """Images that the run is measured on, if they are behind a URL."""
    allow_changes: Changes = ()
    """Kinds of change since the start of the run to accept. By default, every change is an error that shows it."""

    def __call__(self) -> int:
        run = extending.extend(
            self.run,
            epochs=self.epochs,
            steps=self.steps,
            factor=self.factor,
            data=data_spec(self.data),
            eval_data=data_spec(self.eval_data),
            allow_changes=self.allow_changes,
        )
        print_finished(run)
        return 0
