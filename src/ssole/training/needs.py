"""Needs of a run: memory and disk that it will take, estimated before it begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.memory import available_memory, total_memory
from ssole.models.backbone import create_encoder
from ssole.models.custom import is_custom
from ssole.progress import data_size
from ssole.runtime import resolve_precision

_IMAGES = 2  # in the batch whose tensors are counted
_COUNTED: dict[str, tuple[int, int] | None] = {}  # by settings: a comparison trains one network many times
_ERROR_ABOVE = 1.4  # times the memory; compiled encoders keep less for the backward pass than is counted


def checkpoint_bytes(modules: nn.Module, checkpoints: int) -> int:
    """Bytes on the disk of so many checkpoints and of the final weights, at least.

    Every optimizer keeps one value or more for each weight.
    """
    weights: int = sum(tensor.nbytes for tensor in modules.state_dict().values())
    return weights * (2 * checkpoints + 1)


def step_bytes(config: PretrainConfig, device: torch.device) -> int | None:
    """Approximate memory of a training step of one process, in bytes.

    It is that of weights, gradients, one state of the optimizer, views, and what is kept for the backward pass, counted
    on tensors without memory in a fraction of a second. None for a network that cannot be made of such tensors, or is a
    custom module.
    """
    if is_custom(config.model):
        return None
    key = repr((config.model, config.projector, config.input_channels, config.augment.crops))
    if key not in _COUNTED:
        _COUNTED[key] = _count(config)
    if (counted := _COUNTED[key]) is None:
        return None
    weights, saved = counted
    width = 0.5 if resolve_precision(config.precision, device) == torch.bfloat16 else 1.0
    views = sum(4 * torch.Size(shape).numel() for shape in _shapes(config))
    images = config.batch_size / distributed.launch().world_size
    return int(3 * weights + images / _IMAGES * (views + width * saved / config.accumulate))


def _shapes(config: PretrainConfig) -> list[tuple[int, int, int, int]]:
    """Shapes of the views of a few images."""
    return [(_IMAGES * crop.count, config.input_channels, crop.size, crop.size) for crop in config.augment.crops]


def _count(config: PretrainConfig) -> tuple[int, int] | None:
    """Bytes of an encoder's weights, and of what it keeps in float32 for the backward pass of a few images' views."""
    from torch import _dynamo  # noqa: F401 - torch 2.8 imports it on the way, which on the device "meta" breaks off

    try:
        with torch.device("meta"):
            encoder = create_encoder(config).train()
            with saved_bytes(encoder) as saved:
                _outputs = [encoder(torch.empty(shape)) for shape in _shapes(config)]  # they hold what is counted
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - an estimate never ends a run that may work
        return None
    return sum(tensor.nbytes for tensor in encoder.state_dict().values()), sum(saved.values())


def require_memory(config: PretrainConfig, device: torch.device) -> None:
    """Raise a ConfigError for a run that needs far more memory than there is; warn if it needs more than is free."""
    needed = step_bytes(config, device)
    if needed is None:
        return
    on_gpu = device.type == "cuda"
    needed *= 1 if on_gpu else distributed.launch().local_world_size  # the processes of a machine share its memory
    free, total = torch.cuda.mem_get_info(device) if on_gpu else (available_memory(), total_memory())
    text = f"a step on {config.batch_size} images needs about {data_size(needed)} of memory"
    if needed > _ERROR_ABOVE * total:
        raise ConfigError(
            f"{text}, and {device} has {data_size(total)}: lower --batch-size, --views or --augment.crops.0.size"
        )
    if needed > free:
        warnings.warn(f"{text}, and {data_size(free)} of {data_size(total)} are free on {device}", stacklevel=3)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Context that collects bytes of what autograd keeps for the backward pass, by storage; weights are left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield sizes
