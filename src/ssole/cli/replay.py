"""`ssole replay`: a failed training step, taken again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssole.cli.common import show


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Take a failed training step again, and show where NaN or infinity came from.

    Example:
      ssole replay runs/mine/failures/step-00001234

    Exit code: 0 if the same failed as in the run, 1 if not, 2 for wrong input.
    """

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """Folder that a run wrote when a step failed: RUN/failures/step-N."""

    def __call__(self) -> int:
        from ssole.training.replay import replay as take_again

        found = take_again(self.bundle)
        show(f"step {found.step} failed in the run: {found.recorded}")
        for note in found.notes:  # such as "torch: 2.8 in the run, 2.9 here"
            show(f"  another {note}")
        show(f"here: {found.found or 'everything is finite'}")
        parts = {"weights before the step": found.weights, "first layers": found.layers, "gradients": found.gradients}
        for title, names in parts.items():
            if names:
                show(f"{title} that are not finite:\n  " + "\n  ".join(names))
        print("the same as in the run" if found.reproduced else "not the same as in the run")
        return 0 if found.reproduced else 1
