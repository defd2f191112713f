"""Trials: what is recorded of a run, going on, failures, and damaged records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparing import compare
from torch import nn

from ssole.comparison.compare import resume_comparison
from ssole.config import ConfigError
from ssole.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("in_a_folder")


@pytest.mark.slow
def test_a_trial_stopped_halfway_goes_on_from_its_checkpoint() -> None:
    whole = compare(out="whole", checkpoint_every=2)

    class Stop(nn.Module):
        """SSOLE, until Ctrl-C arrives at its fourth step."""

        steps = 0

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            if self.steps == 5:
                raise KeyboardInterrupt
            return z.float().square().mean()

    stopped = Stop()
    arms = {"mine": stopped, "ssole": {"loss.name": "ssole"}}
    with pytest.raises(Interrupted):
        compare(arms, checkpoint_every=2)
    assert not Path("out/mine/seed-0/trial.json").exists()
    Stop.steps = -100
    result = compare(arms, checkpoint_every=2)
    assert result.arms["mine"].runs[0].error is None
    assert result.arms["ssole"].runs[0].scores == whole.arms["ssole"].runs[0].scores


@pytest.mark.parametrize(
    ("name", "hint"),
    [("plan.json", "start the comparison anew"), ("ssole/seed-0/trial.json", "remove out/ssole/seed-0 to train")],
)
def test_a_damaged_record_says_so(name: str, hint: str) -> None:
    compare(seeds=1, budget="1steps")
    Path("out", name).write_text('{"simclr": {}}')
    with pytest.raises(ConfigError, match=rf"{name} is damaged .*: {hint}"):
        resume_comparison("out")
