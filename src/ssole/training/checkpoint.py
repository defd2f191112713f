"""Checkpoints: weights, optimizer state and the number of steps done, which is all that a run needs to resume.

checkpoints/  step-00000100.safetensors   weights and optimizer state
              step-00000100.json          steps done; written second, so that the first is complete if it exists
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ssole.config import ConfigError
from ssole.files import write_atomically, write_text_atomically
from ssole.training.run import Run

_KEEP = 2  # the newest checkpoint, and one more in case a disk lost part of it


@dataclass(frozen=True)
class Progress:
    """Progress of a run, stored with each checkpoint."""

    step: int
    """Steps done."""
    images: int
    """Images in the data set. Another number on resuming means another data set."""
    seconds: float
    """Training time of the whole run so far."""


def save_checkpoint(run: Run, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint of modules by name and their optimizer; remove all but the newest two."""
    from safetensors.torch import save_file

    tensors = dict(modules.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:  # SGD without momentum keeps None
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    stem = _stem(run, progress.step)
    write_atomically(stem.with_suffix(".safetensors"), lambda path: save_file(plain, path))
    write_text_atomically(stem.with_suffix(".json"), json.dumps(asdict(progress)) + "\n")
    _remove_all_but([step for step in checkpoint_steps(run) if step <= progress.step][-_KEEP:], run)


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of the run's checkpoints, oldest first."""
    return sorted(int(path.stem.removeprefix("step-")) for path in run.checkpoints.glob("step-*.json"))


def load_checkpoint(run: Run, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest complete checkpoint into modules and optimizer; None if the run has none yet.

    A damaged checkpoint gives a warning, and the one before is taken.

    Raises:
        ConfigError: there are checkpoints, and all of them are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    steps = checkpoint_steps(run)
    for step in reversed(steps):
        stem = _stem(run, step)
        try:
            progress = Progress(**json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")))
            tensors = load_file(stem.with_suffix(".safetensors"))
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            warnings.warn(f"the checkpoint of step {step} is damaged and left out: {error}", stacklevel=2)
            continue
        _restore(tensors, modules, optimizer)
        return progress
    if steps:
        raise ConfigError(f"no checkpoint in {run.checkpoints} can be read: start anew in another folder (--out)")
    return None


def save_backbone(run: Run, backbone: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the final weights under timm's names. The metadata describe the network and its preprocessing."""
    from safetensors.torch import save_file

    tensors = {name: _plain(tensor) for name, tensor in backbone.state_dict().items()}
    write_atomically(run.backbone_path, lambda path: save_file(tensors, path, metadata=dict(metadata)))


def _restore(tensors: Mapping[str, torch.Tensor], modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    modules.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("optimizer.")}, strict=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor | bool]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            value = _like_parameter(parameters[int(index)], tensor)
            # Optimizers keep flags as plain booleans (Muon's `use_muon`). They were saved as tensors.
            state.setdefault(int(index), {})[key] = bool(value) if value.dtype == torch.bool else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous copy on the CPU; safetensors stores neither channels_last nor two names for the same memory."""
    return tensor.detach().cpu().contiguous().clone()


def _like_parameter(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory format of its parameter, as the optimizer had it, so that the same kernels run."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _remove_all_but(kept: list[int], run: Run) -> None:
    """Remove all other checkpoints: older ones, damaged newer ones, and parts that a kill left behind."""
    names = {_stem(run, step).name for step in kept}
    for suffix in (".json", ".safetensors"):  # in this order: a kill in between must leave no JSON alone
        for path in run.checkpoints.glob(f"step-*{suffix}"):
            if path.stem not in names:
                path.unlink()


def _stem(run: Run, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}"
