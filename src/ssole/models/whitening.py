"""A first layer that sees all directions of image patches equally well from the first step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssole.config import ConfigError

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
