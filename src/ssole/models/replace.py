"""Putting a layer in the place of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_layers(model: nn.Module, replaceable: Callable[[nn.Module], bool], new: Callable[[Any], nn.Module]) -> None:
    """Put new(layer) in the place of every replaceable layer below `model`; names stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if replaceable(child):
                setattr(module, name, new(child))
