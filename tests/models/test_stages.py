"""Stages of timm's networks: what is frozen, and the learning rates of layers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import tiny
from ssole.config import ConfigError, apply_overrides
from ssole.models.backbone import Encoder, create_encoder
from ssole.models.custom import custom_settings
from ssole.models.stages import layer_factors, stage_numbers

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2},
}


def encoder(frozen: int | None, **model: Any) -> Encoder:
    return create_encoder(tiny.config(model__frozen_stages=frozen, **model))


@pytest.mark.parametrize(
    ("frozen", "parts"),
    [(0, {"conv1", "bn1"}), (1, {"conv1", "bn1", "layer1"}), (3, {"conv1", "bn1", "layer1", "layer2", "layer3"})],
)
def test_stem_and_first_stages_of_a_resnet(frozen: int, parts: set[str]) -> None:
    backbone = encoder(frozen).train().backbone
    still = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    moving = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert (still, still & moving) == (parts, set())
    norms = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name, norm in norms.items() if not norm.training} == parts - {"conv1"}


def test_a_block_of_a_transformer_is_a_stage() -> None:
    backbone = encoder(1, model=VIT | {"frozen_stages": 1}).backbone
    still = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in still} == {"cls_token", "pos_embed", "patch_embed", "blocks"}
    assert all(name.startswith("blocks.0.") for name in still if name.startswith("blocks"))


def test_frozen_modules_come_back_to_evaluation_mode() -> None:
    model = encoder(1)
    assert not model.eval().backbone.layer2.training  # type: ignore[union-attr]
    model.train()
    assert model.backbone.layer2.training  # type: ignore[union-attr]
    assert not any(module.training for module in model.backbone.layer1.modules())  # type: ignore[union-attr]


def test_more_stages_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"frozen_stages is 9, and ResNet has 4 stages"):
        encoder(9)
    with pytest.raises(ConfigError, match=r"frozen_stages must be at least 0, got -1"):
        encoder(-1)


def test_a_network_without_stages() -> None:
    with pytest.raises(ConfigError, match=r"Linear does not say what its stages are"):
        stage_numbers(nn.Linear(2, 2), coarse=True)


def test_learning_rates_fall_towards_the_stem() -> None:
    factors = layer_factors(encoder(None).backbone, 0.5)  # a stem and four blocks
    assert {factors["conv1.weight"], factors["bn1.bias"]} == {0.5**5}
    assert [factors[f"layer{n}.0.conv1.weight"] for n in (1, 2, 3, 4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    vit = layer_factors(encoder(None, model=VIT).backbone, 0.5)  # patches, and two blocks, the last with the final norm
    assert [vit[name] for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight")] == [
        0.125,
        0.25,
        0.5,
        0.5,
    ]


def test_nothing_is_frozen_unless_asked_for() -> None:
    model = encoder(None)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    assert model.frozen == ()


def test_stages_of_a_timm_network_given_as_a_module() -> None:
    module = timm.create_model("resnet18", num_classes=0, layers=(1, 1, 1, 1), channels=(8, 8, 8, 16))
    config = apply_overrides(tiny.config(model__frozen_stages=1), custom_settings(module))
    given, named = create_encoder(config, module), encoder(1)
    assert given.frozen == tuple(name.replace("backbone.", "backbone.module.") for name in named.frozen)
    factors = layer_factors(named.backbone, 0.5)
    assert layer_factors(given.backbone, 0.5) == {f"module.{name}": factor for name, factor in factors.items()}
    with pytest.raises(ConfigError, match=r"frozen_stages is 9, and ResNet has 4 stages"):
        create_encoder(apply_overrides(config, {"model.frozen_stages": 9}), module)
