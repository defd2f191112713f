"""Weights for torchvision: what it can hold, and what it cannot."""

from __future__ import annotations

import json

import pytest
from weight_files import Weights

import ssole
from ssole.config import ConfigError


def test_preprocessing_stands_beside_the_weights(weights: Weights) -> None:
    folder = ssole.export(weights(**{"model.backbone_args": {}}), to="torchvision")
    found = json.loads((folder / "preprocessing.json").read_text())
    assert (found["image_size"], found["mean"], found["std"]) == (8, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])


def test_another_family_of_the_same_layers(weights: Weights) -> None:
    settings = {"model.backbone": "densenet121", "model.stem": "timm", "model.backbone_args": {}}
    card = (
        ssole.export(weights(**settings, **{"augment.crops.0.size": 32}), to="torchvision") / "README.md"
    ).read_text()
    assert "model.classifier = nn.Identity()" in card


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"torchvision's resnet18 has other layers than timm's resnet18 with \{'channels': \[8, 8, 8, 16\]"),
        ({"model.backbone": "resnet26", "model.backbone_args": {}}, "torchvision has no model 'resnet26': --to timm"),
        (
            {
                "model.backbone": "efficientnet_b0",
                "model.stem": "timm",
                "model.backbone_args": {},
                "augment.crops.0.size": 32,
            },
            "torchvision's efficientnet_b0 has other layers",
        ),
    ],
)
def test_other_layers_are_refused(settings: dict[str, object], words: str, weights: Weights) -> None:
    source = weights(**settings)
    with pytest.raises(ConfigError, match=words):
        ssole.export(source, to="torchvision")
    assert not (source.parent / "export" / "torchvision").exists()
