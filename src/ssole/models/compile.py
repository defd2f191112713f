"""The encoder through `torch.compile`, where that repays the time it takes."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.models.backbone import SMALL_IMAGE
from ssole.models.cpu import make_batch_norm_compile_well

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
        and can_compile()
    )


def can_compile() -> bool:
    """Whether what torch.compile needs on a CPU is there: a C++ compiler, and Python's headers (python3-dev)."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def compile_encoder(
    encoder: nn.Module,
    embed: Callable[[], torch.Tensor],
    *,
    required: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Compile in place and at once, for views of the sizes that `embed` embeds; weights and state stay as they are.

    What else this process has compiled before is compiled anew when it is next called.

    Args:
        encoder: on its device, in training mode.
        embed: runs the encoder on a batch of some views, as training will.
        required: whether failing is an error, or else a warning.
        stopping: whether someone asked to stop. Ctrl-C reaches the compiler too, whose failing then means nothing.

    Returns:
        Whether the encoder is compiled now.

    Raises:
        ConfigError: compiling failed and is required.
    """
    if next(encoder.parameters()).device.type == "cpu":
        make_batch_norm_compile_well(encoder)
    state = [buffer.clone() for buffer in encoder.buffers()]  # running statistics, which the trial changes
    try:
        torch.compiler.reset()  # what earlier runs of this process left would count against its limit of eight
        # anew for each size of views: loops of fixed length are the fast ones; and without breaks in its graph, which
        # make it slower than it was
        encoder.compile(dynamic=False, fullgraph=not required)
        embed().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever compiler and generated code may come up with
        encoder._compiled_call_impl = None
        if stopping():
            return False
        reason = f"torch.compile failed ({type(error).__name__}: {_gist(str(error))})"
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


def _gist(message: str) -> str:
    """The line of a compiler's message that says what is wrong, or else the first."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else "no message")
