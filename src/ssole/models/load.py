"""Trained backbones: the description in a weight file's header, and loading by it."""

from __future__ import annotations

import json
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig, from_dict, to_dict
from ssole.config import load as load_config
from ssole.errors import one_line, quoted
from ssole.files import parse_json
from ssole.models.backbone import create_backbone, feature_dim, seeded_weights
from ssole.models.custom import CustomBackbone, is_custom
from ssole.models.weights_file import read_tensors

_MAX_SIDE, _MAX_CHANNELS = 8192, 1024  # of the images that a weight file may ask for
_KEY = "ssole"  # entry of the weight file's metadata that describes the network


class LoadedBackbone(nn.Module):
    """Backbone with the description of its input.

    Calling it maps normalised float images (B, C, S, S) to float32 features (B, F).

    Attributes:
        backbone: the timm model.
        image_size: S, in pixels.
        channels: of images kept at full depth, or None for red, green and blue.
        mean, std: of each channel, for images in [0, 1].
        config: the description in the weight file, with the run's model settings and seed.
        max_unreadable: share of unreadable images that the run was trained with; the default of a weight file alone.
    """

    def __init__(self, backbone: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size: int = config["image_size"]
        self.channels: int | None = config.get("channels")  # missing in old files
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.config = config
        self.max_unreadable = PretrainConfig.max_unreadable

    @property
    def num_features(self) -> int:
        """Number of features F of an image."""
        return feature_dim(self.backbone)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(images)
        return features.float()


def backbone_metadata(config: PretrainConfig) -> dict[str, str]:
    """Metadata of `backbone.safetensors`: the description by which the network is built again without a run folder."""
    augment = config.augment
    projector = {f"projector_{name}": value for name, value in config.projector._asdict().items()}
    description = {
        "model": to_dict(config.model) | projector,
        "image_size": augment.image_size,
        "channels": config.channels,
        "mean": augment.mean,
        "std": augment.std,
        "seed": config.seed,
    }
    # one entry, because safetensors writes several in random order, and equal runs should have equal files
    return {_KEY: json.dumps(description, sort_keys=True)}


def load(run: str | PathLike[str] | Any, *, backbone: nn.Module | None = None) -> LoadedBackbone:
    """Trained backbone, in evaluation mode on the CPU.

    Args:
        run: a run folder, a `backbone.safetensors`, or the :class:`Run` that pretraining returned.
        backbone: a module like the one that the run was started with, if it was: it gets the trained weights.

    Raises:
        ConfigError: the path does not exist, the run is unfinished, ssole did not write the weight file, or it is
            damaged.
    """
    path = weights_path(run)
    model = _create(_read_description(path), backbone)
    target = model.backbone.module if isinstance(model.backbone, CustomBackbone) else model.backbone
    try:
        target.load_state_dict(read_tensors(path), strict=True)
    except (RuntimeError, ValueError) as error:
        what = f"the weights in {path} are not of the network that its header describes"
        raise ConfigError(f"{what}: {one_line(error)}") from None
    model.max_unreadable = max_unreadable(run)
    return model


def untrained(run: str | PathLike[str] | Any) -> LoadedBackbone:
    """Backbone of a run at its initial weights, the baseline for what training added.

    A ConfigError as :func:`load`; also if the backbone is a module of the caller's, which ssole cannot make.
    """
    description = _read_description(weights_path(run))
    # Weights are consecutive draws: `create_encoder` also makes the backbone first.
    with seeded_weights(description["seed"]):
        return _create(description)


def max_unreadable(run: str | PathLike[str] | Any) -> float:
    """Share of unreadable images that a run was trained with; the default where no run's config is beside the weights.

    `run` is as for :func:`load`.
    """
    path = Path(getattr(run, "path", run))
    settings = (path if path.is_dir() else path.parent) / "config.yaml"
    if settings.is_file():  # unlike beside a weight file alone
        with suppress(ConfigError):  # another program's config, which is no reason not to load the weights
            return load_config(settings).max_unreadable
    return PretrainConfig.max_unreadable


def _create(description: dict[str, Any], module: nn.Module | None = None) -> LoadedBackbone:
    """Backbone in evaluation mode from the description in a weight file, with initial weights."""
    model = from_dict({"model": description["model"]}).model
    size, channels = description["image_size"], len(description["mean"])
    if module is not None and not is_custom(model):
        raise ConfigError(f"the backbone is timm's {model.backbone}, which ssole makes by itself: leave out backbone")
    backbone = create_backbone(model, size, channels=channels, module=module)
    return LoadedBackbone(backbone, description).eval()


def weights_path(run: str | PathLike[str] | Any) -> Path:
    """Path of the weight file of a run, or of a weight file itself. Raises as :func:`load`."""
    given = getattr(run, "path", run)
    if not isinstance(given, (str, PathLike)):
        raise ConfigError(f"give a run, its folder or its backbone.safetensors, got {run!r:.100}")
    path = Path(given)
    if path.is_file():
        return path
    weights = path / "backbone.safetensors"
    if weights.is_file():
        return weights
    if (path / "config.yaml").is_file():
        raise ConfigError(
            f"{path} is not finished, so it has no backbone yet: resume it with ssole pretrain --resume {quoted(path)}"
        )
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a run folder or its backbone.safetensors")
    hint = f". For an export, give timm:local-dir:{path}" if (path / "config.json").is_file() else ""
    raise ConfigError(f"{path} is not a run folder: it has neither config.yaml nor backbone.safetensors{hint}")


def described(path: Path) -> str | None:
    """Description of the network in the header of a safetensors file; None if `ssole pretrain` did not write it.

    A ConfigError if it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path.open("rb").close()  # for the right error: safetensors reports a file without permission as missing
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a whole safetensors file: {error}") from None


def folder_beside(weights: Path, name: str) -> Path:
    """Folder beside weights for their export or index: NAME, or NAME-step-N for weights that an extension kept."""
    _, kept, step = weights.stem.partition("backbone-")  # backbone-step-N
    return weights.parent / (f"{name}-{step}" if kept else name)


def _read_description(path: Path) -> dict[str, Any]:
    text = described(path)
    if text is None:
        raise ConfigError(f"{path} was not written by ssole pretrain: its header does not describe the network")
    try:
        description = parse_json(text)
        _check_description(description)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the header of {path} does not describe a network: {error}") from None
    return description


def _check_description(description: dict[str, Any]) -> None:
    """Raise a `ValueError` unless a header holds all that building the network and its preprocessing need."""
    channels, mean, std = (description.get(name) for name in ("channels", "mean", "std"))
    right = {
        "model": isinstance(description.get("model"), dict),
        "image_size": _is_integer(description.get("image_size"), 1, _MAX_SIDE),
        "channels": channels is None or _is_integer(channels, 1, _MAX_CHANNELS),
        "mean": _are_numbers(mean) and len(mean) == (channels or 3),
        "std": _are_numbers(std) and len(std) == (channels or 3) and min(std) > 0,
        "seed": _is_integer(description.get("seed"), -(2**63), 2**64 - 1),  # what torch takes
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        found = "; ".join(f"{name} is {description.get(name)!r}" for name in wrong)
        raise ValueError(found[:300])


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
