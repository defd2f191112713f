"""`torch.compile` for the encoder: whether a run gains from it, and how."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.models.backbone import SMALL_IMAGE
from ssole.models.batch_norm import keep_out_of_graphs, kept_buffers
from ssole.models.cpu import speed_up_compiled_batch_norms
from ssole.runtime import resolve_precision

COMPILE_FROM_STEPS = 500
"""Steps from which compiling saves time: it takes half a minute, and saves 0.04 s of a step of 0.25 s."""


def wants_compiling(config: PretrainConfig, encoder: nn.Module, device: torch.device, steps: int) -> bool:
    """Whether a run of this many steps compiles its encoder: as `config.compile` says, or with `auto`, where it pays.

    `benchmarks/encoder.py` measures the gain. On CPUs, networks of plain convolutions and batch norms are 1.2 to 1.4
    times as fast in bfloat16 on small images. Other networks and larger images gain next to nothing, and neither does
    float32, in which convolutions take nearly all of the time.
    """
    if config.compile != "auto":
        return config.compile == "always"
    return (
        device.type == "cpu"
        and resolve_precision(config.precision, device) is torch.bfloat16
        and not config.deterministic  # compiled runs repeat too, but another compiler may change the last digits
        and steps >= COMPILE_FROM_STEPS
        and max(crop.size for crop in config.augment.crops) <= SMALL_IMAGE
        and any(type(module) is nn.BatchNorm2d for module in encoder.modules())
        and distributed.world_size() == 1  # batch norm, which waits for the others, cuts the network into short pieces
        and can_compile()
    )


def can_compile() -> bool:
    """Whether torch.compile can work on this CPU: it needs a C++ compiler and Python's headers (python3-dev)."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def compile_encoder(
    encoder: nn.Module,
    embeds: Sequence[Callable[[], torch.Tensor]],
    *,
    required: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Compilation of the encoder, in place, by forward and backward passes; weights and state stay as they were.

    Returns whether the encoder is compiled now. If that is `required`, a failure is a ConfigError, else a warning, or
    nothing when a signal asks to stop (`stopping`), because Ctrl-C also ends the compiler. `embeds` are functions that
    run the encoder on the views of a step, one for each set of sizes. Everything else that this process compiled before
    will be compiled again at its next call.
    """
    if next(encoder.parameters()).device.type == "cpu":
        speed_up_compiled_batch_norms(encoder)
    keep_out_of_graphs(encoder)
    try:
        torch.compiler.reset()  # torch compiles eight versions of a function at most, and earlier runs count
        # static shapes, because loops of fixed length are faster; and one whole graph, because with breaks in it the
        # encoder is slower than uncompiled
        encoder.compile(dynamic=False, fullgraph=not required)
        with kept_buffers(encoder), _quiet_about_cuda():
            for embed in embeds:
                if (z := embed()).requires_grad:  # not if the whole encoder is frozen
                    z.sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler and its generated code raise many types
        encoder._compiled_call_impl = None
        if stopping():
            return False
        reason = f"torch.compile failed ({type(error).__name__}: {_gist(str(error))})"
        if required:
            raise ConfigError(f"{reason}: train with compile = never, or see whether a C++ compiler works") from error
        warnings.warn(f"{reason}: training continues without it, somewhat slower", stacklevel=2)
        return False
    finally:
        encoder.zero_grad(set_to_none=True)
    return True


@contextmanager
def _quiet_about_cuda() -> Iterator[None]:
    """Context without torch's line about a machine with CUDA's compiler and no GPU, which is of no use on a CPU."""

    def wanted(record: logging.LogRecord) -> bool:
        return "No CUDA runtime is found" not in record.getMessage()

    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _gist(message: str) -> str:
    """The line of a compiler's message that names the error, or else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else "no message")
