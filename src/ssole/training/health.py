"""Whether training is alive: numbers that need no labels, and losses that must be finite."""

from __future__ import annotations

import math

import torch
from torch import nn

_ADVICE = "Training has left the region where it can learn: lower optim.lr, or set optim.warmup_steps or clip_grad_norm"


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the step. Nothing after the last checkpoint is kept."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}. {_ADVICE}")
        self.step = step


class LossWatch:
    """Raises at the first step whose loss is not finite.

    On the CPU it looks at once. Looking makes an accelerator wait, so there it looks when :meth:`check` is called,
    which must be before anything is logged or saved, and still names the first such step.
    """

    def __init__(self, device: torch.device) -> None:
        self._at_once = device.type == "cpu"
        self._losses: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Note the loss of a step, counted from 1."""
        self._losses.append((step, loss.detach()))
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Look at all losses since the last check."""
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses = []
        for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(step, f"the loss is {loss}")


def require_finite_weights(model: nn.Module, step: int) -> None:
    """A finite loss may have had a gradient that was not; better to find out before such weights are saved."""
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if not bool(torch.stack([tensor.isfinite().all() for tensor in floats]).all()):
        raise NonFiniteLossError(step, "it left weights that are not finite")


@torch.no_grad()
def effective_rank(embeddings: torch.Tensor) -> torch.Tensor:
    """Effective rank of a batch: the exponential of the entropy of its normalised singular values.

    1 means collapse to one direction; min(B, D) means evenly spread. Source: Roy and Vetterli, "The effective rank",
    EUSIPCO 2007.

    Args:
        embeddings: (B, D); rows are scaled to unit length first.

    Returns:
        A float64 scalar tensor.
    """
    x = torch.nn.functional.normalize(embeddings.detach().to(torch.float64), dim=-1)
    gram = x @ x.mT if len(x) <= x.shape[1] else x.mT @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum()
    return torch.exp(torch.special.entr(p).sum())
