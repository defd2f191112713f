"""Small-image ResNets in timm's registry."""

from __future__ import annotations

import pytest
import timm
import torch

import tiny
from ssole.export import register_with_timm
from ssole.models.backbone import create_encoder, small_stem
from ssole.models.timm_registry import NAME, small_stem_kernel


@pytest.mark.parametrize(("stem", "kernel"), [("2x2", 2), ("3x3", 3), ("4x4", 4), ("timm", None)])
def test_kernel_of_the_stem(stem: str, kernel: int | None) -> None:
    assert small_stem_kernel(create_encoder(tiny.config(model__stem=stem)).backbone) == kernel


def test_timm_makes_the_same_network() -> None:
    register_with_timm()
    register_with_timm()  # again is no error
    found = timm.create_model(NAME, backbone="resnet18", stem=3, num_classes=0, pretrained_cfg={"num_classes": 0})
    expected = small_stem(timm.create_model("resnet18", num_classes=0))
    found.load_state_dict(expected.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(images), expected.eval()(images))
