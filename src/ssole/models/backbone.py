"""The backbone: any timm model without its classifier, with a stem for small images where asked."""

from __future__ import annotations

import difflib
from typing import Any

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
