"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total: int, warmup: int, lr: float, final_lr: float) -> float:
    """Linear warmup from lr/warmup to `lr`, then a half cosine down to `final_lr` at the last step.

    Args:
        step: 0 for the first step.
        total: steps of the whole run.
        warmup: steps of warmup; the first of them already moves the weights.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * min(1.0, progress)))
