"""The encoder through `torch.compile`, where that repays the time it takes."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.models.backbone import SMALL_IMAGE
from ssole.models.norm import make_batch_norm_compile_well

FEWEST_STEPS = 500
"""Of a run that is worth compiling for: it takes half a minute, and saves about 0.05 s of a 0.25 s step."""


def wants_compiling(config: PretrainConfig, encoder: nn.Module, device: torch.device, steps: int) -> bool:
    """Whether a run of so many steps is to be compiled: as its config says, or where it is known to pay.

    What it gains is measured in `benchmarks/encoder.py`: networks of plain convolutions and batch norms on small
    images gain 1.2 to 1.4 times on CPUs; others, and larger images, next to nothing.
    """
    if config.compile != "auto":
        return config.compile == "always"
    return (
        device.type == "cpu"
        and not config.deterministic  # repeatable in any case, but a compiler that changes may change last digits
        and steps >= FEWEST_STEPS
        and max(crop.size for crop in config.augment.crops) <= SMALL_IMAGE
        and any(type(module) is nn.BatchNorm2d for module in encoder.modules())
        and shutil.which(os.environ.get("CXX", "g++")) is not None
    )


def compile_encoder(encoder: nn.Module, embed: Callable[[], torch.Tensor], *, required: bool) -> bool:
    """Compile in place and at once, for views of the sizes that `embed` embeds; weights and state stay as they are.

    Args:
        encoder: on its device, in training mode.
        embed: runs the encoder on a batch of some views, as training will.
        required: whether failing is an error, or else a warning.

    Returns:
        Whether the encoder is compiled now.

    Raises:
        ConfigError: compiling failed and is required.
    """
    if next(encoder.parameters()).device.type == "cpu":
        make_batch_norm_compile_well(encoder)
    state = [buffer.clone() for buffer in encoder.buffers()]  # running statistics, which the trial changes
    torch.compiler.reset()  # what earlier runs of this process left would count against the compiler's limit of eight
    encoder.compile(dynamic=False)  # anew for each size of views: loops of fixed length are the fast ones
    try:
        embed().sum().backward()
    except Exception as error:  # whatever compiler and generated code may come up with
        encoder._compiled_call_impl = None
        first_line = next(iter(str(error).strip().splitlines()), "")
        reason = f"torch.compile failed ({type(error).__name__}: {first_line})"
        if required:
            raise ConfigError(f"{reason}: train with compile = never, or see whether a C++ compiler works") from error
        warnings.warn(f"{reason}: training goes on without, somewhat slower", stacklevel=2)
        return False
    finally:
        encoder.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, kept in zip(encoder.buffers(), state, strict=True):
                buffer.copy_(kept)
    return True
