"""Encoder: a timm backbone, its stem for small images, and the projector."""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssole.config import ConfigError, ModelConfig

SMALL_IMAGE = 64  # pixels: up to here a ResNet's 7x7 stride-2 stem and pooling would leave nearly nothing of the image


def create_backbone(config: ModelConfig, image_size: int, *, channels: int = 3) -> nn.Module:
    """The timm backbone of a config: images (B, channels, image_size, image_size) to pooled features (B, F).

    Raises:
        ConfigError: an unknown timm name (with close ones), or a small-image stem for a model without a ResNet's stem.
    """
    import timm

    if not timm.is_model(config.backbone):
        close = difflib.get_close_matches(config.backbone, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " See timm.list_models()."
        raise ConfigError(f"timm has no model {config.backbone!r}.{hint}")
    arguments: dict[str, Any] = dict(config.backbone_args)
    if channels != 3:  # said only where it differs: not every model takes the argument
        arguments = {"in_chans": channels, **arguments}
    model: nn.Module = timm.create_model(config.backbone, pretrained=False, num_classes=0, **arguments)
    stem = config.stem
    if stem == "auto":
        stem = "3x3" if has_resnet_stem(model) and image_size <= SMALL_IMAGE else "timm"
    if stem != "timm":
        small_stem(model, kernel=int(stem[0]))
    return model


def feature_dim(backbone: nn.Module) -> int:
    """F, the features that a timm model without its classifier gives of an image."""
    # MobileNets and others have a layer between pooling and classifier, which stays; `num_features` is before it
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def has_resnet_stem(model: nn.Module) -> bool:
    """Whether the model starts as timm's ResNets do: one 7x7 convolution `conv1`, then `maxpool`."""
    conv = getattr(model, "conv1", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and hasattr(model, "maxpool")


def small_stem(model: nn.Module, kernel: int = 3) -> nn.Module:
    """Give a timm ResNet the usual stem for small images, in place: 3x3 stride 1 or 4x4 stride 2, and no pooling.

    With it, ``small_stem(timm.create_model("resnet18", num_classes=0)).load_state_dict(...)`` loads a small-image run.
    """
    if not has_resnet_stem(model):
        raise ConfigError(
            f"stem '{kernel}x{kernel}' needs a ResNet with timm's 7x7 stem, and {type(model).__name__} has another: "
            "use stem 'timm'"
        )
    old: nn.Conv2d = model.conv1  # type: ignore[assignment]
    stride, padding = (1, 1) if kernel == 3 else (2, 1)
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm initialises its own
    model.maxpool = nn.Identity()
    return model


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


_NOISE = 0.01  # variance, of normalised pixels, below which a direction is not amplified further


@torch.no_grad()
def whiten_stem(backbone: nn.Module, images: torch.Tensor) -> None:
    """Set the first convolution's weight, in place, so that its outputs on patches of images are white.

    Natural patches are nearly smooth, and a random filter answers to little but their mean. Here the filters are the
    principal directions of the patches, each divided by its standard deviation, and their negatives (a ReLU follows).
    After Page, "How to train your ResNet 8" (2019), and Jordan (2024, arXiv 2404.00498), who keep it frozen; here it is
    only where training starts.

    Args:
        backbone: any model with a convolution of the images; the first in order of definition is taken to be that.
        images: normalised floats (N, C, H, W); a few hundred are plenty.

    Raises:
        ConfigError: no convolution over the images' channels.
    """
    conv = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None or conv.in_channels != images.shape[1] or conv.groups != 1:
        raise ConfigError(
            f"stem_init 'whitening' needs a model that starts with a convolution of its {images.shape[1]} channels; "
            f"{type(backbone).__name__} starts with {conv}"
        )
    length, count = conv.weight[0].numel(), 0
    covariance = torch.zeros(length, length, dtype=torch.float64)
    for chunk in images.float().split(64):  # patches take many times the memory of their images
        patches = F.unfold(chunk, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)
        covariance += (patches.T @ patches).double().cpu()
        count += len(patches)
    variance, directions = torch.linalg.eigh(covariance / count)  # ascending
    chosen = min(conv.out_channels // 2, len(variance))
    filters = (directions / (variance.clamp(min=0) + _NOISE).sqrt()).T.flip(0)[:chosen]
    filters = torch.cat([filters, -filters]).view(-1, *conv.weight.shape[1:])
    conv.weight[: len(filters)] = filters.to(conv.weight)  # channels beyond twice the patch's size stay as they were
