"""The whitened stem answers to all patch directions alike."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from ssole.config import ConfigError
from ssole.models.backbone import small_stem, whiten_stem


def smooth_images(n: int) -> torch.Tensor:
    """Images whose neighbouring pixels and channels are strongly correlated, of variance near 1."""
    noise = torch.randn(n, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    images = nn.functional.avg_pool2d(noise + noise.mean(1, keepdim=True), 9, stride=1)
    return images / images.std()


def test_outputs_are_white() -> None:
    images = smooth_images(300)
    conv = nn.Conv2d(3, 20, 4, stride=2, bias=False)
    whiten_stem(nn.Sequential(conv), images)
    responses = conv(images).transpose(0, 1).flatten(1).double()
    covariance = responses[:10] @ responses[:10].T / responses.shape[1]
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 1e-3
    assert (covariance.diagonal() <= 1 + 1e-6).all()  # one, less where the direction has hardly more than the noise
    assert covariance[0, 0] > 0.98
    assert torch.equal(conv.weight[10:], -conv.weight[:10])


def test_channels_without_a_direction_of_their_own_keep_their_filters() -> None:
    conv = nn.Conv2d(1, 7, 1, bias=False)
    before = conv.weight.detach().clone()
    images = torch.full((2, 1, 4, 4), 3.0)
    whiten_stem(conv, images)
    assert conv.weight[0].item() == pytest.approx(-conv.weight[1].item())
    assert abs(conv.weight[0].item()) == pytest.approx((9 + 0.01) ** -0.5)
    assert torch.equal(conv.weight[2:], before[2:])


def test_of_a_timm_resnet_only_the_stem_changes() -> None:
    model = small_stem(timm.create_model("resnet18", num_classes=0), kernel=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whiten_stem(model, smooth_images(20))
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == ["conv1.weight"]


@pytest.mark.parametrize("model", [nn.Linear(3, 4), nn.Conv2d(1, 4, 3), nn.Conv2d(3, 3, 3, groups=3)])
def test_a_model_without_such_a_layer_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="starts with a convolution of its 3 channels"):
        whiten_stem(model, smooth_images(2))
