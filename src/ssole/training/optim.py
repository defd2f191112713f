"""Optimizers by name, with weight decay on weights of two or more dimensions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssole.config import OptimConfig

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=_fused(groups))


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    from timm.optim.lars import Lars

    optimizer: torch.optim.Optimizer = Lars(groups, lr=config.lr, momentum=config.momentum)
    return optimizer


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=_fused(groups))


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    from timm.optim.muon import Muon

    # steps are scaled to the size of AdamW's, which timm takes for what has no matrix to orthogonalise (1-d parameters)
    optimizer: torch.optim.Optimizer = Muon(groups, lr=config.lr, momentum=config.momentum, betas=config.betas)
    return optimizer


def _fused(groups: Groups) -> bool | None:
    """Whether to update in one pass over each weight, which CPUs and NVIDIA GPUs can; elsewhere as torch sees fit."""
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return True if kinds <= {"cpu", "cuda"} else None


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "lars": _lars,
    "adamw": _adamw,
    "muon": _muon,
}


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a config. Biases and norm scales (1-d parameters) get no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.name](groups, config)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
