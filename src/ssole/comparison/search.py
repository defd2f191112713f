"""Search of settings: draws that are equal for all arms, in one or two rungs of successive halving.

Every arm has the same number of trials and the same number of steps in all. Trial 0 is the arm's own settings. Later
trials multiply its learning rate and weight decay by factors that are the same for every arm, and draw the one or two
settings of its loss that `ssole.config.losses` names. Draws are the points of a scrambled Halton sequence, which
few trials already spread over the whole of each range.

Sources: Bergstra and Bengio, "Random search for hyper-parameter optimization" (JMLR 2012), section 4 on sequences like
Halton's; Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ssole.comparison.request import Arm

LR_FACTORS = (0.25, 4.0)
WEIGHT_DECAY_FACTORS = (0.1, 10.0)
KEPT = 3
"""Reduction factor of successive halving: one in KEPT trials goes on to the next rung, with KEPT times the steps."""


class Rung(NamedTuple):
    """Stage of the search."""

    trials: int
    """Number of trials that take part."""
    share: float
    """Their steps, as a share of a whole run's."""


def rungs(trials: int) -> tuple[Rung, ...]:
    """Rungs of a search: all trials at a ninth of the steps, and the best third of them at a third.

    Up to three trials have one rung, at a third. Each run is a whole one, with its learning rate falling to the end.
    """
    if trials == 0:
        return ()
    last = math.ceil(trials / KEPT)
    return (Rung(trials, 1 / KEPT**2), Rung(last, 1 / KEPT)) if last > 1 else (Rung(trials, 1 / KEPT),)


def draw_settings(arm: Arm, trial: int) -> dict[str, float]:
    """Settings of a trial by dotted name, as overrides of the arm's; none for trial 0.

    A learning rate below the arm's final one lowers that too, or is that if it is pinned.
    """
    if trial == 0:
        return {}
    loss = {f"loss.{name}": ends for name, ends in arm.config.loss.search.items()}
    shares = _points(trial)[trial - 1]
    optim = {
        "optim.lr": (arm.config.optim.lr, LR_FACTORS),
        "optim.weight_decay": (arm.config.optim.weight_decay, WEIGHT_DECAY_FACTORS),
    }
    ranges = {name: (value * low, value * high) for name, (value, (low, high)) in optim.items()} | loss
    drawn = {
        name: float(f"{low * (high / low) ** share:.3g}")  # on a logarithmic scale
        for (name, (low, high)), share in zip(ranges.items(), shares, strict=False)
        if name not in arm.pinned and low > 0
    }
    final = arm.config.optim.final_lr
    if drawn.get("optim.lr", math.inf) < final:
        drawn |= {"optim.lr": final} if "optim.final_lr" in arm.pinned else {"optim.final_lr": drawn["optim.lr"]}
    return drawn


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings of a trial in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "its own settings"


def _points(count: int) -> list[list[float]]:
    """Points in [0, 1)^4: for the learning rate, the weight decay, and up to two settings of the loss."""
    from scipy.stats import qmc

    points: list[list[float]] = qmc.Halton(4, seed=0).random(count).tolist()
    return points


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Trials by their scores, best first; the earlier trial wins a tie."""
    return sorted(scores, key=lambda trial: (-scores[trial], trial))
