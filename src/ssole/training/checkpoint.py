"""Checkpoints: weights, optimizer state and the number of steps done, which is all that a run needs to resume.

A run writes the first one, of step 0, before it begins: so there is always one to go on from or back to.

checkpoints/  step-00000100.safetensors   weights and optimizer state
              step-00000100.json          steps done, and checksums of both files. It is written last: where it exists,
                                          the other file is complete
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole import distributed
from ssole.errors import ConfigError, DiskError, one_line
from ssole.files import parse_json, require_regular, write_tensors_atomically, write_text_atomically
from ssole.memory import free_memory
from ssole.models.custom import CustomBackbone
from ssole.models.weights_file import read_tensors
from ssole.progress import data_size
from ssole.training.needs import checkpoint_bytes
from ssole.training.packing import pack, unpack
from ssole.training.run import Run, writing

MOST_CHECKPOINTS = 3
"""Checkpoints on the disk at once: the newest, one more in case a disk lost part of it, and one being written."""
Snapshot = Callable[[], dict[str, torch.Tensor]]
"""Function that brings copies of tensors to the host's memory, by name. The copies were made before it is called."""
_NAME = re.compile(r"step-(\d{8,18})\.(?:json|safetensors)")  # other files in the folder are someone else's


@dataclass(frozen=True)
class Progress:
    """Progress of a run, stored with each checkpoint."""

    step: int
    """Steps done."""
    images: int
    """Images in the data set. Another number on resuming means another data set."""
    seconds: float
    """Training time of the whole run so far."""
    evaluating: float = 0.0
    """Seconds of evaluation so far, which count towards a budget of time; older checkpoints lack them."""


def write_checkpoint(
    run: Run,
    tensors_by_name: Mapping[str, torch.Tensor],
    progress: Progress,
    *,
    is_regular: Callable[[int], bool] = lambda step: True,
) -> None:
    """Write a checkpoint of the tensors of a :func:`snapshot`; remove all but it and the newest regular one before.

    Regular checkpoints are those that an undisturbed run writes too. A run that fails goes back to one of them, so that
    the result does not depend on where it was interrupted. An OSError leaves the checkpoints before it untouched.
    """
    stem = _stem(run, progress.step)
    tensors = stem.with_suffix(".safetensors")
    with writing(run, f"the checkpoint of step {progress.step}"):
        write_tensors_atomically(tensors, tensors_by_name)
        write_text_atomically(stem.with_suffix(".json"), _description(asdict(progress) | {"tensors": _digest(tensors)}))
        earlier = [step for step in checkpoint_steps(run) if step < progress.step]
        before = max(earlier, key=lambda step: (is_regular(step), step), default=progress.step)
        _remove_all_but([before, progress.step], run)


def require_space(run: Run, modules: nn.ModuleDict) -> None:
    """Raise a DiskError if the disk has no room for the checkpoints and final weights still to be written.

    State of a module that is no tensor, which a checkpoint cannot hold, is a ConfigError.
    """
    for name, value in modules.state_dict().items():
        if not isinstance(value, torch.Tensor):
            what = f"the state {name} is a {type(value).__name__}, and checkpoints hold tensors alone"
            raise ConfigError(f"{what}: let get_extra_state return one, or keep it in a buffer")
    needed = checkpoint_bytes(modules, MOST_CHECKPOINTS - len(done := checkpoint_steps(run)))
    if (free := shutil.disk_usage(run.path).free) < needed:
        raise DiskError(
            f"the checkpoints in {run.path} need at least {data_size(needed)} more, and the disk has {data_size(free)} "
            f"free: make room{'' if done else ', or choose a folder on another disk (--out)'}"
        )


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of the run's checkpoints, oldest first."""
    return sorted(step for path, step in _files(run) if path.suffix == ".json")


def remove_checkpoints_after(run: Run, step: int) -> None:
    """Remove the checkpoints of later steps."""
    _remove_all_but([kept for kept in checkpoint_steps(run) if kept <= step], run)


def load_checkpoint(
    run: Run, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, *, last_step: int | None = None
) -> Progress:
    """Restore the newest complete checkpoint into modules and optimizer.

    Of many processes, the first one reads it and sends it to the others. A checkpoint that is damaged, or of other
    modules, gives a warning, and the one before it is taken. The checksums find any changed byte. It is a ConfigError
    if there is none, if all of them are damaged, or if it is of a step after `last_step`.
    """
    tensors: Mapping[str, torch.Tensor] = {}
    other = ""

    def restore_newest() -> dict[str, Any]:
        nonlocal tensors, other
        for step in reversed(checkpoint_steps(run)):
            try:
                done, tensors = _read(run, step)
                _restore(tensors, modules, optimizer)
            except (OSError, ValueError, RuntimeError, LookupError) as error:
                warnings.warn(f"the checkpoint of step {step} is damaged and left out: {one_line(error)}", stacklevel=3)
                if isinstance(error, RuntimeError):  # of load_state_dict: the file is what was written
                    other = ", or give the loss and backbone that the run was started with: these have other weights"
                continue
            if last_step is not None and step > last_step:
                raise ConfigError(
                    f"the run has done {step} steps, and config.yaml now ends it after {last_step}: undo that, or "
                    "start anew in another folder (--out)"
                )
            return asdict(done)
        anew = f"start anew in another folder (--out){other}"
        raise ConfigError(f"no checkpoint in {run.checkpoints} can be read: {anew}")

    done = Progress(**distributed.on_rank_0(restore_newest))
    tensors = distributed.broadcast(tensors)
    if distributed.rank() != 0:
        _restore(tensors, modules, optimizer)
    return done


def newest_weights(run: Run) -> dict[str, torch.Tensor] | None:
    """Weights in the newest checkpoint of a run, by name; None before its first step or epoch is saved.

    A damaged checkpoint is a ConfigError.
    """
    steps = checkpoint_steps(run)
    if not any(steps):
        return None
    try:
        _, tensors = _read(run, steps[-1])
    except (OSError, ValueError) as error:
        raise ConfigError(f"the newest checkpoint of {run.path} cannot be read: {error}") from None
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}


def save_backbone(run: Run, backbone: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the final weights under timm's names, or a custom module's, and metadata that describe the network."""
    named = backbone.module if isinstance(backbone, CustomBackbone) else backbone
    tensors = copies(named.state_dict())()
    with writing(run, "the final weights"):
        write_tensors_atomically(run.backbone_path, tensors, metadata)


def snapshot(modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Snapshot:
    """Snapshot of weights, buffers and optimizer state as they are now, under the names that a checkpoint has."""
    tensors = dict(modules.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:  # SGD without momentum keeps None
                tensors[f"optimizer.{index}.{name}"] = value
    return copies(tensors)


def copies(tensors: Mapping[str, torch.Tensor]) -> Snapshot:
    """Contiguous copies of tensors. Those on a GPU stay there as one piece until they are asked for.

    If the piece takes a quarter of the free memory or more, which training may need, it is copied to the host at once.
    If there is no room for the piece, the tensors are copied one by one. (safetensors stores neither channels_last nor
    two names for the same memory.)
    """
    here = {name: tensor.detach() for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    there = {name: tensor.detach() for name, tensor in tensors.items() if name not in here}
    clones = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in here.items()}
    if not there:
        return lambda: clones
    device = next(iter(there.values())).device
    try:
        flat = flat_copies(there)
    except torch.OutOfMemoryError:
        on_host = clones | {name: tensor.cpu().contiguous() for name, tensor in there.items()}
        return lambda: on_host
    if sum(tensor.nbytes for tensor in there.values()) < free_memory(device) // 4:
        return lambda: clones | flat()
    on_host = clones | flat()
    return lambda: on_host


def flat_copies(tensors: Mapping[str, torch.Tensor]) -> Snapshot:
    """Contiguous copies as one tensor of bytes."""
    parts = list(tensors.values())
    flat = pack(parts, parts[0].device)
    like = [torch.empty_like(part, device="meta") for part in parts]  # the tensors themselves need not stay
    return lambda: dict(zip(tensors, unpack(flat.cpu(), like), strict=True))


def _description(values: dict[str, int | float | str]) -> str:
    """Text of the JSON file: values, and the checksum of these."""
    checksum = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps(values | {"checksum": checksum}) + "\n"


def _read(run: Run, step: int) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Progress and tensors of a checkpoint. `OSError` or `ValueError` if they are not what was written."""
    stem = _stem(run, step)
    path, tensors = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    require_regular(path)
    require_regular(tensors)
    text = path.read_text(encoding="utf-8")
    values = parse_json(text)
    if "checksum" in values or "tensors" in values:  # both are missing in checkpoints of the first version
        values.pop("checksum", None)
        if text != _description(values):
            raise ValueError(f"{path.name} is not what was written")
        if values.pop("tensors", None) != _digest(tensors):
            raise ValueError(f"{tensors.name} is not what was written")
    kinds: dict[str, Any] = {"step": int, "images": int, "seconds": (int, float), "evaluating": (int, float)}
    known: dict[str, Any] = {"evaluating": 0.0} | values
    fits = known.keys() == kinds.keys() and all(isinstance(known[name], kind) for name, kind in kinds.items())
    if not fits or known["step"] != step:
        raise ValueError(f"{path.name} holds {values}")
    return Progress(**known), read_tensors(tensors)


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _restore(tensors: Mapping[str, torch.Tensor], modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    modules.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("optimizer.")}, strict=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # in the memory format that the optimizer had, so that the same kernels run
                tensor = torch.empty_like(like).copy_(tensor)
            else:  # a copy here too: what is read maps the file, which Windows then could not remove
                tensor = tensor.clone()
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _files(run: Run) -> list[tuple[Path, int]]:
    """Files of all checkpoints, and their steps."""
    names = sorted(run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []
    return [(path, int(match[1])) for path in names if (match := _NAME.fullmatch(path.name))]


def _remove_all_but(kept: list[int], run: Run) -> None:
    """Remove all other checkpoints: older ones, damaged newer ones, and parts that a kill left behind."""
    for path, step in sorted(_files(run), key=lambda file: file[0].suffix):  # a kill in between leaves no JSON alone
        if step not in kept:
            path.unlink()


def _stem(run: Run, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}"
