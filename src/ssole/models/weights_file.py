"""Weight files: reading those of other programs without pickle's dangers, and loading them whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole.config import ConfigError
from ssole.errors import listed, one_line
from ssole.files import require_regular

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Endings of the names of weight files."""
_WITHIN = ("state_dict", "model", "model_state_dict")  # entries under which training scripts keep the weights
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
_SHOWN = 4


def digest_of(tensors: Mapping[str, torch.Tensor], facts: str) -> str:
    """SHA-256 of tensors, with their names, and of further facts."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name, on the CPU; an `OSError` or `ValueError` for a damaged file or a pipe."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_regular(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights by name, of a safetensors file or a file of `torch.save`, on the CPU.

    Of a file with more than weights, they may be under "state_dict", "model" or "model_state_dict". Prefixes that
    DistributedDataParallel and torch.compile give to every name are left out. A ConfigError if there is no such file,
    if it is damaged, or if it holds objects that only pickle could read, or no weights.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    is_plain = path.suffix.lower() == ".safetensors"
    try:
        # the only torch.load of the package: with weights_only, no code from the file runs
        found: Any = read_tensors(path) if is_plain else torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch.load raises another type, with an unclear text, for each kind of damage
        if is_plain:
            raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
        raise ConfigError(
            f"{path} is no file of weights that can be read safely ({one_line(error)}): save "
            "model.state_dict(), best with safetensors.torch.save_file"
        ) from error
    inner = next((found[key] for key in _WITHIN if isinstance(found, Mapping) and _are_weights(found.get(key))), found)
    if not _are_weights(inner):
        keys = ", ".join(map(str, list(found)[:_SHOWN])) if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(f"{path} holds no weights by name, but {keys or 'nothing'}: save model.state_dict()")
    return _unwrapped(inner)


def is_count(name: str) -> bool:
    """Whether a tensor is a batch norm's count of batches. Old versions of torch save none, and nothing uses it."""
    return name.endswith("num_batches_tracked")


def misfits(
    weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], *, extra_prefixes: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Differences between weights and the state of a model: names, by kind of difference; empty if they fit.

    Names with `extra_prefixes`, such as those of a classifier, may be too many.
    """
    found = {
        "missing": [name for name in own if name not in weights and not is_count(name)],
        "unexpected": sorted(name for name in weights if name not in own and not name.startswith(extra_prefixes)),
        "of another shape": [
            f"{name} is {tuple(weights[name].shape)} there and {tuple(tensor.shape)} here"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    return {what: names for what, names in found.items() if names}


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of a timm model's classifier, which files of its weights have."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def not_finite(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the weights that hold NaN or infinity, by one look at them: each look makes a GPU wait."""
    finite = {name: tensor.isfinite().all() for name, tensor in weights.items() if tensor.is_floating_point()}
    good = torch.stack(list(finite.values())).tolist() if finite else []
    return [name for name, is_good in zip(finite, good, strict=True) if not is_good]


def load_whole(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    *,
    source: str,
    network: str,
    extra_prefixes: tuple[str, ...] = (),
) -> None:
    """Load weights into a model, all of them or none; a ConfigError, which names source and network, for misfits."""
    own = model.state_dict()
    if wrong := misfits(weights, own, extra_prefixes=extra_prefixes):
        parts = [f"{what}: {listed(names, _SHOWN)}" for what, names in wrong.items()]
        raise ConfigError(
            f"the weights in {source} are not those of {network} ({'; '.join(parts)}): name the architecture that they "
            "were trained with"
        )
    model.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def _are_weights(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items())
    )


def _unwrapped(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain = dict(weights)
    while prefix := next((prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in plain)), None):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain
