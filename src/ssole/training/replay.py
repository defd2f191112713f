"""Replay bundles: all that a failed training step was made of, so that it can be taken again and looked at.

failures/step-00000012/  tensors.safetensors   weights before the step, its images, their indices, and labels if used
                         step.json             step, epoch, seed, learning rate, what failed, and every setting
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, from_dict, to_dict
from ssole.data.decode import as_batch
from ssole.files import read_json, write_json_atomically, write_tensors_atomically
from ssole.models.weights_file import not_finite, read_tensors
from ssole.runtime import environment, resolve_device, torch_state
from ssole.training.packing import pack, unpack
from ssole.training.run import Run
from ssole.training.step import Batch, Learner
from ssole.training.watch import NonFiniteLossError

_LISTED = 5  # layers or weights that are named
_PIXELS = (torch.uint8, torch.uint16)
_MOST_STEPS = 2**31  # more than any run has; torch seeds its generator with 64 bits


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Result of a failed step that was taken again."""

    step: int
    recorded: str
    """What failed in the run."""
    found: str | None
    """What failed now, or None."""
    reproduced: bool
    """Whether the same failed as in the run."""
    weights: list[str]
    """Weights that were not finite before the step."""
    layers: list[str]
    """First layers whose output was not finite, in the order of the forward pass."""
    gradients: list[str]
    """Weights whose gradient was not finite."""
    notes: list[str]
    """How this machine differs from that of the run."""


def whole_batch(batch: Batch | None) -> Batch:
    """Batch of all processes, from their shares."""
    assert batch is not None
    if distributed.world_size() == 1:
        return batch
    own = [(list(image.shape), str(image.dtype).removeprefix("torch.")) for image in batch.images]
    kinds = [kind for share in distributed.collect(own) for kind in share]
    like = [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for shape, dtype in kinds]
    images = unpack(distributed.gather(pack(list(batch.images)), equal=False), like)
    return batch._replace(images=as_batch(images), ids=distributed.gather(batch.ids))


def save_bundle(run: Run, learner: Learner, error: NonFiniteLossError, batch: Batch) -> Path:
    """Write the bundle of a step that failed before it updated the weights, on this batch; its path, or an OSError."""
    config = learner.config
    folder = run.path / "failures" / f"step-{error.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{name}": tensor for name, tensor in learner.modules.state_dict().items()}
    if isinstance(batch.images, torch.Tensor):
        tensors["images"] = batch.images
    else:
        tensors |= {f"images.{number:06d}": image for number, image in enumerate(batch.images)}
    tensors |= {"ids": batch.ids} | ({} if learner.labels is None else {"labels": learner.labels})
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors_atomically(folder / "tensors.safetensors", plain)
    facts = {
        "step": error.step,
        "what": error.what,
        "epoch": batch.epoch,
        "lr": batch.lr,
        "early": batch.early,
        "seed": config.seed,
        "ids": batch.ids.tolist(),
        "device": str(learner.device),
        "compiled": learner.is_compiled,
        "environment": environment(),
        "settings": to_dict(config),
    }
    write_json_atomically(folder / "step.json", facts)
    return folder


def replay(path: Path, *, loss: nn.Module | None = None, backbone: nn.Module | None = None) -> Replay:
    """Take the step of a bundle again, from the same weights, images and random numbers.

    On the same machine, the same value is not finite. On another, last digits differ, and it may be finite. `loss` and
    `backbone` are the modules, if the run was started with such. A folder that is no bundle, or a damaged one, is a
    ConfigError.
    """
    facts, tensors = _read(path)
    learner, batch = _prepare(path, facts, tensors, loss, backbone)
    if facts["compiled"]:
        learner.compile()
    with torch_state(deterministic=learner.config.deterministic):
        before, found = _failure(learner.check_weights), _failure(lambda: learner.step(**batch._asdict()))
        parameters = dict(learner.modules.named_parameters())
        plain, _ = _prepare(path, facts, tensors, loss, backbone)
        with _outputs(plain) as layers:
            _failure(lambda: plain.step(**batch._asdict()))
    return Replay(
        step=facts["step"],
        recorded=facts["what"],
        found=found,
        reproduced=facts["what"] in (before, found),
        weights=not_finite({name: tensors[f"weights.{name}"] for name in parameters})[:_LISTED],
        layers=layers[:_LISTED],
        gradients=not_finite({name: p.grad for name, p in parameters.items() if p.grad is not None})[:_LISTED],
        notes=_differences(facts, learner),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not (path / "step.json").is_file():
        raise ConfigError(f"{path} is no replay bundle: it has no step.json. Give a folder failures/step-N of a run")
    facts, file = read_json(path / "step.json"), path / "tensors.safetensors"
    kinds: dict[str, type | tuple[type, ...]] = {"step": int, "what": str, "epoch": int, "lr": (int, float)}
    facts.setdefault("early", False)  # of bundles that older versions wrote
    kinds |= {"early": bool, "device": str, "compiled": bool, "settings": dict, "environment": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(facts.get(name), kind)]
    if wrong := wrong or [name for name in ("step", "epoch") if not 0 <= facts[name] < _MOST_STEPS]:
        raise ConfigError(f"{path / 'step.json'} is damaged: look at {', '.join(wrong)}")
    try:
        return facts, read_tensors(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error})") from None


def _prepare(
    path: Path,
    facts: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    loss: nn.Module | None,
    backbone: nn.Module | None,
) -> tuple[Learner, Batch]:
    """Learner as it was before the step, and the arguments of the step."""
    config = from_dict(facts["settings"])
    try:
        device = resolve_device(facts["device"])
    except ConfigError:
        device = torch.device("cpu")
    labels = tensors["labels"].numpy() if "labels" in tensors else None
    learner = Learner(config, device, loss=loss, backbone=backbone, labels=labels)
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    numbered = [tensors[name] for name in sorted(tensors) if name.startswith("images.")]
    images, ids = tensors.get("images", numbered), tensors.get("ids", torch.empty(0))
    fits = ids.ndim == 1 and ids.dtype == torch.int64 and 0 < len(images) == len(ids)
    channels = config.input_channels
    if not fits or any(i.ndim != 3 or len(i) != channels or i.dtype not in _PIXELS or i.numel() == 0 for i in images):
        raise ConfigError(
            f"{path} is damaged: its images and their indices ({tuple(ids.shape)}) do not fit its settings"
        )
    try:
        learner.modules.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold the weights of its settings: {error}") from None
    learner.go_on_from(facts["step"] - 1)
    learner.watch.at_once_until = facts["step"]
    given = images.to(device) if isinstance(images, torch.Tensor) else [image.to(device) for image in images]
    return learner, Batch(given, ids, facts["epoch"], facts["lr"], facts["early"])


def _failure(work: Callable[[], object]) -> str | None:
    """Name of the value that was not finite in some work; None if all values were."""
    try:
        work()
    except NonFiniteLossError as error:
        return error.what
    return None


@contextmanager
def _outputs(learner: Learner) -> Iterator[list[str]]:
    """Context that lists layers whose output is not finite, with the shape and number of such values."""
    found: list[str] = []
    names = {module: name for name, module in learner.modules.named_modules() if not any(module.children())}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in names and isinstance(output, torch.Tensor) and not output.isfinite().all():
            nan, inf = int(output.isnan().sum()), int(output.isinf().sum())
            found.append(f"{names[module]} ({tuple(output.shape)}: {nan} NaN, {inf} infinite)")

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _differences(facts: Mapping[str, Any], learner: Learner) -> list[str]:
    """Differences between this machine and that of the run that may change last digits."""
    now = environment() | {"device": str(learner.device)}
    then = facts["environment"] | {"device": facts["device"]}
    names = ("ssole", "torch", "processor", "cuda", "threads", "device")
    return [f"{name}: {then.get(name)} in the run, {now[name]} here" for name in names if then.get(name) != now[name]]
