"""Stages and layers of a timm backbone, numbered in the order in which an image passes them.

Stage 0 is the stem. For timm, a stage of a vision transformer is one of its blocks, and a final norm may be one too.
"""

from __future__ import annotations

from torch import nn

from ssole.config import ConfigError
from ssole.models.custom import CustomBackbone


def stage_numbers(backbone: nn.Module, *, coarse: bool) -> dict[str, int]:
    """Number of the stage (`coarse`) or layer of each parameter, by name; a ConfigError if they are not known."""
    from timm.models import group_parameters

    if isinstance(backbone, CustomBackbone):
        return {f"module.{name}": stage for name, stage in stage_numbers(backbone.module, coarse=coarse).items()}
    if not hasattr(backbone, "group_matcher"):
        raise ConfigError(
            f"{type(backbone).__name__} does not say what its stages are, as timm's models do by their group_matcher: "
            "leave model.frozen_stages and optim.layer_decay out, and freeze parameters by requires_grad_(False)"
        )
    found: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=coarse), reverse=True)  # type: ignore[operator]
    return found


def freeze_stages(backbone: nn.Module, count: int) -> list[str]:
    """Freeze the stem and the first `count` stages of a backbone, in place; a ConfigError if it has fewer.

    Returns names of the modules whose parameters are all frozen. They are to stay in evaluation mode, so that batch
    norms keep their statistics.
    """
    stages = stage_numbers(backbone, coarse=True)
    if count > max(stages.values()):
        network = type(getattr(backbone, "module", backbone)).__name__
        raise ConfigError(
            f"model.frozen_stages is {count}, and {network} has {max(stages.values())} stages after its stem"
        )
    frozen = {name for name, number in stages.items() if number <= count}
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    inside = {
        name: {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        for name, module in backbone.named_modules()
    }
    return [name for name, parameters in inside.items() if parameters and frozen.issuperset(parameters)]


def layer_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Factors of the learning rate of a backbone's parameters: decay^(n - i) for layer i of n, counted from 0.

    The last layer has the factor `decay`, and what comes after the backbone has 1. Source: Bao et al. 2022, BEiT
    (arXiv:2106.08254).
    """
    layers = stage_numbers(backbone, coarse=False)
    count = max(layers.values()) + 1
    return {name: decay ** (count - layer) for name, layer in layers.items()}
