"""Backbone and projector."""

from __future__ import annotations

import torch
from torch import nn

from ssole.config import ModelConfig
from ssole.models.backbone import create_backbone, feature_dim


class Encoder(nn.Module):
    """Images to embeddings; after training, the backbone is kept and the projector dropped.

    Shapes: images (N, C, S, S) -> features (N, F) from `.backbone` -> embeddings (N, D) from calling the encoder.
    Embeddings are not normalised; the loss does that.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.projector(self.backbone(images))
        return embeddings


def create_projector(config: ModelConfig, features: int) -> nn.Module:
    """An MLP from features to D dimensions with ReLU between its layers; see :class:`ModelConfig` for the options."""
    if config.projector_layers == 0:
        return nn.Identity()
    norms = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    norm = norms[config.projector_norm]
    layers: list[nn.Module] = []
    width = features
    for _ in range(config.projector_layers - 1):
        layers.append(nn.Linear(width, config.projector_hidden, bias=norm is None))
        if norm is not None:
            layers.append(norm(config.projector_hidden))
        layers.append(nn.ReLU(inplace=True))
        width = config.projector_hidden
    layers.append(nn.Linear(width, config.projector_dim))
    return nn.Sequential(*layers)


def create_encoder(config: ModelConfig, image_size: int, *, seed: int, channels: int = 3) -> Encoder:
    """The encoder of a config at its initial weights, a function of the seed. Torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(config, image_size, channels=channels)
        return Encoder(backbone, create_projector(config, feature_dim(backbone)))
