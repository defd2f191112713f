"""Optimizers by name, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssole.config import ConfigError, OptimConfig
from ssole.models.stages import layer_factors
from ssole.runtime import resolve_precision
from ssole.training.muon import Muon

Groups = list[dict[str, Any]]


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """LARS, with the rate of each matrix adapted to its norm, also without weight decay; vectors as in SGD."""
    from timm.optim.lars import Lars

    groups = [group | {"always_adapt": group["params"][0].ndim >= 2} for group in groups]
    optimizer: torch.optim.Optimizer = Lars(groups, lr=config.lr, momentum=config.momentum)
    return optimizer


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Muon, in bfloat16 where the hardware multiplies it natively, else in float32: emulation is 100 times slower."""
    device = groups[0]["params"][0].device
    dtype = resolve_precision("auto", device) or torch.float32
    batched = device.type != "cpu"
    return Muon(groups, lr=config.lr, momentum=config.momentum, betas=config.betas, dtype=dtype, batched=batched)


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    # fused: one pass a weight
    "sgd": lambda groups, config: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True),
    "lars": _lars,
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True),
    "muon": _muon,
}


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimizer of a model. Biases and norm scales (1-d parameters) get no weight decay; position embeddings do.

    With `config.layer_decay`, the model is that of a learner, which has an encoder with a backbone. Raises a
    ConfigError if that does not say what its layers are, or if nothing is left to train.
    """
    factors: dict[str, float] = {}
    if config.layer_decay is not None:
        backbone: nn.Module = model.get_submodule("encoder.backbone")
        factors = {f"encoder.backbone.{k}": v for k, v in layer_factors(backbone, config.layer_decay).items()}
    rates: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rates.setdefault(factors.get(name, 1.0), []).append(parameter)
    if not rates:
        raise ConfigError("all weights are frozen: lower model.frozen_stages, or give the model a projector")
    groups: Groups = []
    for factor, parameters in rates.items():
        matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        for chosen, decay in ((matrices, config.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr_factor": factor})
    return OPTIMIZERS[config.name](groups, config)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, each times its own factor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group["lr_factor"])
        else:
            group["lr"] = lr * group["lr_factor"]


def use_tensor_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Store learning rates as tensors on a device, which a CUDA graph reads at each replay."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), device=device)


def learning_rate(step: float, total: int, config: OptimConfig) -> float:
    """Learning rate of a step, of `total`: linear warmup to `lr`, then a half cosine to `final_lr` at the last step.

    Step 0 has lr / warmup_steps, so that it already moves the weights. With a budget of time, a step may stand between
    two whole numbers.
    """
    warmup, lr, final_lr = config.warmup_steps, config.lr, config.final_lr
    if step < warmup:
        return min(lr, lr * (step + 1) / warmup)
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * min(1.0, progress)))
