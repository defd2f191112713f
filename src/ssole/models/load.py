"""Trained backbones: the description in a weight file's header, and loading by it."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig, from_dict, to_dict
from ssole.models.backbone import create_backbone, feature_dim

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
    """

    def __init__(self, backbone: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size: int = config["image_size"]
        self.channels: int | None = config.get("channels")  # missing in old files
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.config = config

    @property
    def num_features(self) -> int:
        """Number of features F of an image."""
        return feature_dim(self.backbone)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(images)
        return features.float()


def backbone_metadata(config: PretrainConfig) -> dict[str, str]:
    """Header of `backbone.safetensors`: what is needed to build the network again without its run folder."""
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


def load(run: str | PathLike[str] | Any) -> LoadedBackbone:
    """Trained backbone, in evaluation mode on the CPU.

    Args:
        run: a run folder, a `backbone.safetensors`, or the :class:`Run` that pretraining returned.

    Raises:
        ConfigError: the path does not exist, the run is unfinished, or ssole did not write the weight file.
    """
    from safetensors.torch import load_file

    path = weights_path(run)
    model = _create(_read_description(path))
    model.backbone.load_state_dict(load_file(path), strict=True)
    return model


def untrained(run: str | PathLike[str] | Any) -> LoadedBackbone:
    """Backbone of a run at its initial weights, the baseline for what training added. Raises as :func:`load`."""
    description = _read_description(weights_path(run))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(description["seed"])  # as `create_encoder` does, which also makes the backbone first
        return _create(description)


def _create(description: dict[str, Any]) -> LoadedBackbone:
    model = from_dict({"model": description["model"]}).model
    backbone = create_backbone(model, description["image_size"], channels=len(description["mean"]))
    return LoadedBackbone(backbone, description).eval()


def weights_path(run: str | PathLike[str] | Any) -> Path:
    """Path of the weight file of a run, or of a weight file itself. Raises as :func:`load`."""
    path = Path(getattr(run, "path", run))
    if path.is_file():
        return path
    weights = path / "backbone.safetensors"
    if weights.is_file():
        return weights
    if (path / "config.yaml").is_file():
        raise ConfigError(
            f"{path} is not finished, so it has no backbone yet: resume it with ssole pretrain --resume {path}"
        )
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a run folder or its backbone.safetensors")
    raise ConfigError(f"{path} is not a run folder: it has neither config.yaml nor backbone.safetensors")


def _read_description(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a whole safetensors file: {error}") from None
    if _KEY not in metadata:
        raise ConfigError(f"{path} was not written by ssole pretrain: its header does not describe the network")
    description: dict[str, Any] = json.loads(metadata[_KEY])
    return description
