"""The parts that writers share: a backbone that normalises its input, and its preprocessing as plain values."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from weight_files import Weights

import ssole
from ssole.export.written import NormalisedBackbone, Written, preprocessing_of

MEAN, STD = (0.1, 0.5, 0.7), (0.5, 0.25, 2.0)


def test_images_are_normalised_channel_by_channel() -> None:
    images = torch.rand(2, 3, 4, 5)
    model = NormalisedBackbone(nn.Flatten(), MEAN, STD)
    expected = torch.empty(2, 3, 4, 5)
    for channel in range(3):
        expected[:, channel] = (images[:, channel] - MEAN[channel]) / STD[channel]
    torch.testing.assert_close(model(images), expected.flatten(1))
    middle = torch.tensor(MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    assert torch.equal(model(middle), torch.zeros(2, 60))


def test_mean_and_std_are_no_weights_but_move_and_are_saved_with_them() -> None:
    model = NormalisedBackbone(nn.Linear(4, 2), [0.5], [0.25])
    assert [name for name, _ in model.named_parameters()] == ["backbone.weight", "backbone.bias"]
    state = model.state_dict()
    assert (state["mean_C11"].shape, state["std_C11"].tolist()) == ((1, 1, 1), [[[0.25]]])
    assert model.double().mean_C11.dtype == torch.float64
    assert not model.eval().backbone.training


@pytest.mark.parametrize("channels", [3, 4])
def test_preprocessing_is_that_of_the_loaded_backbone(weights: Weights, channels: int) -> None:
    colour = {} if channels == 3 else {"augment.saturation": 0, "augment.hue": 0, "augment.grey": 0}
    mean, std = (0.4, 0.5, 0.6, 0.7)[:channels], (0.2, 0.3, 0.25, 0.5)[:channels]
    source = weights(channels=channels, **colour, **{"augment.mean": mean, "augment.std": std})
    found = preprocessing_of(ssole.load(source))
    assert found == {
        "image_size": 8,
        "channels": channels,
        "mean": list(mean),
        "std": list(std),
        "resize": "shorter side to image_size, bilinear with antialiasing, then the central square",
    }
    assert json.loads(json.dumps(found)) == found  # lists, which JSON gives back as they are


def test_what_a_writer_leaves_out_is_that_images_are_normalised_before_and_all_was_checked() -> None:
    written = Written(features=nn.Identity(), snippet="", needs="torch")
    assert (written.input, written.library, written.unchecked) == ("normalised images", None, None)
