"""The smallest comparisons, losses that fail, and results made by hand, which the tests of comparisons share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ssole
import tiny
from ssole.comparison.request import Request, make_arms
from ssole.comparison.result import ArmResult, Comparison
from ssole.comparison.trial import Trial
from ssole.config.budget import Budget
from ssole.losses import SimCLRLoss
from ssole.training.stopping import Interrupted

METHODS = ["ssole", "simclr"]


def compare(methods: Any = METHODS, data: Any = "photos", **given: Any) -> ssole.Comparison:
    torch.set_num_threads(1)
    options = {"recipe": "tiny.yaml", "budget": "6steps", "seeds": 2, "search": 0, "out": "out", "progress": False}
    return ssole.compare(methods, data, **{**options, **given})


def stopped_in_its_second_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparison whose first arm has finished; Ctrl-C came in the third step of the second."""
    terms, calls = SimCLRLoss.terms, iter(range(99))

    def stopping(self: SimCLRLoss, z: torch.Tensor) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return terms(self, z)

    with monkeypatch.context() as patch:
        patch.setattr("ssole.comparison.plan.step_seconds", lambda *_, **__: 0.5)
        patch.setattr(SimCLRLoss, "terms", stopping)
        with pytest.raises(Interrupted):
            compare(seeds=1, checkpoint_every=1)


class Broken(nn.Module):
    """A loss that fails."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing\nas this")


class Diverging(nn.Module):
    """A loss that becomes infinite at the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return z.float().square().mean() / (self.steps < 12).float()


def trial(seed: int, knn: float, **changes: object) -> Trial:
    scores = {"knn20": knn, "linear": knn + 0.02, "centred_effective_rank": 31.5}
    curve = [
        {"images": 100.0 * i, "seconds": 60.0 * i, "knn20": knn * i / 3, "effective_rank": 9.0 * i} for i in (1, 2, 3)
    ]
    values = {"scores": scores, "seconds": 180.0, "images_per_second": 250.0, "peak_memory": 3 << 30, "curve": curve}
    return Trial(steps=9, seed=seed, settings={}, **{**values, **changes})  # type: ignore[arg-type]


def comparison(folder: Path, **arms: ArmResult) -> Comparison:
    data = {"train": "photos, 90 images", "test": "photos, 10 images"}
    return Comparison(path=folder, arms=arms, request={"seeds": 3}, environment={}, data=data, notes=["A note."])


def three(folder: Path) -> Comparison:
    return comparison(
        folder,
        clear=ArmResult(steps=9, runs=[trial(0, 0.50), trial(1, 0.52), trial(2, 0.54)]),
        best=ArmResult(steps=9, runs=[trial(0, 0.60), trial(1, 0.63), trial(2, 0.63)]),
        near=ArmResult(steps=9, runs=[trial(0, 0.65), trial(1, 0.60), trial(2, 0.58)]),
        broken=ArmResult(steps=9, error="RuntimeError: [red]no such \x1bthing"),
        partly=ArmResult(steps=9, runs=[trial(0, 0.90), Trial(steps=9, seed=1, settings={}, error="diverged")]),
    )


def request(*, budget: str = "6steps", seeds: int = 1, search: int = 0, **arms: Any) -> Request:
    """Request of arms by name, each with its changes of the tiny settings, or with a loss."""
    made = make_arms(arms, tiny.config(), projector="recipe")
    return Request(arms=made, data="photos", test=None, budget=Budget.parse(budget), seeds=seeds, search=search)
